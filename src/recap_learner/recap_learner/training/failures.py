"""What ends a training: numbers that are not finite, memory that is not there; and what then helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from recap_learner.training.distributed import Spread, generator_of

if TYPE_CHECKING:
    from recap_learner.training.training import Computation


class OutOfMemory(RuntimeError):
    """Memory ran out. One line that says which settings take less."""


def blame(spread: Spread, step: int, seed: int) -> str:
    """Where a step went wrong whose gradient is not finite: losses by name, and the sample."""
    found = spread.worst(step, seed)
    where = f"step {step} (batch of seed {seed})"
    if found is None:
        return (
            f"{where}: the gradient is not finite though every loss is: lower the learning rate, "
            "or train with precision float32"
        )
    rows, losses = found
    bad = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
    name = getattr(spread.plain.loss, "name", None)
    if rows.stop - rows.start > 1:
        sample = f"samples {rows.start} to {rows.stop - 1} of its batch together"
    else:
        sample = f"sample {rows.start} of its batch"
        if name:
            sample += f", {name(generator_of(seed, step), rows.start)}"
    return f"{where}: {bad} from {sample}: leave it out, or lower the learning rate"


@contextmanager
def advice(how: Computation, precision: torch.dtype, rows: int, ranks: int) -> Iterator[None]:
    """Turn a failed allocation into OutOfMemory with what may be tried, in the order of what it costs.

    rows: samples of a pass. ranks: processes that train together.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        tries = []
        if precision == torch.float32:
            tries.append("precision=bfloat16")
        if rows > 1:
            tries.append(f"accumulation={2 * how.accumulation} (half the samples a pass, the same result)")
        if not how.checkpointing:
            tries.append("checkpointing=True (a third more time)")
        if ranks > 1 and how.strategy != "fsdp":
            tries.append("strategy=fsdp (weights and moments shared out)")
        tries.append("a smaller batch" if rows > 1 or ranks > 1 else "more processes with strategy=fsdp")
        raise OutOfMemory(
            f"out of memory with {rows} samples a pass, precision {str(precision).removeprefix('torch.')}, "
            f"checkpointing {how.checkpointing}, accumulation {how.accumulation}, {ranks} processes; "
            f"in this order: {'; '.join(tries)}. ./recap plan says what fits"
        ) from error


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)  # the CPU's allocator has no class of its own
    return "can't allocate memory" in text or "not enough memory" in text
