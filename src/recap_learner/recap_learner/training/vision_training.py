"""Pre-training the vision tower by locating things, the stand-in for SigLIP's pre-training.

A model of a few million parameters cannot afford web-scale pre-training. Ours looks at random scenes
of the simulated cell and learns where peg, socket and grippers are in each camera's frame; it sees no
action, no reward and no attempt. After that the tower is frozen.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.training.training import Progress, Schedule, fit
from recap_policy.checkpoint import save_vision
from recap_policy.config import ObjectConfig
from recap_policy.objects import ObjectTower
from recap_policy.sizes import vla_config
from recap_policy.vision import LocalizeHead, VisionTower
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.files import replace_file
from recap_station.sim.cell import Cell


@dataclass(frozen=True)
class VisionTraining:
    config: str = "tiny"
    scenes: int = 4000
    schedule: Schedule = Schedule(steps=900, batch=96, learning_rate=2e-3)

    def for_steps(self, steps: int) -> VisionTraining:
        return replace(self, schedule=replace(self.schedule, steps=steps))


def train_vision(
    station: str,
    task: str,
    out: Path,
    how: VisionTraining,
    seed: int,
    lineage: dict[str, Any],
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Render scenes, train the tower, save it in `out` → median errors in metres on held-out scenes.

    Where the configuration is for states of things instead of images there is nothing to train, hence no
    error: the tower is made for the task's numbers.
    """
    config = vla_config(how.config)
    if isinstance(config.vision, ObjectConfig):
        cell = Cell(load_station(station), load_task(task))
        objects = replace(config.vision, features=len(cell.scene().features()))
        save_vision(ObjectTower(objects), replace(config, vision=objects), out, lineage)
        return {}
    scenes = out.parent / ".scenes.npz"
    if not scenes.exists():
        _render_all(station, task, how.scenes, seed, workers, scenes, progress)
    data = np.load(scenes)
    # (scenes, cameras, ...) → one row an image
    images, xyz, visible = (torch.from_numpy(data[k]) for k in ("images", "xyz", "visible"))
    held_out = len(images) // 12
    torch.manual_seed(seed)
    tower, head = VisionTower(config.vision), LocalizeHead(config.vision, xyz.shape[2])
    model = torch.nn.ModuleDict({"tower": tower, "head": head})
    train = [part[held_out:].flatten(0, 1) for part in (images, xyz, visible)]
    head.fit(train[1], train[2])

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(train[0]), (how.schedule.batch,), generator=generator)
        pixels, places, seen = (part[pick] for part in train)
        return head.loss(tower(_augment(pixels, generator)), places, seen)

    part = (lambda f, text: progress(0.4 + 0.6 * f, text)) if progress else None
    fit(model, loss, how.schedule, seed, out.parent / "training" / out.name, part)
    with torch.no_grad():
        seen = images[:held_out].flatten(0, 1).split(200)
        found = torch.cat([head(tower(part)).xyz for part in seen]).unflatten(0, (held_out, -1))
    error_m = (found - xyz[:held_out]).norm(dim=-1)
    # A gripper's tip stands still in its own wrist camera's picture: that it is found there says nothing.
    counts = visible[:held_out] & (xyz[:held_out].std(0).amax(-1) > 5e-3)
    report = {
        name: float(error_m[..., i][counts[..., i]].median()) for i, name in enumerate(data["names"].tolist())
    }
    save_vision(tower, config, out, {**lineage, "median_error_m": report})
    scenes.unlink()
    return report


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random brightness and contrast → uint8: light changes must not move things."""
    gain = 1.0 + 0.3 * (torch.rand(len(images), 1, 1, 1, generator=generator) - 0.5)
    bias = 40.0 * (torch.rand(len(images), 1, 1, 1, generator=generator) - 0.5)
    return (images * gain + bias).clamp(0, 255).to(torch.uint8)


def _render_all(
    station: str, task: str, scenes: int, seed: int, workers: int, out: Path, progress: Progress | None
) -> None:
    context = get_context("spawn")
    each = 100
    jobs = [(station, task, seed * 1000 + i, each) for i in range(max(1, scenes // each))]
    parts = []
    with ProcessPoolExecutor(workers, context, os.nice, (5,)) as pool:
        for index, part in enumerate(pool.map(_render, jobs)):
            parts.append(part)
            if progress:
                progress(0.4 * (index + 1) / len(jobs), f"{(index + 1) * each} scenes rendered")
    merged = {k: np.concatenate([p[k] for p in parts]) for k in ("images", "xyz", "visible")}
    shuffle = np.random.default_rng(seed).permutation(len(merged["images"]))
    merged = {k: v[shuffle] for k, v in merged.items()}
    names = parts[0]["names"]

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, names=names, **merged)  # type: ignore[arg-type]

    replace_file(out, save)


def _render(job: tuple[str, str, int, int]) -> dict[str, np.ndarray]:
    station_name, task_name, seed, scenes = job
    station: Station = load_station(station_name)
    task: Task = load_task(task_name)
    rng = np.random.default_rng(seed)
    cell = Cell(station, task)
    images, xyz, visible, names = [], [], [], []
    for _ in range(scenes):
        cell.randomize(rng)
        images.append([cell.render(camera) for camera in station.camera_names])
        seen = [cell.keypoints(camera) for camera in station.camera_names]
        names = list(seen[0])
        xyz.append([[points[name][0] for name in names] for points in seen])
        visible.append([[points[name][2] for name in names] for points in seen])
    cell.close()
    return {
        "images": np.array(images, dtype=np.uint8),
        "xyz": np.array(xyz, dtype=np.float32),
        "visible": np.array(visible, dtype=bool),
        "names": np.array(names),
    }
