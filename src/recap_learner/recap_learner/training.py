"""One training loop for every model of the stack: AdamW, warm-up and cosine, averaged weights, resumable.

Model-specific files give it a loss; it gives them progress, a log and a safe restart. Weights, gradients,
AdamW's two moments and the averages are float32, 20 bytes a trained parameter (16 without averages), whatever
`Computation` says of the passes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from recap_policy.backbone import Backbone
from recap_policy.device import CHOICES, Placement, RuntimeConfig, resolve
from recap_policy.expert import ActionExpert
from recap_station.contract import ContractError
from recap_station.files import replace_file, write_json

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Schedule:
    """steps: optimiser steps; batch: samples a step; average: decay of the averaged weights (0: none)."""

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    average: float = 0.99
    clip: float = 1.0
    save_every_s: float = 30.0

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
    Raises ContractError on unknown words.
    """

    device: str = "auto"
    precision: str = "auto"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, known in (("device", CHOICES["device"]), ("precision", CHOICES["dtype"])):
            if (found := getattr(self, name)) not in known:
                raise ContractError(f"training: {name} is {found!r}, wanted one of {', '.join(known)}")

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
    """Ends a training early. What it remembers is saved and restored with the rest."""

    def __call__(self, step: int) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fit(
    model: nn.Module,
    loss: Callable[[int, torch.Generator], dict[str, torch.Tensor]],
    schedule: Schedule,
    seed: int,
    workbench: Path,
    progress: Progress | None = None,
    stop: Stop | None = None,
    precision: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """Train `model` in place → the log, one entry every 20 steps.

    loss(step, generator) gives the batch's losses by name, "loss" the one to minimise; all its
    randomness comes from the generator and, for dropout, torch's global one, which are both seeded from
    (seed, step): a run that is killed and started again with the same `workbench` folder goes on from its
    last save and ends where an unbroken one would. stop(step) may end it early. precision: of the loss's
    forward and backward pass, by autocast where it is not float32.

    Raises FloatingPointError on a gradient that is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        parameters, schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.95)
    )
    average = [p.detach().clone() for p in parameters] if schedule.average else []
    log: list[dict[str, float]] = []
    first = 0
    save = workbench / "state.pt"
    if save.exists():
        state = torch.load(save, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = [mean.to(device) for mean in state["average"]]
        first, log = state["step"], json.loads(state["log"])
        if stop:
            stop.load_state_dict(state["stop"])
        del state
    started = saved = time.monotonic()
    model.train()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(2**40 + seed * 1_000_003 + step)  # dropout's
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            losses = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient is not finite at step {step}: {losses}")
        optimizer.step()
        if schedule.average:
            # The average starts fresh: early on it follows closely, later slowly.
            decay = min(schedule.average, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1.0 - decay)
        if step % 20 == 0 or step == schedule.steps - 1:
            log.append({"step": step, **{k: float(v.detach()) for k, v in losses.items()}})
            if progress:
                left = (time.monotonic() - started) / (step - first + 1) * (schedule.steps - step - 1)
                progress((step + 1) / schedule.steps, f"loss {log[-1]['loss']:.4f}, {left:.0f} s left")
        if stop and stop(step):
            break
        if time.monotonic() - saved > schedule.save_every_s:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
                "log": json.dumps(log),
                "stop": stop.state_dict() if stop else {},
            }
            replace_file(save, partial(torch.save, state))
            saved = time.monotonic()
    if schedule.average:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
    model.eval()
    write_json(workbench / "log.json", log)
    save.unlink(missing_ok=True)
    return log
