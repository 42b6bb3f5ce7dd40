"""Two iterations of Algorithm 1 on made-up attempts, to be killed. It is asked for RUN [KILL]... (forks.py).

KILL is stage@n, at the nth progress of a stage, or stage!, when its work is done and not yet recorded. The
learning is real, only few steps long; attempts, their pictures' tokens and evaluations are made up. The last
line is the hashes of the last weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent))
from forks import serve

from recap_learner import rounds, stages
from recap_learner.algorithm import Algorithm, algorithm_1
from recap_learner.cell import Assessment, Collection, Order
from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.frames import Frames
from recap_learner.improve import Improvement
from recap_learner.rounds import Rounds
from recap_learner.stages import Report, Stages
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.training.training import Schedule
from recap_learner.value.value_training import ValueTraining
from recap_policy.checkpoint import save_vision, vision_identity
from recap_policy.sizes import vla_config
from recap_policy.vision import VisionTower
from recap_station.contract import load_station, load_task

TASK, TICKS = "handover_insert", 120
SHORT = Schedule(steps=22, batch=8, warmup=4, save_every_s=0.0)
VALUE = ValueTraining(schedule=SHORT, check_every=8)
POLICY = PolicyTraining(schedule=SHORT, draws=1, device="cpu")
HOW = Algorithm(
    value=VALUE, policy=POLICY, improvement=Improvement(value=VALUE, policy=POLICY), iterations=2, gates=None
)


class MadeUpCell:
    """Attempts are files named by their seeds, which are all that an attempt is made of."""

    station = "aloha"

    def __init__(self, attempts: int = 6) -> None:
        self.attempts = attempts

    def demonstrations(self, task: str) -> Collection:
        return Collection("demonstrations", "", "Demonstrations", self.attempts, self._fill)

    def collections(self, task: str, iteration: int) -> Sequence[Collection]:
        return [Collection("rollouts", "bags", "Rollouts", self.attempts, self._fill)]

    def evaluation(self, task: str, policy: Path, store: Path) -> Assessment:
        return Assessment(1, self._evaluate)

    def _evaluate(self, policy: Path, asked: str, out: Path, report: Report) -> dict[str, Any]:
        report(0.5, "half")
        out.write_text(json.dumps(asked))
        return {"asked": asked}

    def _fill(self, order: Order, report: Report) -> dict[str, Any]:
        order.bags.mkdir(parents=True, exist_ok=True)
        for number in range(self.attempts):
            report(number / self.attempts, "")
            seed = order.iteration * 100 + number
            name = f"a{seed:03d}" if order.task == TASK else f"b{seed:03d}"
            (order.bags / name).write_text(f"{seed} {order.task}")
        return {"attempts": self.attempts}


def convert(bags: Sequence[Path], store: Path, progress: Any, workers: int) -> tuple[list[Path], list[str]]:
    store.mkdir(exist_ok=True)
    files = []
    for bag in sorted(path for folder in bags for path in folder.iterdir()):
        file = store / f"{bag.name}.episode.parquet"
        file.write_text(bag.read_text())
        files.append(file)
    return files, []


def open_frames(files: Sequence[Path], vision: Path, progress: Any = None, to_learn: bool = True) -> Frames:
    episodes = []
    for file in files:
        seed, _, task = file.read_text().partition(" ")
        episodes.append(episode(file.name.split(".")[0], int(seed), task or TASK))
    tick = np.tile(np.arange(0, TICKS, 5), len(episodes))
    owner = np.repeat(np.arange(len(episodes)), TICKS // 5)
    tokens = (
        np.random.default_rng(1).normal(size=(len(tick), 3, 2, 96)) * 0.3 + tick[:, None, None, None] / 100
    )
    state = np.stack([episodes[e].state[t] for e, t in zip(owner, tick, strict=True)])
    return Frames(episodes, vision_identity(vision), tokens.astype(np.float16), state, owner, tick)


def episode(name: str, seed: int, task: str) -> Episode:
    station, rng = load_station("aloha"), np.random.default_rng(seed)
    source = "rollout" if seed >= 100 else "demonstration"
    outcome = "success" if seed % 2 else "failure"
    info = EpisodeInfo(name, "", outcome, "", source, "", seed, load_task(task), station)
    command = (station.home + np.cumsum(rng.normal(0, 0.01, (TICKS, station.dof)), 0)).astype(np.float32)
    return Episode(
        info=info,
        time_ns=np.arange(TICKS) * 20_000_000,
        state=command,
        command=command,
        policy_command=command,
        teleop_command=np.full_like(command, np.nan),
        source=np.full(TICKS, "policy"),
        correction=(np.arange(TICKS) > 80) & (source == "rollout") & (seed % 3 == 0),
        stage=np.full(TICKS, "reach"),
        gap=np.zeros(TICKS, bool),
    )


def train_vision(station: str, task: str, out: Path, *_: Any, **__: Any) -> dict[str, float]:
    torch.manual_seed(0)
    config = vla_config("tiny")
    save_vision(VisionTower(config.vision), config, out, {})
    return {}


class Deadly:
    """A display that kills its process."""

    def __init__(self, kill: Sequence[str]) -> None:
        self.at = {stage: int(n) for stage, at, n in (k.partition("@") for k in kill) if at}
        self.log: list[tuple[str, bool]] = []

    def begin(self, name: str, title: str) -> Report:
        count = 0

        def report(fraction: float, note: str) -> None:
            nonlocal count
            count += 1
            if self.at.get(name) == count:
                die()

        return report

    def end(self, name: str, title: str, seconds: float, before: bool) -> None:
        self.log.append((name, before))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(
    folder: Path,
    how: Algorithm = HOW,
    kill: Sequence[str] = (),
    cell: MadeUpCell | None = None,
    tasks: Sequence[str] = (TASK,),
) -> Deadly:
    """Algorithm 1 in `folder` → the display, which knows what was done and what had been."""
    display = Deadly(kill)
    folder.mkdir(parents=True, exist_ok=True)
    rounds.convert, rounds.open_frames, rounds.train_vision = convert, open_frames, train_vision
    with Stages(folder, display) as running:
        algorithm_1(Rounds(running, cell or MadeUpCell(), tasks), tasks, how)
        running.wait()
    return display


def weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("iteration_0[12]/*/weights.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files}


def work(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    folder, *kill = words
    unrecorded = [name.removesuffix("!") for name in kill if name.endswith("!")]
    write_json = stages.write_json

    def deadly(path: Path, data: Any) -> None:
        if path.parent.name == "stages" and path.stem in unrecorded:
            die()
        write_json(path, data)

    stages.write_json = deadly
    done = run(Path(folder), HOW, kill)
    print(
        json.dumps({"weights": weights(Path(folder)), "again": [n for n, before in done.log if not before]})
    )


if __name__ == "__main__":
    serve(work)
