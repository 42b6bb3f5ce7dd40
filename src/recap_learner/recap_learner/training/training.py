"""One training loop for every model of the stack: warm-up and cosine, averaged weights, resumable.

Model-specific files give it a loss; it gives them progress, curves and a safe restart, in one process or in
those of torchrun (distributed.py). Weights, gradients, AdamW's two moments and the averages are float32, 20
bytes a trained parameter (16 without averages; Muon has one moment), whatever `Computation` says of the
passes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from recap_learner.training.distributed import STRATEGIES, Loss, Spread, whole
from recap_learner.training.failures import advice, blame
from recap_learner.training.logs import Pace, open_curves
from recap_learner.training.optimizer import OPTIMIZERS, Optimizer
from recap_learner.training.saves import Saves, tensors
from recap_policy.backbone import Backbone
from recap_policy.device import CHOICES, Placement, RuntimeConfig, resolve
from recap_policy.expert import ActionExpert
from recap_station.contract import ContractError
from recap_station.files import write_json

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Schedule:
    """steps: optimiser steps; batch: samples a step; average: decay of the averaged weights (0: none);
    optimizer: adamw or muon (optimizer.py). Raises ContractError on another."""

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    average: float = 0.99
    clip: float = 1.0
    save_every_s: float = 30.0
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ContractError(
                f"training: optimizer is {self.optimizer!r}, wanted one of {', '.join(OPTIMIZERS)}"
            )

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine down to a twentieth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@dataclass(frozen=True, kw_only=True)
class Computation:
    """Where and how a model is trained, in RuntimeConfig's words: "auto" is a GPU where there is one, with
    bfloat16 where that has it; else the CPU in float32.

    precision: of forward and backward pass, by autocast; "bfloat16" halves the activations and uses a GPU's
    tensor cores. checkpointing: activations are computed again in the backward pass instead of kept
    (arXiv 1604.06174): same gradients, less memory, about a third more time.
    strategy: of several processes under torchrun, see distributed.py; "auto" is ddp.
    accumulation: passes that each process makes of its share of a step's batch, one after the other: same
    gradients, less memory.
    Raises ContractError on unknown words.
    """

    device: str = "auto"
    precision: str = "auto"
    checkpointing: bool = False
    strategy: str = "auto"
    accumulation: int = 1

    def __post_init__(self) -> None:
        words = {"device": CHOICES["device"], "precision": CHOICES["dtype"], "strategy": STRATEGIES}
        for name, known in words.items():
            if (found := getattr(self, name)) not in known:
                raise ContractError(f"training: {name} is {found!r}, wanted one of {', '.join(known)}")
        if self.accumulation < 1:
            raise ContractError(f"training: accumulation is {self.accumulation}, wanted at least 1")

    def prepare(self, model: nn.Module) -> Placement:
        """Move a model where it is trained, in place; what is trained becomes float32, what is frozen keeps
        its type, hence a frozen tower its identity.

        Raises ContractError where this machine cannot do what is asked.
        """
        placement = resolve(RuntimeConfig(self.device, self.precision, cuda_graphs="off"))
        model.to(placement.device)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if self.checkpointing:  # a matter of training: the configuration that is saved does not change
            for part in model.modules():
                if isinstance(part, Backbone):
                    part.config = replace(part.config, recompute=True)
                elif isinstance(part, ActionExpert):
                    part.backbone = replace(part.backbone, recompute=True)
        return placement


class Stop(Protocol):
    """Ends a training early. What it remembers is saved and restored with the rest. It may have `due(step)`,
    whether it will look at the model then: a sharded one is gathered for it."""

    def __call__(self, step: int) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fit(
    model: nn.Module,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    workbench: Path,
    progress: Progress | None = None,
    stop: Stop | None = None,
    precision: torch.dtype = torch.float32,
    how: Computation | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place → the log, one entry every 20 steps.

    loss(step, generator, rows) gives mean losses by name over `rows`, a slice of the step's batch, "loss" the
    one to minimise; its batch and all its randomness come from the generator, drawn for the whole batch
    whatever the rows. A loss without `rows` does for one process and one pass a step. It may have
    `name(generator, row)`, what to call a sample of the batch, and `data_s`, seconds it has spent on data.

    Generator and, for dropout, torch's global one are seeded from (seed, step): a run that is killed and
    started again with the same `workbench` folder goes on from its last save and ends where an unbroken one
    would. stop(step) may end it early. precision: of forward and backward pass, by autocast where it is not
    float32. how: strategy and accumulation are read of it.

    Raises FloatingPointError on a loss or gradient that is not finite, naming the sample; the weights and
    everything else are as they were before that step, and saved. Raises OutOfMemory.
    """
    how = how or Computation()
    if schedule.optimizer == "muon" and how.strategy == "fsdp":
        raise ContractError(
            "training: strategy is 'fsdp', which shards the matrices that optimizer 'muon' needs whole"
        )
    spread = Spread(model, loss, schedule.batch, how.strategy, how.accumulation, precision)
    crew = spread.crew
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = Optimizer(model, schedule.optimizer, schedule.learning_rate, schedule.weight_decay)
    average = [p.detach().clone() for p in parameters] if schedule.average else []
    saves = Saves(workbench, crew)
    log: list[dict[str, float]] = []
    first = 0
    if rest := saves.read(tensors(model, optimizer, average)):
        first, log = rest["step"], json.loads(rest["log"])
        if stop:
            stop.load_state_dict(rest["stop"])

    def save(steps: int) -> None:
        rest = {"log": json.dumps(log), "stop": stop.state_dict() if stop else {}}
        saves.write(steps, tensors(model, optimizer, average), rest)

    curves = open_curves(workbench) if crew.first else []
    pace = Pace(loss, schedule.batch)
    started = saved = time.monotonic()
    model.train()
    for step in range(first, schedule.steps):
        optimizer.zero_grad()
        with advice(how, precision, spread.rows, crew.ranks):
            losses = spread.backward(step, seed)
            norm = whole(nn.utils.clip_grad_norm_(parameters, schedule.clip))
            if not torch.isfinite(norm):
                save(step)
                raise FloatingPointError(f"{blame(spread, step, seed)}; the weights before it are saved")
            optimizer.step(schedule.rate(step))
        if schedule.average:
            # The average starts fresh: early on it follows closely, later slowly.
            decay = min(schedule.average, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1.0 - decay)
        if step % 20 == 0 or step == schedule.steps - 1:
            log.append({"step": step, **spread.mean(losses)})
            told = {**log[-1], "learning_rate": schedule.rate(step), "gradient": float(norm), **pace(step)}
            told.pop("step")
            for curve in curves:
                curve.add(step, told)
            if progress and crew.first:
                left = (time.monotonic() - started) / (step - first + 1) * (schedule.steps - step - 1)
                progress((step + 1) / schedule.steps, f"loss {log[-1]['loss']:.4f}, {left:.0f} s left")
        if stop and getattr(stop, "due", lambda _: True)(step):
            with spread.whole():
                ends = stop(step)
            if crew.agree(ends):
                break
        if crew.agree(time.monotonic() - saved > schedule.save_every_s):
            save(step + 1)
            saved = time.monotonic()
    if schedule.average:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
    spread.finish()
    model.eval()
    for curve in curves:
        curve.close()
    if crew.first:
        write_json(workbench / "log.json", log)
    saves.clear()
    return log
