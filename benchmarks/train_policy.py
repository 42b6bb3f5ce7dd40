"""Policy training as the learner does it: samples a second, and the share of time spent waiting for data.

    python benchmarks/train_policy.py [--config tiny] [--steps 60] [--batch 128] [--draws 2] [--threads 1]
        [--frames 20000] [--attempts 12] [--workers 2] [--cache 0] [--accumulation 1] [--checkpointing]
        [--precision auto] [--device auto]

The loop is `fit`, with all it does beside the steps: curves, saves, averages. In turn:

- cached: frames are made up, as many as two hours of attempts have at ten a second, with image tokens in
  memory as the learner has them; samples are drawn, gathered and turned into tensors in every step
- frozen, trained: images of `attempts` bags are read and decoded by `workers` processes in every step,
  `cache` bytes of them kept, and the tower looks at them in the step, as it is or learning too

`data_wait_share` is the time between asking for a batch and having it, by the wall time of the loop;
`data_cpu_share` the same in this process's processor time, which a busy machine does not change. The first
fifth of the steps does not count. The line's own numbers are those of `cached`.
Wanted (`held`, and exit 0): data_wait_share of at most 0.05 each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from recap_learner.data.episodes import Episode, EpisodeInfo, convert_bags
from recap_learner.data.frames import Frames, load_frames
from recap_learner.training.policy_training import PolicyLoss, PolicyTraining
from recap_learner.training.training import Schedule, fit
from recap_policy.device import CHOICES
from recap_policy.prefix import make_tokenizer
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA
from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, joint_state
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


def recorded(count: int, folder: Path, size: int) -> Frames:
    """Frames of attempts in bags, with images of every camera ten times a second."""
    station, task, rng = load_station("aloha"), load_task("handover_insert"), np.random.default_rng(0)
    coarse = rng.integers(0, 255, (32, size // 8, size // 8, 3), dtype=np.uint8)
    pictures = [cv2.resize(one, (size, size), interpolation=cv2.INTER_CUBIC) for one in coarse]
    jpeg = [cv2.imencode(".jpg", one)[1].tobytes() for one in pictures]
    bags = []
    for number in range(count):
        bags.append(folder / "bags" / f"attempt{number}")
        with BagWriter(bags[-1], topics.recorded_topics(station), topics.LATCHED) as writer:
            for tick in range(TICKS):
                now = 10**18 + tick * 20_000_000
                at = station.home + 0.1 * np.sin(tick / 20 + number)
                for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
                    writer.write(topic, now, joint_state(now, station.joint_names, at, "policy"))
                for index, camera in enumerate(station.camera_names if tick % EVERY == 0 else ()):
                    picture = jpeg[(tick // EVERY + 7 * index + number) % len(jpeg)]
                    writer.write(topics.image_topic(camera), now, compressed_image(now, picture, camera))
            said = {"recap.station": station.to_dict(), "recap.task": task.to_dict()}
            said = {name: json.dumps(data) for name, data in said.items()}
            writer.set_metadata({**said, "recap.outcome": "success"})
    files, problems = convert_bags(bags, folder / "episodes")
    assert not problems, problems
    return load_frames(files, None)


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--draws", type=int, default=PolicyTraining().draws)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--attempts", type=int, default=12, help="0: only from tokens in memory")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=int, default=0)
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
        loader_workers=given.workers, cache_bytes=given.cache,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        frames = made_up(given.frames, vla_config(given.config))
        found = {"cached": measure(frames, how, Path(folder) / "cached")}
        if given.attempts:
            frames = recorded(given.attempts, Path(folder), vla_config(given.config).vision.image_size)
            for tower in ("frozen", "trained"):
                found[tower] = measure(frames, replace(how, tower=tower), Path(folder) / tower)
    told = {"config": given.config, "batch": given.batch, "draws": given.draws, "threads": given.threads}
    told |= {"accumulation": given.accumulation, "checkpointing": given.checkpointing}
    held = all(each["data_wait_share"] <= 0.05 for each in found.values())
    told |= {"load": round(os.getloadavg()[0], 1), "held": held}
    print(json.dumps({**found.pop("cached"), **found, **told}))
    return 0 if held else 1


def measure(frames: Frames, how: PolicyTraining, workbench: Path) -> dict[str, Any]:
    """Train a fresh policy on frames → what it cost."""
    config = vla_config(how.config)
    some, texts = frames.where(np.arange(min(len(frames), 2000))), sorted({*frames.prompts, *frames.stages})
    torch.manual_seed(0)
    model = VLA(config, make_tokenizer(config.backbone, config.prefix, texts, None))
    gripper = torch.from_numpy(frames.episodes[0].info.station.is_gripper)
    model.fit_normalizers(torch.from_numpy(some.chunks()), torch.from_numpy(some.state), gripper)
    model.vision.requires_grad_(how.tower == "trained")
    placement = how.prepare(model)
    indicator = (np.arange(len(frames)) % 5 < 2).astype(np.int8)
    with closing(PolicyLoss(model, frames, indicator, how, placement.device)) as loss:
        timed = Timed(loss)
        log = fit(model, timed, how.schedule, 0, workbench, precision=placement.dtype, how=how)
    first, last = timed.marks[len(timed.marks) // 5], timed.marks[-1]
    wall, processor, data, data_cpu = (after - before for before, after in zip(first, last, strict=True))
    steps = (len(timed.marks) - 1 - len(timed.marks) // 5) / how.accumulation
    return {
        "samples_per_s": round(steps * how.schedule.batch / wall, 1),
        "samples_per_cpu_s": round(steps * how.schedule.batch / processor, 1),
        "data_wait_share": round(data / wall, 4),
        "data_cpu_share": round(data_cpu / processor, 4),
        "frames": len(frames),
        "first_loss": round(log[0]["loss"], 3),
        "last_loss": round(log[-1]["loss"], 3),
        "device": str(placement),
    }


if __name__ == "__main__":
    sys.exit(main())
