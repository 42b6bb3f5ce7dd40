"""Attempts on states of things, many in lock-step against one after the other: attempts a second of a core.

    python benchmarks/lockstep.py --task handover_insert --attempts 24 --seconds 6

The same untrained policy, start states and noise both ways, one process, one thread; processor time. Also
where the time goes: the policy's passes, and the rest (physics, arbiter, judging). Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap.attempt import Rollouts, run_attempt
from recap.lockstep import in_lockstep
from recap_policy.checkpoint import save_policy
from recap_policy.config import ObjectConfig
from recap_policy.runtime import Policy
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA, Batch
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.sim.cell import Cell


class Timed:
    """A policy whose passes are timed."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.seconds, self.chunks = policy, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def infer(self, *given: Any) -> Any:
        return self._timed(self._policy.infer, 1, *given)

    def infer_batch(self, images: Any, *given: Any) -> Any:
        return self._timed(self._policy.infer_batch, len(images), images, *given)

    def _timed(self, call: Any, count: int, *given: Any) -> Any:
        begun = time.process_time()
        found = call(*given)
        self.seconds += time.process_time() - begun
        self.chunks += count
        return found


def untrained(station: Station, task: Task, folder: Path) -> Policy:
    """A policy that can write its sub-task, as a real one can, and has learnt nothing else."""
    features = len(Cell(station, task).scene().features())
    shape = replace(vla_config("tiny-state"), vision=ObjectConfig(features))
    torch.manual_seed(0)
    model = VLA(shape, TinyTokenizer.fit([task.prompt, *task.stages], shape.prefix.word_slots))
    state = torch.from_numpy(np.tile(station.home, (64, 1)).astype(np.float32))
    state += 0.1 * torch.randn(state.shape)
    moved = state[:, None] + 0.02 * torch.randn(64, shape.horizon, station.dof).cumsum(1)
    model.fit_normalizers(moved, state, torch.from_numpy(station.is_gripper))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        places = torch.rand(len(state), 1, features) * 2 - 1
        batch = Batch(
            image_features=model.encode_images(places),
            state=state,
            prompt=[task.prompt] * len(state),
            subtask=[task.stages[0]] * len(state),
            indicator=torch.randint(-1, 2, (len(state),)),
            actions=moved,
        )
        optimizer.zero_grad()
        model.terms(batch, draws=1)["subtask"].mean().backward()
        optimizer.step()
    save_policy(model.eval(), folder / "policy", {}, station=station)
    return Policy.load(folder / "policy", station=station, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="handover_insert")
    parser.add_argument("--attempts", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each attempt")
    given = parser.parse_args()
    station, task = load_station("aloha"), replace(load_task(given.task), time_limit_s=given.seconds)
    seeds = range(40_000, 40_000 + given.attempts)
    with tempfile.TemporaryDirectory() as folder:
        policy = untrained(station, task, Path(folder))
        how = Rollouts("aloha", given.task, checkpoint=Path(folder) / "policy", observation="state")
        cells = [Cell(station, task) for _ in range(how.lockstep)]
        found: dict[str, Any] = {"task": given.task, "attempts": given.attempts, "seconds": given.seconds}
        for name in ("one by one", "in lock-step"):
            timed: Any = Timed(policy)
            begun = time.process_time()
            if name == "one by one":
                for seed in seeds:
                    run_attempt(how, station, task, cells[0], timed, seed)
            else:
                in_lockstep(how, station, task, cells, timed, seeds)
            spent = time.process_time() - begun
            found[name] = {
                "attempts_per_s": given.attempts / spent,
                "times_real_time": given.attempts * given.seconds / spent,
                "policy_share": timed.seconds / spent,
                "ms_per_chunk": 1e3 * timed.seconds / timed.chunks,
            }
            print(f"{name}: {found[name]}")
    found["gain"] = found["in lock-step"]["attempts_per_s"] / found["one by one"]["attempts_per_s"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
