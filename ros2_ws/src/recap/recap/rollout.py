"""Attempts in the simulated cell without ROS and faster than real time.

The same policy, arbiter, scripted operator and bag writer as on the robot, stepped tick by tick on
simulated time; only the transport is missing. Each worker process has its own cell and policy.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from recap.sim_recording import SimRecording
from recap_learner.evaluation.evaluation import Attempt, load_attempts, save_attempts, summarize
from recap_policy.chunks import EXECUTE_STEPS, LEAD_STEPS, ChunkBuffer
from recap_policy.interface import Sampling
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.parent import end_with_parent
from recap_station.sim.cells import AnyCell, make_cell
from recap_station.sim.expert import STYLES, Expert
from recap_teleop.arbiter import Arbiter
from recap_teleop.modes import Mode
from recap_teleop.operator import Operator

__all__ = [
    "Attempt", "Rollouts", "finished", "load_attempts", "run_attempt", "run_attempts", "save_attempts",
    "summarize",
]  # fmt: skip


@dataclass(frozen=True)
class Rollouts:
    """What to run. Exactly one of `styles` (scripted demonstrations, one drawn per attempt with the
    given odds) and `checkpoint` (the policy) is set.

    operator: share of attempts that the scripted operator watches and corrects. camera_hz: rate at
    which images are rendered and recorded (the policy also sees a fresh image whenever it infers).
    latency_ticks: ticks between an observation and its chunk, as measured live. bags: where to
    record; None records nothing.
    """

    station: str
    task: str
    styles: dict[str, float] | None = None
    checkpoint: Path | None = None
    sampling: Sampling = Sampling()
    operator: float = 0.0
    execute_steps: int = EXECUTE_STEPS
    latency_ticks: int = 2
    camera_hz: float = 10.0
    bags: Path | None = None
    source: str = "rollout"


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
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tuple(rollouts),)) as pool:
        futures = {pool.submit(_run_job, index, seed): index for index, seed in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except (KeyboardInterrupt, GeneratorExit):
            processes = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # else they would finish what they have begun
                process.terminate()
            raise
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass
class _Worker:
    """One process: its cell, and the policies that its attempts have needed so far, by checkpoint."""

    rollouts: tuple[Rollouts, ...]
    station: Station
    task: Task
    cell: AnyCell
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the parent ends this one
    station, task = load_station(rollouts[0].station), load_task(rollouts[0].task)
    return _Worker(rollouts, station, task, make_cell(station, task))


def _run_job(index: int, seed: int) -> Attempt:
    if isinstance(_worker, Exception):
        raise _worker
    what = _worker.rollouts[index]
    policy = _worker.policy(what.checkpoint)
    return run_attempt(what, _worker.station, _worker.task, _worker.cell, policy, seed)


def run_attempt(
    rollouts: Rollouts, station: Station, task: Task, cell: AnyCell, policy: Any, seed: int
) -> Attempt:
    """One attempt from the start state of `seed` to success, failure or the time limit."""
    rng = np.random.default_rng([seed, 1])
    cell.reset(seed)
    if policy is not None:
        policy.reset(seed)
    arbiter = Arbiter(station)
    style = ""
    expert = operator = driver = None
    if rollouts.styles is not None:
        odds = np.array(list(rollouts.styles.values()))
        style = str(rng.choice(list(rollouts.styles), p=odds / odds.sum()))
        expert = Expert(station, task, STYLES[style], seed)
    else:
        driver = _Driver(policy, task.prompt, rollouts)
        if rng.random() < rollouts.operator:
            operator = Operator(station, task, seed)
    recording = None
    if rollouts.bags:
        about = rollouts.source, str(rollouts.checkpoint or "")
        recording = SimRecording(rollouts.bags, rollouts.camera_hz, *about, station, task, cell, seed)

    arbiter.start(hold=cell.state())
    step, limit = station.step_s, round(task.time_limit_s * station.control_rate_hz)
    previous, takeovers, corrected = arbiter.mode, 0, 0
    success, reason, tick = False, "time limit", 0
    stages: dict[str, float] = {}
    with recording or nullcontext():  # whatever stops it: the bag is closed with what it holds
        for tick in range(limit):
            now = tick * step
            state, truth = cell.state(), cell.truth()
            stages.setdefault(truth.stage, round(now, 3))
            if truth.success or truth.failure:
                success, reason = truth.success, "success" if truth.success else "failure"
                break
            policy_command = teleop_command = None
            if expert is not None:
                teleop_command = expert.act(truth, state)
                arbiter.pedal(now, True)
            elif operator is not None:
                seen = operator.update(truth, state, now)
                teleop_command = seen.command
                arbiter.pedal(now, seen.pressed)
            if teleop_command is not None:
                arbiter.teleop(now, teleop_command)
            if driver is not None:
                policy_command = driver.command(tick, cell, state)
                if policy_command is not None:
                    arbiter.policy(now, policy_command)
            command = arbiter.tick(now, state)
            assert command is not None  # a measured position was given
            if driver is not None and command.flush:
                driver.flush()
            if arbiter.mode is Mode.TELEOP and previous is not Mode.TELEOP:
                takeovers += 1
            previous = arbiter.mode
            corrected += command.source == "teleop"
            if recording:
                recording.tick(tick, state, truth, command, policy_command, teleop_command)
            cell.step(command.positions)
    ticks = tick + 1
    bag = recording.stop(ticks, success, reason) if recording else ""
    share = corrected / ticks if expert is None else 0.0
    return Attempt(seed, success, reason, ticks * step, takeovers, share, style, bag, truth.stage, stages)


class _Driver:
    """The policy as the policy node runs it: a chunk is asked for ahead of time and arrives
    `latency_ticks` after its observation; each tick takes the chunk's step for that tick."""

    def __init__(self, policy: Any, prompt: str, rollouts: Rollouts) -> None:
        self.policy, self.prompt = policy, prompt
        self.how, self.latency = rollouts, rollouts.latency_ticks
        self.buffer = ChunkBuffer(rollouts.execute_steps, max(LEAD_STEPS, rollouts.latency_ticks))
        self.pending: tuple[int, Any] | None = None  # tick of arrival, (chunk, tick of observation)

    def command(self, tick: int, cell: AnyCell, state: np.ndarray) -> np.ndarray | None:
        if self.pending and tick >= self.pending[0]:
            self.buffer.push(*self.pending[1])
            self.pending = None
        if self.pending is None and self.buffer.needs_chunk(tick):
            images = {camera: cell.render(camera) for camera in cell.station.camera_names}
            ahead = self.buffer.ahead(tick)
            chunk = self.policy.infer(images, state, self.prompt, self.how.sampling, ahead)
            self.pending = (tick + self.latency, (chunk, tick))
        return self.buffer.pop(tick)

    def flush(self) -> None:
        self.buffer.flush()
        self.policy.reset()  # a person has changed the scene
        self.pending = None
