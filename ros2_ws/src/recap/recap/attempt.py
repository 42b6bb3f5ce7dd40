"""One attempt in the simulated cell, tick by tick on simulated time, wherever its chunks come from.

An attempt is a generator: it yields a `Query` when a chunk is wanted, is sent the chunk, and returns the
`Attempt`. So one policy can serve one attempt or many at once (lockstep.py) by the same code.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recap.sim_recording import SimRecording
from recap.state_recording import StateRecording
from recap_learner.evaluation.evaluation import Attempt
from recap_policy.chunks import EXECUTE_STEPS, LEAD_STEPS, Ahead, Chunk, ChunkBuffer
from recap_policy.interface import OBJECTS, Sampling
from recap_station.contract import ContractError, Station, Task
from recap_station.sim.cell import Cell
from recap_station.sim.cells import AnyCell
from recap_station.sim.expert import STYLES, Expert
from recap_teleop.arbiter import Arbiter
from recap_teleop.modes import Mode
from recap_teleop.operator import Operator

OBSERVATIONS = ("images", "state")


@dataclass(frozen=True)
class Rollouts:
    """What to run. Exactly one of `styles` (scripted demonstrations, one drawn per attempt with the
    given odds) and `checkpoint` (the policy) is set.

    operator: share of attempts that the scripted operator watches and corrects. camera_hz: rate at
    which images are rendered and recorded (the policy also sees a fresh image whenever it infers).
    latency_ticks: ticks between an observation and its chunk, as measured live. bags: where to
    record; None records nothing. observation: what a policy sees beside the joints, and what is recorded:
    "images", as bags, or "state", the places of things, as episode files without bags. lockstep: attempts at
    a time in one process, for states.
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
    observation: str = "images"
    lockstep: int = 12


@dataclass(frozen=True)
class Query:
    """A chunk is wanted. seen: images by camera, or states of things as `OBJECTS`; ahead: what it goes on
    from; anew: a person has changed the scene since the last one."""

    seen: Mapping[str, np.ndarray]
    state: np.ndarray
    ahead: Ahead | None
    anew: bool


def run_attempt(
    rollouts: Rollouts, station: Station, task: Task, cell: AnyCell, policy: Any, seed: int
) -> Attempt:
    """One attempt from the start state of `seed` to success, failure or the time limit."""
    if policy is not None:
        policy.reset(seed)
    making = attempt(rollouts, station, task, cell, seed)
    try:
        query = next(making)
        while True:
            if query.anew:
                policy.reset()
            chunk = policy.infer(query.seen, query.state, task.prompt, rollouts.sampling, query.ahead)
            query = making.send(chunk)
    except StopIteration as done:
        return done.value


def attempt(
    rollouts: Rollouts, station: Station, task: Task, cell: AnyCell, seed: int
) -> Generator[Query, Chunk, Attempt]:
    """The attempt from the start state of `seed`, in `cell`, which is its alone meanwhile."""
    rng = np.random.default_rng([seed, 1])
    cell.reset(seed)
    arbiter = Arbiter(station)
    style = ""
    expert = operator = driver = None
    if rollouts.styles is not None:
        odds = np.array(list(rollouts.styles.values()))
        style = str(rng.choice(list(rollouts.styles), p=odds / odds.sum()))
        expert = Expert(station, task, STYLES[style], seed)
    else:
        driver = _Driver(rollouts)
        if rng.random() < rollouts.operator:
            operator = Operator(station, task, seed)
    recording: SimRecording | StateRecording | None = None
    if rollouts.bags:
        about = rollouts.source, str(rollouts.checkpoint or ""), station, task
        if rollouts.observation == "state":
            recording = StateRecording(rollouts.bags, *about, _with_things(cell), seed)
        else:
            recording = SimRecording(rollouts.bags, rollouts.camera_hz, *about, cell, seed)

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
                if driver.wants(tick):
                    chunk = yield Query(_see(rollouts, cell), state, driver.ahead(tick), driver.anew)
                    driver.take(chunk, tick)
                policy_command = driver.command(tick)
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


def _see(rollouts: Rollouts, cell: AnyCell) -> dict[str, np.ndarray]:
    if rollouts.observation == "state":
        return {OBJECTS: _with_things(cell).scene().features()}
    return {camera: cell.render(camera) for camera in cell.station.camera_names}


def _with_things(cell: AnyCell) -> Cell:
    """Raises ContractError on a cell that does not say where things are."""
    if not isinstance(cell, Cell):
        raise ContractError(f"task {cell.task.name!r} gives images alone, wanted one with states of things")
    return cell


class _Driver:
    """Chunks as the policy node has them: one is asked for ahead of time and arrives `latency_ticks` after
    its observation; each tick takes the chunk's step for that tick."""

    def __init__(self, rollouts: Rollouts) -> None:
        self.latency, self.anew = rollouts.latency_ticks, False
        self.buffer = ChunkBuffer(rollouts.execute_steps, max(LEAD_STEPS, rollouts.latency_ticks))
        self.pending: tuple[int, Chunk, int] | None = None  # tick of arrival, chunk, tick of observation

    def wants(self, tick: int) -> bool:
        if self.pending and tick >= self.pending[0]:
            self.buffer.push(*self.pending[1:])
            self.pending = None
        return self.pending is None and self.buffer.needs_chunk(tick)

    def ahead(self, tick: int) -> Ahead | None:
        return self.buffer.ahead(tick)

    def take(self, chunk: Chunk, tick: int) -> None:
        self.pending, self.anew = (tick + self.latency, chunk, tick), False

    def command(self, tick: int) -> np.ndarray | None:
        return self.buffer.pop(tick)

    def flush(self) -> None:
        self.buffer.flush()
        self.pending, self.anew = None, True  # a person has changed the scene
