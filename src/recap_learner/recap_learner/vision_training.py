"""Pre-training the vision tower by locating things, the stand-in for SigLIP's pre-training.

A model of a few million parameters cannot afford web-scale pre-training. Ours looks at random scenes
of the simulated cell and learns where peg, socket and grippers are in each camera's frame; it sees no
action, no reward and no attempt. After that the tower is frozen.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.training import Progress, Schedule, fit
from recap_policy.checkpoint import save_vision
from recap_policy.config import vla_config
from recap_policy.vision import LocalizeHead, VisionTower
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.files import replace_file
from recap_station.sim.cell import Cell


@dataclass(frozen=True)
class VisionTraining:
    config: str = "tiny"
    scenes: int = 4000
    schedule: Schedule = Schedule(steps=1200, batch=96, learning_rate=2e-3)


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
    """Render scenes, train the tower, save it in `out` → median errors in metres on held-out scenes."""
    scenes = out.parent / ".scenes.npz"
    if not scenes.exists():
        _render_all(station, task, how.scenes, seed, workers, scenes, progress)
    data = np.load(scenes)
    images, xyz, visible = (data[k] for k in ("images", "xyz", "visible"))
    held_out = len(images) // 12
    config = vla_config(how.config)
    torch.manual_seed(seed)
    tower, head = VisionTower(config.vision), LocalizeHead(config.vision, xyz.shape[1])
    model = torch.nn.ModuleDict({"tower": tower, "head": head})
    train_images = torch.from_numpy(images[held_out:])
    head.fit(torch.from_numpy(xyz[held_out:]), torch.from_numpy(visible[held_out:]))
    train_xyz, train_visible = torch.from_numpy(xyz[held_out:]), torch.from_numpy(visible[held_out:])

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(train_images), (how.schedule.batch,), generator=generator)
        tokens = tower(_augment(train_images[pick], generator))
        return head.loss(tokens, train_xyz[pick], train_visible[pick])

    part = (lambda f, text: progress(0.4 + 0.6 * f, text)) if progress else None
    fit(model, loss, how.schedule, seed, out.parent / "training" / out.name, part)
    with torch.no_grad():
        parts = np.array_split(images[:held_out], 8)
        found = torch.cat([head(tower(torch.from_numpy(part))).xyz for part in parts])
    error_m = np.linalg.norm(found.numpy() - xyz[:held_out], axis=-1)
    report = {
        name: float(np.median(error_m[:, i][visible[:held_out, i]]))
        for i, name in enumerate(data["names"].tolist())
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
        for camera in station.camera_names:
            points = cell.keypoints(camera)
            names = list(points)
            images.append(cell.render(camera))
            xyz.append([points[name][0] for name in names])
            visible.append([points[name][2] for name in names])
    cell.close()
    return {
        "images": np.array(images, dtype=np.uint8),
        "xyz": np.array(xyz, dtype=np.float32),
        "visible": np.array(visible, dtype=bool),
        "names": np.array(names),
    }
