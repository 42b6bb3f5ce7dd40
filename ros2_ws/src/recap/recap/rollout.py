"""Attempts in the simulated cell without ROS and faster than real time.

The same policy, arbiter, scripted operator and bag writer as on the robot, stepped tick by tick on
simulated time; only the transport is missing (attempt.py). Each worker process has its own cells and policy.
With states of things instead of images a process makes many attempts in lock-step (lockstep.py): nothing is
rendered, so that the policy is what costs, and one pass for many costs little more than one for one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from recap.attempt import OBSERVATIONS, Rollouts, run_attempt
from recap.lockstep import in_lockstep
from recap_learner.evaluation.evaluation import Attempt, load_attempts, save_attempts, summarize
from recap_station.contract import ContractError, Station, Task, load_station, load_task
from recap_station.parent import end_with_parent
from recap_station.sim.cells import AnyCell, make_cell

__all__ = [
    "Attempt", "Rollouts", "finished", "load_attempts", "run_attempt", "run_attempts", "save_attempts",
    "summarize",
]  # fmt: skip


def run_attempts(
    rollouts: Rollouts,
    seeds: Sequence[int],
    workers: int = 2,
    progress: Callable[[float, str], None] | None = None,
    each: Callable[[Attempt], None] | None = None,
) -> list[Attempt]:
    """Run one attempt a seed, in the order of the seeds. The outcome of a seed depends on it alone.
    each: called with every attempt that is over, while the others go on.

    Raises what kept an attempt from being made: ContractError, CheckpointError, OSError of a full disk.
    """
    started = time.monotonic()
    results: dict[int, Attempt] = {}
    with closing(finished([rollouts], [(0, seed) for seed in seeds], workers)) as attempts:
        for _, attempt in attempts:
            results[attempt.seed] = attempt
            if each:
                each(attempt)
            if progress:
                left = (time.monotonic() - started) / len(results) * (len(seeds) - len(results))
                won = sum(a.success for a in results.values())
                progress(
                    len(results) / len(seeds),
                    f"{len(results)}/{len(seeds)} attempts, {won} succeeded, {left:.0f} s left",
                )
    return [results[seed] for seed in seeds]


def finished(
    rollouts: Sequence[Rollouts], jobs: Sequence[tuple[int, int]], workers: int
) -> Generator[tuple[int, Attempt], None, None]:
    """Attempts as they are finished, each with the index of its rollouts. jobs: (index into `rollouts`, seed)
    each, begun in their order; all rollouts are in one station and task.

    Close it (contextlib.closing) to stop before the last: what is under way is then broken off.
    """
    for what in rollouts:
        if (what.styles is None) == (what.checkpoint is None):
            raise ValueError("wanted either demonstration styles or a checkpoint")
        if what.observation not in OBSERVATIONS:
            raise ValueError(f"observation is {what.observation!r}, wanted {' or '.join(OBSERVATIONS)}")
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tuple(rollouts),)) as pool:
        parcels = _parcels(rollouts, jobs)
        futures = {pool.submit(_run_job, index, seeds): index for index, seeds in parcels}
        try:
            for future in as_completed(futures):
                for attempt in future.result():
                    yield futures[future], attempt
        except (KeyboardInterrupt, GeneratorExit):
            processes = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # else they would finish what they have begun
                process.terminate()
            raise
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise


def _parcels(rollouts: Sequence[Rollouts], jobs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """What a process does at a time: one attempt, or of a policy on states as many as it has cells."""
    found: list[tuple[int, list[int]]] = []
    for index, seed in jobs:
        what = rollouts[index]
        most = what.lockstep if what.observation == "state" and what.checkpoint is not None else 1
        if found and found[-1][0] == index and len(found[-1][1]) < most:
            found[-1][1].append(seed)
        else:
            found.append((index, [seed]))
    return found


@dataclass
class _Worker:
    """One process: its cells, and the policies that its attempts have needed so far, by checkpoint."""

    rollouts: tuple[Rollouts, ...]
    station: Station
    task: Task
    cells: list[AnyCell]
    policies: dict[Path, Any] = field(default_factory=dict)

    def policy(self, checkpoint: Path | None) -> Any:
        if checkpoint is not None and checkpoint not in self.policies:
            from recap_policy.runtime import Policy

            self.policies[checkpoint] = Policy.load(checkpoint, station=self.station, threads=1)
        return None if checkpoint is None else self.policies[checkpoint]


_worker: _Worker | Exception  # an error waits for the first job: from here it would only break the pool


def _start_worker(rollouts: tuple[Rollouts, ...]) -> None:
    global _worker
    try:
        _worker = _make_worker(rollouts)
    except Exception as error:
        _worker = error


def _make_worker(rollouts: tuple[Rollouts, ...]) -> _Worker:
    os.nice(5)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # the processes are the parallelism, not the rasteriser
    end_with_parent(signal.SIGTERM)  # a pool's workers would wait for a killed parent for ever
    parent = parent_process()
    if parent is not None and not parent.is_alive():  # killed while this process was being started
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the parent ends this one
    station, task = load_station(rollouts[0].station), load_task(rollouts[0].task)
    return _Worker(rollouts, station, task, [make_cell(station, task)])


def _run_job(index: int, seeds: Sequence[int]) -> list[Attempt]:
    if isinstance(_worker, Exception):
        raise _worker
    what, own = _worker.rollouts[index], _worker
    policy = own.policy(what.checkpoint)
    if policy is not None and policy.sees_objects != (what.observation == "state"):
        raise ContractError(f"{what.checkpoint}: not a policy for observation {what.observation!r}")
    if what.observation == "images":
        return [run_attempt(what, own.station, own.task, own.cells[0], policy, seed) for seed in seeds]
    while len(own.cells) < min(what.lockstep, len(seeds)):
        own.cells.append(make_cell(own.station, own.task))
    return in_lockstep(what, own.station, own.task, own.cells, policy, seeds)
