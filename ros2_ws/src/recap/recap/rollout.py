"""Attempts in the simulated cell without ROS and faster than real time.

The same policy, arbiter, scripted operator and bag writer as on the robot, stepped tick by tick on
simulated time; only the transport is missing. Each worker process has its own cell and policy.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recap_policy.chunks import EXECUTE_STEPS, LEAD_STEPS, ChunkBuffer
from recap_policy.interface import Sampling
from recap_station import topics
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.parent import end_with_parent
from recap_station.sim.cell import Cell
from recap_station.sim.expert import STYLES, Expert
from recap_teleop.arbiter import Arbiter
from recap_teleop.episode import episode_id
from recap_teleop.modes import Mode
from recap_teleop.operator import Operator
from recap_teleop.recorder import EpisodeRecorder

JPEG_QUALITY = 90


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


@dataclass(frozen=True)
class Attempt:
    """Outcome of one attempt. correction: share of ticks that a person commanded."""

    seed: int
    success: bool
    reason: str
    duration_s: float
    takeovers: int
    correction: float
    style: str = ""
    bag: str = ""


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
    if (rollouts.styles is None) == (rollouts.checkpoint is None):
        raise ValueError("wanted either demonstration styles or a checkpoint")
    started = time.monotonic()
    results: list[Attempt] = []
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (rollouts,)) as pool:
        futures = [pool.submit(_run_seed, seed) for seed in seeds]
        try:
            for future in futures:
                results.append(future.result())
                if each:
                    each(results[-1])
                if progress:
                    left = (time.monotonic() - started) / len(results) * (len(seeds) - len(results))
                    won = sum(a.success for a in results)
                    progress(
                        len(results) / len(seeds),
                        f"{len(results)}/{len(seeds)} attempts, {won} succeeded, {left:.0f} s left",
                    )
        except KeyboardInterrupt:
            for process in list(pool._processes.values()):  # else they would finish what they have begun
                process.terminate()
            raise
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
    return results


@dataclass
class _Worker:
    rollouts: Rollouts
    station: Station
    task: Task
    cell: Cell
    policy: Any


_worker: _Worker | Exception  # an error waits for the first seed: from here it would only break the pool


def _start_worker(rollouts: Rollouts) -> None:
    global _worker
    try:
        _worker = _make_worker(rollouts)
    except Exception as error:
        _worker = error


def _make_worker(rollouts: Rollouts) -> _Worker:
    os.nice(5)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # the processes are the parallelism, not the rasteriser
    end_with_parent(signal.SIGTERM)  # a pool's workers would wait for a killed parent for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the parent ends this one
    station, task = load_station(rollouts.station), load_task(rollouts.task)
    policy = None
    if rollouts.checkpoint is not None:
        from recap_policy.runtime import Policy

        policy = Policy.load(rollouts.checkpoint, station=station, threads=1)
    return _Worker(rollouts, station, task, Cell(station, task), policy)


def _run_seed(seed: int) -> Attempt:
    if isinstance(_worker, Exception):
        raise _worker
    return run_attempt(_worker.rollouts, _worker.station, _worker.task, _worker.cell, _worker.policy, seed)


def run_attempt(
    rollouts: Rollouts, station: Station, task: Task, cell: Cell, policy: Any, seed: int
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
    recording = _Recording(rollouts, station, task, cell, seed) if rollouts.bags else None

    arbiter.start(hold=cell.state())
    step, limit = station.step_s, round(task.time_limit_s * station.control_rate_hz)
    previous, takeovers, corrected = arbiter.mode, 0, 0
    success, reason, tick = False, "time limit", 0
    with recording or nullcontext():  # whatever stops it: the bag is closed with what it holds
        for tick in range(limit):
            now = tick * step
            state, truth = cell.state(), cell.truth()
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
    return Attempt(seed, success, reason, ticks * step, takeovers, share, style, bag)


class _Driver:
    """The policy as the policy node runs it: a chunk is asked for ahead of time and arrives
    `latency_ticks` after its observation; each tick takes the chunk's step for that tick."""

    def __init__(self, policy: Any, prompt: str, rollouts: Rollouts) -> None:
        self.policy, self.prompt = policy, prompt
        self.how, self.latency = rollouts, rollouts.latency_ticks
        self.buffer = ChunkBuffer(rollouts.execute_steps, max(LEAD_STEPS, rollouts.latency_ticks))
        self.pending: tuple[int, Any] | None = None  # tick of arrival, (chunk, tick of observation)

    def command(self, tick: int, cell: Cell, state: np.ndarray) -> np.ndarray | None:
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


class _Recording:
    """Writes the topics of one attempt as the recorder node would, on simulated time."""

    def __init__(self, rollouts: Rollouts, station: Station, task: Task, cell: Cell, seed: int) -> None:
        self.station, self.cell, self.task = station, cell, task
        self.start_ns = time.time_ns()
        self.period = station.control_rate_hz / rollouts.camera_hz
        self.image_due = 0.0
        self.id = episode_id(self.start_ns, seed)
        self.seed = seed
        assert rollouts.bags is not None
        self.recorder = EpisodeRecorder(rollouts.bags, station)
        self.path = self.recorder.start(
            {
                "recap.episode": self.id,
                "recap.task": json.dumps(task.to_dict()),
                "recap.checkpoint": str(rollouts.checkpoint or ""),
                "recap.seed": str(seed),
                "recap.source": rollouts.source,
            }
        )
        self.mode: Mode | None = None

    def tick(self, tick, state, truth, command, policy_command, teleop_command) -> None:
        now = self._stamp(tick)
        names, write = self.station.joint_names, self.recorder.write
        if tick == 0:
            write(topics.EPISODE, now, self._episode(now, 1, 0, "", 0.0))
        if command.mode is not self.mode:
            self.mode = command.mode
            write(
                topics.CONTROL_MODE,
                now,
                serialize(
                    topics.MODE_TYPE,
                    stamp_ns=now,
                    mode=command.mode.value,
                    source=command.source,
                    reason=command.reason,
                ),
            )
        write(topics.JOINT_STATES, now, joint_state(now, names, state))
        if policy_command is not None:
            write(topics.POLICY_COMMAND, now, joint_state(now, names, policy_command, "policy"))
        if teleop_command is not None:
            write(topics.TELEOP_COMMAND, now, joint_state(now, names, teleop_command, "teleop"))
        write(topics.JOINT_COMMAND, now, joint_state(now, names, command.positions, command.source))
        if tick >= self.image_due:
            self.image_due += self.period
            write(
                topics.SIM_TRUTH,
                now,
                serialize(
                    topics.TRUTH_TYPE,
                    stamp_ns=now,
                    stage=truth.stage,
                    success=truth.success,
                    failure=truth.failure,
                    qpos=truth.qpos,
                ),
            )
            for camera in self.station.camera_names:
                rgb = self.cell.render(camera)
                _, jpeg = cv2.imencode(
                    ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                )
                write(topics.image_topic(camera), now, compressed_image(now, jpeg.tobytes(), camera))

    def stop(self, ticks: int, success: bool, reason: str) -> str:
        now = self._stamp(ticks)
        outcome = 1 if success else 2
        elapsed = ticks * self.station.step_s
        self.recorder.write(topics.EPISODE, now, self._episode(now, 2, outcome, reason, elapsed))
        self.recorder.stop("success" if success else "failure", reason)
        return str(self.path)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.recorder.stop("discarded", " ".join(str(error).split()) or type(error).__name__)

    def _stamp(self, tick: int) -> int:
        return self.start_ns + round(tick * self.station.step_s * 1e9)

    def _episode(self, now: int, state: int, outcome: int, reason: str, elapsed_s: float) -> bytes:
        return serialize(
            topics.EPISODE_TYPE,
            stamp_ns=now,
            id=self.id,
            state=state,
            outcome=outcome,
            task=self.task.name,
            prompt=self.task.prompt,
            checkpoint="",
            seed=self.seed,
            reason=reason,
            elapsed_s=elapsed_s,
            time_limit_s=self.task.time_limit_s,
        )


def summarize(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Success and throughput with 95 % intervals, in the form that summary.json holds."""
    from recap_learner.statistics import throughput_interval, throughput_per_hour, wilson_interval

    won, times = [a.success for a in attempts], [a.duration_s for a in attempts]
    won_s = [a.duration_s for a in attempts if a.success]
    reasons = [a.reason for a in attempts]
    return {
        "attempts": len(attempts),
        "successes": sum(won),
        "success": sum(won) / len(attempts),
        "success_ci95": wilson_interval(sum(won), len(attempts)),
        "throughput_per_hour": throughput_per_hour(won, times),
        "throughput_ci95": throughput_interval(won, times),
        "mean_success_s": float(np.mean(won_s)) if won_s else None,
        "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "takeovers": sum(a.takeovers for a in attempts),
        "correction_share": float(np.mean([a.correction for a in attempts])),
    }


def save_attempts(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    return [asdict(a) for a in attempts]


def load_attempts(rows: Sequence[dict[str, Any]]) -> Iterator[Attempt]:
    return (Attempt(**row) for row in rows)
