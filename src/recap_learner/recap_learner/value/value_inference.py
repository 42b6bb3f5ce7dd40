"""V at every tick: image tokens made once a picture, frames in batches, several models as one.

What a tick lies between two frames has their values in between; `benchmarks/value_inference.py` measures what
this gains on a model run for each tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.data.frames import Frames
from recap_policy.checkpoint import load_value
from recap_policy.prefix import fill_slots
from recap_policy.value import ValueModel
from recap_station.contract import Station

COMBINE = ("mean", "worst")


@dataclass(frozen=True)
class Outlook:
    """Of every frame: value (F,) float32, the expected normalised return; failed (F, 2) float32, P(R ≤ −½)
    and E[R·1(R ≤ −½)], what `returns.renormalize` wants."""

    value: np.ndarray
    failed: np.ndarray


def outlook(
    models: Sequence[ValueModel],
    frames: Frames,
    combine: str = "mean",
    batch: int = 512,
    precision: torch.dtype = torch.float32,
) -> Outlook:
    """Evaluate V at all frames. combine: of several models the mean, or at each frame the worst, the one that
    expects least. precision: of the passes, by autocast where it is not float32."""
    if combine not in COMBINE or not models:
        raise ValueError(f"{len(models)} value models by {combine!r}, wanted some by {' or '.join(COMBINE)}")
    members = []
    for model in models:
        lost = model.centres <= -0.5 + 1e-6
        rows = []
        device = model.centres.device.type
        half = torch.autocast(device, precision) if precision != torch.float32 else nullcontext()
        with torch.inference_mode():
            for i in range(0, len(frames), batch):
                part = frames.where(np.arange(i, min(i + batch, len(frames))))
                with half:
                    logits = model.logits(**inputs(part, model))
                chance = logits.softmax(-1)
                part_of = torch.stack(
                    [chance @ model.centres, chance @ lost.float(), chance @ (model.centres * lost)], -1
                )
                rows.append(part_of.cpu().numpy())
        members.append(np.concatenate(rows))
    every = np.stack(members)
    if combine == "mean":
        found = every.mean(0) if len(every) > 1 else every[0]
    else:
        found = every[every[:, :, 0].argmin(0), np.arange(every.shape[1])]
    return Outlook(found[:, 0], found[:, 1:])


def per_tick(at_frames: np.ndarray, frames: Frames) -> dict[str, np.ndarray]:
    """A column (F,) or (F, k) at the frames → episode id → (T,) or (T, k) float32, linear in between and held
    at the ends, for every episode with a frame."""
    found = {}
    for index in np.unique(frames.episode):
        rows = frames.episode == index
        episode = frames.episodes[index]
        tick, there = np.arange(len(episode)), at_frames[rows]
        columns = there if there.ndim == 2 else there[:, None]
        between = [np.interp(tick, frames.tick[rows], column) for column in columns.T]
        found[episode.info.id] = np.stack(between, 1).astype(np.float32).reshape(len(tick), *there.shape[1:])
    return found


def inputs(frames: Frames, model: ValueModel) -> dict[str, Any]:
    """What the model takes, where it is."""
    device = model.centres.device
    features = torch.from_numpy(frames.tokens.astype(np.float32)).to(device)
    features, camera_mask = fill_slots(features, model.config.prefix.cameras)
    return {
        "image_features": features,
        "state": torch.from_numpy(frames.state).to(device),
        "prompt": frames.prompts.tolist(),
        "camera_mask": camera_mask,
    }


def member(folder: Path, index: int) -> Path:
    """Folder of a model of the ensemble that is saved as `folder`: itself, then `<name>.1` beside it, …"""
    return folder.with_name(f"{folder.name}.{index}") if index else folder


def load_ensemble(folder: Path, station: Station, tower: str) -> list[ValueModel]:
    """All models that were trained as one ensemble. Raises CheckpointError as `load_value`."""
    models = [load_value(folder, station, tower)]
    while member(folder, len(models)).is_dir():
        models.append(load_value(member(folder, len(models)), station, tower))
    return models
