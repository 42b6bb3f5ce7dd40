"""Policy training as the learner does it: samples a second, and the share of time spent waiting for data.

    python benchmarks/train_policy.py [--config tiny] [--steps 60] [--batch 128] [--draws 2] [--threads 1]
        [--frames 20000] [--accumulation 1] [--checkpointing] [--precision auto] [--device auto]

The loop is `fit`, with all it does beside the steps: curves, saves, averages. Frames are made up, as many as
two hours of attempts have at ten a second, with image tokens cached as the learner has them; samples are
drawn, gathered and turned into tensors in every step. `data_wait_share` is the time between asking for a
batch and having it, by the wall time of the loop; `data_cpu_share` the same in processor time, which a busy
machine does not change. The first fifth of the steps does not count.
Wanted: data_wait_share of at most 0.05.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.frames import Frames
from recap_learner.training.policy_training import PolicyLoss, PolicyTraining
from recap_learner.training.training import Schedule, fit
from recap_policy.config import vla_config
from recap_policy.device import CHOICES
from recap_policy.prefix import make_tokenizer
from recap_policy.vla import VLA
from recap_station.contract import load_station, load_task

TICKS, EVERY = 500, 5  # an attempt of ten seconds, a frame in five ticks
STAGES = ("reach", "lift", "pass", "insert")


def made_up(count: int, config: Any) -> Frames:
    """Frames of attempts that wander about the station's home."""
    rng, station, task = np.random.default_rng(0), load_station("aloha"), load_task("handover_insert")
    episodes = []
    for number in range(-(-count * EVERY // TICKS)):
        walk = station.home + np.cumsum(rng.normal(0, 0.01, (TICKS, station.dof)), 0)
        info = EpisodeInfo(f"e{number}", "", "success", "", "rollout", "", number, task, station)
        rows, no = walk.astype(np.float32), np.zeros(TICKS, bool)
        stage = np.array(STAGES, dtype=object)[np.arange(TICKS) * len(STAGES) // TICKS]
        source = np.full(TICKS, "policy")
        episodes.append(Episode(info, np.arange(TICKS), rows, rows, rows, rows, source, no, stage, no))
    tick = np.tile(np.arange(0, TICKS, EVERY), len(episodes))
    episode = np.repeat(np.arange(len(episodes)), TICKS // EVERY)
    state = np.stack([episodes[e].state[t] for e, t in zip(episode, tick, strict=True)])
    shape = (len(tick), config.prefix.cameras, config.vision.tokens, config.vision.width)
    return Frames(episodes, "made up", rng.standard_normal(shape, np.float32).astype(np.float16), state,
                  episode, tick)  # fmt: skip


class Timed:
    """A loss whose step times and data times are kept."""

    def __init__(self, loss: PolicyLoss) -> None:
        self._loss = loss
        self.marks: list[tuple[float, float, float, float]] = []  # wall, processor, data wall, data processor

    def __call__(self, step: int, generator: torch.Generator, rows: slice = slice(None)) -> Any:
        self.marks.append((time.monotonic(), time.process_time(), self._loss.data_s, self._loss.data_cpu_s))
        return self._loss(step, generator, rows)

    @property
    def data_s(self) -> float:
        return self._loss.data_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--draws", type=int, default=PolicyTraining().draws)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--precision", default="auto", choices=CHOICES["dtype"])
    parser.add_argument("--device", default="auto", choices=CHOICES["device"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    how = PolicyTraining(
        config=given.config, schedule=Schedule(given.steps, given.batch, 2e-3), draws=given.draws,
        positive_share=0.75, device=given.device, precision=given.precision,
        checkpointing=given.checkpointing, accumulation=given.accumulation,
    )  # fmt: skip
    config = vla_config(given.config)
    frames = made_up(given.frames, config)
    chunks, texts = torch.from_numpy(frames.chunks()), sorted({*frames.prompts, *frames.stages})
    torch.manual_seed(0)
    model = VLA(config, make_tokenizer(config.backbone, config.prefix, texts, None))
    gripper = torch.from_numpy(frames.episodes[0].info.station.is_gripper)
    model.fit_normalizers(chunks[:2000], torch.from_numpy(frames.state[:2000]), gripper)
    model.vision.requires_grad_(False)
    placement = how.prepare(model)
    indicator = (np.arange(len(frames)) % 5 < 2).astype(np.int8)
    loss = Timed(PolicyLoss(model, frames, chunks, indicator, how, placement.device))
    with tempfile.TemporaryDirectory() as folder:
        log = fit(model, loss, how.schedule, 0, Path(folder), precision=placement.dtype, how=how)
    first = loss.marks[len(loss.marks) // 5]
    last = loss.marks[-1]
    wall, processor, data, data_cpu = (after - before for before, after in zip(first, last, strict=True))
    steps = (len(loss.marks) - 1 - len(loss.marks) // 5) / given.accumulation
    print(
        json.dumps(
            {
                "samples_per_s": round(steps * given.batch / wall, 1),
                "samples_per_cpu_s": round(steps * given.batch / processor, 1),
                "data_wait_share": round(data / wall, 4),
                "data_cpu_share": round(data_cpu / processor, 4),
                "config": given.config,
                "batch": given.batch,
                "draws": given.draws,
                "accumulation": given.accumulation,
                "checkpointing": given.checkpointing,
                "frames": len(frames),
                "first_loss": round(log[0]["loss"], 3),
                "last_loss": round(log[-1]["loss"], 3),
                "threads": given.threads,
                "device": str(placement),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
