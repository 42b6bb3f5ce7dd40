"""Training the advantage-conditioned policy (eq. 3): sub-task text and flow matching, given the indicator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.frames import Frames
from recap_learner.training import Computation, Progress, Schedule, fit
from recap_policy.checkpoint import load_policy, load_vision, save_policy
from recap_policy.config import vla_config
from recap_policy.prefix import fill_slots, make_tokenizer
from recap_policy.vla import VLA, Batch


@dataclass(frozen=True)
class PolicyTraining(Computation):
    """draws: noise draws a sample in the flow loss (they share one pass of the backbone).
    indicator_dropout: share of examples trained without the indicator (paper: 0.3).
    positive_share: if set, positives are drawn so that they make up this share of every batch;
    otherwise frames are drawn evenly. Positive and not dropped is else only 0.4 × 0.7 of the samples.
    tokenizer: Gemma's tokenizer.json, for a fresh policy whose table is Gemma's."""

    config: str = "tiny"
    schedule: Schedule = Schedule(steps=1800, batch=128, learning_rate=2e-3)
    draws: int = 2
    indicator_dropout: float = 0.3
    positive_share: float | None = None
    tokenizer: str | None = None

    def for_steps(self, steps: int) -> PolicyTraining:
        return replace(self, schedule=replace(self.schedule, steps=steps))


# From the pre-trained checkpoint, at a third of its learning rate (choice).
FINETUNING = PolicyTraining(schedule=Schedule(steps=700, batch=128, learning_rate=7e-4), positive_share=0.75)


def train_policy(
    frames: Frames,
    indicator: np.ndarray,
    out: Path,
    start: Path | None,
    vision: Path,
    how: PolicyTraining,
    seed: int,
    lineage: dict[str, Any],
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train π on `frames` and save it in `out` → the log.

    indicator: (F,) int8, 1 positive, 0 negative; start: the checkpoint to fine-tune (its normalisers
    are kept), None for a fresh policy on the vision tower in folder `vision`.
    """
    chunks = torch.from_numpy(frames.chunks())
    state = torch.from_numpy(frames.state)
    station = frames.episodes[0].info.station
    model = load_policy(start, station) if start else _fresh(frames, chunks, how, vision, seed)
    # The tower is frozen: its tokens were computed once for every frame.
    model.vision.requires_grad_(False)
    placement = how.prepare(model)
    stages, prompts = frames.stages, frames.prompts
    weight = np.full(len(frames), 1.0 / len(frames))
    if how.positive_share is not None:
        positive = indicator == 1
        share = positive.mean()
        if 0 < share < how.positive_share:
            weight = np.where(positive, how.positive_share / share, (1 - how.positive_share) / (1 - share))
            weight /= weight.sum()
    odds = torch.from_numpy(weight)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.multinomial(odds, how.schedule.batch, replacement=True, generator=generator).numpy()
        features = torch.from_numpy(frames.tokens[pick].astype(np.float32))
        features, camera_mask = fill_slots(features, model.config.prefix.cameras)
        batch = Batch(
            image_features=features,
            state=state[pick],
            prompt=prompts[pick].tolist(),
            subtask=stages[pick].tolist(),
            indicator=torch.from_numpy(indicator[pick].astype(np.int64)),
            actions=chunks[pick],
            camera_mask=camera_mask,
        )
        return model.loss(batch.to(placement.device), generator, how.draws, how.indicator_dropout)

    workbench = out.parent / "training" / out.name
    log = fit(model, loss, how.schedule, seed, workbench, progress, precision=placement.dtype)
    save_policy(model, out, lineage, station=station, prompts=sorted(set(frames.prompts)))
    return log


def _fresh(frames: Frames, chunks: torch.Tensor, how: PolicyTraining, vision: Path, seed: int) -> VLA:
    torch.manual_seed(seed)
    shape = vla_config(how.config)
    texts = sorted({*frames.prompts, *frames.stages})
    model = VLA(shape, make_tokenizer(shape.backbone, shape.prefix, texts, how.tokenizer))
    model.vision.load_state_dict(load_vision(vision).state_dict())
    is_gripper = torch.from_numpy(frames.episodes[0].info.station.is_gripper)
    model.fit_normalizers(chunks, torch.from_numpy(frames.state), is_gripper)
    return model
