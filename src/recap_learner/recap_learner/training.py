"""One training loop for every model of the stack: AdamW, warm-up and cosine, averaged weights, resumable.

Model-specific files give it a loss; it gives them progress, a log and a safe restart.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

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


def fit(
    model: nn.Module,
    loss: Callable[[int, torch.Generator], dict[str, torch.Tensor]],
    schedule: Schedule,
    seed: int,
    workbench: Path,
    progress: Progress | None = None,
    stop: Callable[[int], bool] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place → the log, one entry every 20 steps.

    loss(step, generator) gives the batch's losses by name, "loss" the one to minimise; all its
    randomness comes from the generator, which is seeded from (seed, step): a run that is killed and
    started again with the same `workbench` folder goes on from its last save and ends where an
    unbroken one would. stop(step) may end it early (it may also load better weights into the model).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.95)
    )
    average = [p.detach().clone() for p in parameters]
    log: list[dict[str, float]] = []
    first = 0
    save = workbench / "state.pt"
    if save.exists():
        state = torch.load(save, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, log = state["average"], state["step"], json.loads(state["log"])
    started = saved = time.monotonic()
    model.train()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        losses = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient is not finite at step {step}: {losses}")
        optimizer.step()
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
