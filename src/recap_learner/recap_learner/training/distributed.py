"""One model trained by several processes: who does which rows of a batch, and where weights lie.

Under torchrun each process is a rank. The batch of a step is that of one process alone: every rank draws the
same samples and the same noise from the same seed and keeps its own rows, so no sample is seen twice and
none is left out. What a rank holds is the strategy's matter:

- ddp: everything; gradients are averaged while they are computed (DistributedDataParallel)
- fsdp: its share of every weight, gradient, moment and average; each decoder and expert layer is gathered
  when it is used (FSDP2, `fully_shard`; ZeRO's third stage, arXiv 1910.02054)
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recap_policy.backbone import BackboneLayer
from recap_policy.expert import ExpertLayer
from recap_station.contract import ContractError

STRATEGIES = ("auto", "ddp", "fsdp")
Losses = dict[str, Tensor]
Loss = Callable[..., Losses]


@dataclass(frozen=True)
class Crew:
    """The processes that train one model together; this one is number `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks to people."""
        return self.rank == 0

    def agree(self, word: bool) -> bool:
        """The first rank's word, on all of them."""
        if self.ranks == 1:
            return word
        told = torch.tensor([int(word)])
        dist.broadcast(told, 0)
        return bool(told)

    def tell(self, what: Any) -> Any:
        """The first rank's object, on all of them."""
        if self.ranks == 1:
            return what
        told = [what]
        dist.broadcast_object_list(told, 0)
        return told[0]

    def sum(self, numbers: Tensor) -> Tensor:
        """(…) float → its sum over the ranks."""
        if self.ranks > 1:
            dist.all_reduce(numbers)
        return numbers

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.ranks > 1:
            dist.barrier()


def crew() -> Crew:
    """Of this process: alone, unless `join` made it one of several."""
    if not (dist.is_available() and dist.is_initialized()):
        return Crew()
    return Crew(dist.get_rank(), dist.get_world_size())


@contextmanager
def join() -> Iterator[Crew]:
    """Make torchrun's processes one crew: NCCL between GPUs, gloo between CPUs. Alone without torchrun."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield crew()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= cards:
            raise ContractError(f"process {local} of this machine has no GPU: wanted at most {cards} of them")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        yield crew()
    finally:
        dist.destroy_process_group()


def parts(batch: int, ranks: int, accumulation: int) -> list[list[slice]]:
    """Rows of each rank's passes: `accumulation` slices for each of `ranks`, together each row once.

    Raises ContractError where there are fewer rows than passes.
    """
    passes = ranks * accumulation
    if batch < passes:
        raise ContractError(
            f"a batch of {batch} for {ranks} processes × {accumulation} passes, wanted at least {passes}"
        )
    cut = [slice(batch * i // passes, batch * (i + 1) // passes) for i in range(passes)]
    return [cut[rank * accumulation : (rank + 1) * accumulation] for rank in range(ranks)]


class _Step(nn.Module):
    """A loss as the forward pass of a module: what DDP and FSDP hook into."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, *given: Any) -> Losses:
        return self.loss(*given)


class Spread:
    """A model and its loss, as the crew trains them. Made before the optimiser, whose parameters are those
    that `model` has afterwards.

    Raises ContractError on a loss that cannot be split where there is something to split.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batch: int,
        strategy: str,
        accumulation: int,
        precision: torch.dtype,
    ) -> None:
        self.model, self.precision, self.batch = model, precision, batch
        self.crew = crew()
        self.parts = parts(batch, self.crew.ranks, accumulation)
        self.rows = -(-batch // (self.crew.ranks * accumulation))  # of the largest pass
        self.device = next(p for p in model.parameters() if p.requires_grad).device
        self.sharded = strategy == "fsdp" and self.crew.ranks > 1
        self._split = self.crew.ranks * accumulation > 1
        if self._split and "rows" not in inspect.signature(loss).parameters:
            raise ContractError(
                "this loss has no argument `rows`, wanted loss(step, generator, rows) for more than one "
                "process or pass: train it in one process with accumulation 1"
            )
        self.plain = _Step(model, loss)
        self.module: _Step | nn.parallel.DistributedDataParallel = self.plain
        if self.sharded:
            self._whole = _without_memory(model)
            _shard(self.plain, precision)
        elif self.crew.ranks > 1:
            self.module = nn.parallel.DistributedDataParallel(
                self.plain,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=True,  # a value function's own tower, where tokens are cached
            )

    def backward(self, step: int, seed: int) -> Losses:
        """Add up the gradients of the whole batch → this rank's share of the mean losses, by name."""
        total: Losses = {}
        own = self.parts[self.crew.rank]
        for index, rows in enumerate(own):
            # FSDP reduces after every pass: kept until the last, gradients would be whole on every rank.
            ddp = isinstance(self.module, nn.parallel.DistributedDataParallel) and self.module
            with ddp.no_sync() if ddp and index < len(own) - 1 else nullcontext():
                losses = self.losses(step, seed, rows, self.module)
                share = (rows.stop - rows.start) / self.batch
                (losses["loss"] * (share * self.crew.ranks) if self._split else losses["loss"]).backward()
            for name, value in losses.items():
                value = value.detach() * share if self._split else value.detach()
                total[name] = total[name] + value if name in total else value
        return total

    def losses(self, step: int, seed: int, rows: slice, module: nn.Module | None = None) -> Losses:
        """Of some rows of the batch. Whatever is drawn for them does not depend on how the batch is split,
        but for dropout."""
        generator = generator_of(seed, step)
        order = [part.start for of_rank in self.parts for part in of_rank]
        place = order.index(rows.start) if rows.start in order else 0
        torch.manual_seed(2**40 + seed * 1_000_003 + step + place * 2**48)  # dropout's
        given = (step, generator, rows) if self._split else (step, generator)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return (module or self.plain)(*given)

    @torch.no_grad()
    def worst(self, step: int, seed: int) -> tuple[slice, Losses] | None:
        """Where the losses of this step are not finite: the rows, as few as can be told apart. None: nowhere.

        All ranks look at the same rows at the same time, as FSDP wants it.
        """
        if not self._split and "rows" not in inspect.signature(self.plain.loss).parameters:
            whole = slice(0, self.batch)
            losses = self.losses(step, seed, whole)
            return (whole, losses) if not _finite(losses) else None
        split, self._split = self._split, True
        try:
            left = [part for of_rank in self.parts for part in of_rank]
            found = None
            while left:
                rows = left.pop(0)
                losses = self.losses(step, seed, rows)
                if _finite(losses):
                    continue
                found = rows, losses
                middle = (rows.start + rows.stop) // 2
                halves = [slice(rows.start, middle), slice(middle, rows.stop)]
                left = halves if rows.stop - rows.start > 1 else []
            return found
        finally:
            self._split = split

    def mean(self, share: Losses) -> dict[str, float]:
        """What `backward` gave, over all ranks."""
        numbers = torch.stack([value.float() for value in share.values()])
        return dict(zip(share, self.crew.sum(numbers).tolist(), strict=True))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model as one process alone has it, gathered on every rank, and sharded again after."""
        if not self.sharded:
            yield
            return
        sharded = self.model.__dict__
        self._gather()
        try:
            yield
        finally:
            self.model.__dict__ = sharded
            self._whole = _without_memory(self._whole)

    def finish(self) -> None:
        """Leave the model whole for good."""
        if self.sharded:
            self._gather()

    def _gather(self) -> None:
        full = {name: whole(tensor) for name, tensor in self.model.state_dict().items()}
        self._whole.load_state_dict(full, assign=True)
        for name, buffer in self.model.named_buffers():
            if name not in full:  # not persistent, the same on all ranks
                owner, _, last = name.rpartition(".")
                self._whole.get_submodule(owner)._buffers[last] = buffer
        self._whole.train(self.model.training)
        self.model.__dict__ = self._whole.__dict__


def generator_of(seed: int, step: int) -> torch.Generator:
    """All randomness of a step but dropout's."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _finite(losses: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in losses.values())


def _shard(step: _Step, precision: torch.dtype) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Keys and values leave a layer as views; nothing here writes into them.
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    device = next(step.parameters()).device.type
    half = precision if precision != torch.float32 else None
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device, (dist.get_world_size(),)),
        # Gathered in the precision of the pass, reduced in float32; inputs are autocast's matter, for which
        # rotations and flow times stay float32.
        "mp_policy": MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False),
        "ignored_params": {p for p in step.parameters() if not p.requires_grad},
    }
    for module in step.modules():
        if isinstance(module, (BackboneLayer, ExpertLayer)):
            fully_shard(module, **how)
    fully_shard(step, **how)


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy of the modules whose parameters take no memory."""
    known: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    known |= {id(buffer): buffer for buffer in model.buffers()}
    tokenizer = getattr(model, "tokenizer", None)
    known |= {id(tokenizer): tokenizer}
    return copy.deepcopy(model, known)
