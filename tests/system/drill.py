"""Drills: one part of the cell fails at a random moment; who commands then, how soon, and is all well again?

`run_drill(rig, DRILLS[name], rng)` runs one attempt with one fault in it, in the cell of `rig.py`.
`test_drills.py` runs each once, `benchmarks/drills.py` as often as asked.
"""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from graph import STATION
from recap_interfaces.msg import ControlMode
from rig import NODES, DrillError, Heard, Rig

from recap_station import topics
from recap_station.bags import FLUSH_S, BagError, BagReader, deserialize
from recap_station.nodes.base import to_ns
from recap_teleop.arbiter import ArbiterSettings

TICK_S = STATION.step_s
STEP = STATION.max_velocity * TICK_S
SAG = 0.05  # rad: how far a measured joint may stand beyond its limit: commands stay within
CAMERA = STATION.camera_names[0]
CHUNK_S, OLDEST_S = 1.0, 0.5  # of the real policy: a chunk's length; observations older are not used
AWAY_S = 1.0  # between two commands: then the arbiter was away
PATIENCE_S = 8.0  # beyond what is stated, until a hold is not waited for any more
COUNTED = "all counted"  # in the bag: what it lacks is said there
RIGS = ("stand-in", "real policy", "clock")


@dataclass(frozen=True)
class Drill:
    """`while_`: who commands when it strikes. `then`: "hold", who commands on as before ("policy", "teleop"),
    or "" for whoever it be. `timeout`: the arbiter's that it runs into; `extra_s` comes on top."""

    strike: Callable[[Rig], None]
    mend: Callable[[Rig], None]
    then: str = "hold"
    while_: str = "policy"
    timeout: str = ""
    extra_s: float = 0.0
    rig: str = "stand-in"  # which rig it is for, of RIGS
    loses_s: float = 0.0  # of the bag before the fault
    pauses: bool = False  # of the recorder: messages after the fault may be missing
    restarts: bool = False  # the arbiter itself
    check: Callable[[Rig], str] | None = None  # a complaint, or ""

    def within_s(self, settings: ArbiterSettings) -> float:
        """From the fault to HOLD: the time-out, and the tick that notices."""
        return (getattr(settings, self.timeout) if self.timeout else 0.0) + self.extra_s + TICK_S

    @property
    def expected(self) -> str:
        if self.then == "hold":
            return "HOLD"
        return f"{self.then} commands on" if self.then else "no jump"


def _killed(part: str, **rest: Any) -> Drill:
    def back(rig: Rig) -> None:
        since_s = time.monotonic()
        rig.start(part)
        if part in NODES and rest.get("then"):  # else it has recovered when somebody commands again
            rig.wait_for(part, since_s, "recording" if part == "recorder" else "")

    return Drill(lambda rig: rig.graph.kill(part), back, **rest)


def _stopped(part: str, **rest: Any) -> Drill:
    return Drill(
        lambda rig: rig.signal(part, signal.SIGSTOP), lambda rig: rig.signal(part, signal.SIGCONT), **rest
    )


def _told(fault: str, **rest: Any) -> Drill:
    role = fault.split()[0]
    return Drill(lambda rig: rig.fault(fault), lambda rig: rig.fault(f"{role} none"), **rest)


def _follows_by_name(rig: Rig) -> str:
    """Whether the robot is commanded what the policy wished lately, joint by joint."""
    command = rig.watch.commands[-1].positions
    off = min(float(np.abs(command - wish).max()) for wish in list(rig.watch.wishes))
    return "" if off < 0.02 else f"the command is {off:.2f} off all that the policy wished, joint by joint"


_SILENT_POLICY: dict[str, Any] = {"timeout": "policy_timeout_s"}
_NO_PICTURE: dict[str, Any] = {
    "timeout": "policy_timeout_s", "extra_s": OLDEST_S + CHUNK_S, "rig": "real policy"
}  # fmt: skip
_IMAGE = topics.image_topic(CAMERA)

DRILLS: dict[str, Drill] = {
    "policy killed": _killed("policy", **_SILENT_POLICY),
    "pedal killed while pressed": _killed("pedal", while_="teleop", timeout="pedal_timeout_s"),
    "pedal killed while the policy commands": _killed("pedal", then="policy"),
    "leader killed": _killed("leader", while_="teleop", timeout="teleop_timeout_s"),
    "station killed": _killed("station", timeout="state_timeout_s"),
    "recorder killed": _killed("recorder", then="policy", loses_s=FLUSH_S),
    "learner killed": _killed("learner", then="policy"),
    "arbiter killed": _killed("arbiter", then="", restarts=True),
    "policy stopped for 2 s": _stopped("policy", **_SILENT_POLICY),
    "pedal stopped for 2 s while pressed": _stopped("pedal", while_="teleop", timeout="pedal_timeout_s"),
    "leader stopped for 2 s": _stopped("leader", while_="teleop", timeout="teleop_timeout_s"),
    "station stopped for 2 s": _stopped("station", timeout="state_timeout_s"),
    "recorder stopped for 2 s": _stopped("recorder", then="policy", pauses=True),
    "learner stopped for 2 s": _stopped("learner", then="policy"),
    "arbiter stopped for 2 s": _stopped("arbiter", then=""),
    "joint states late by 0.15 s": _told(f"relay late {topics.JOINT_STATES} 0.15", then="policy"),
    "joint states twice": _told(f"relay twice {topics.JOINT_STATES}", then="policy"),
    "joint states out of order": _told(f"relay swap {topics.JOINT_STATES}", then="policy"),
    "joint states cease": _told(f"relay freeze {topics.JOINT_STATES}", timeout="state_timeout_s"),
    "policy sends NaN": _told("policy nan", **_SILENT_POLICY),
    "policy sends infinity": _told("policy inf", **_SILENT_POLICY),
    "policy sends joints in another order": _told("policy permuted", then="policy", check=_follows_by_name),
    "policy misspells a joint": _told("policy misspelt", **_SILENT_POLICY),
    "policy leaves a joint out": _told("policy missing", **_SILENT_POLICY),
    "policy sends zeros": _told("policy zeros", then="policy"),
    "policy jumps by 1 rad": _told("policy jump", then="policy"),
    "flood of Joy, released": _told("flood released", then="policy"),
    "flood of Joy, random presses": _told("flood random", then=""),
    "camera silent": _told(f"relay freeze {_IMAGE}", **_NO_PICTURE),
    "camera repeats its last image": _told(f"relay stuck {_IMAGE}", **_NO_PICTURE),
    "camera at half rate": _told(f"relay half {_IMAGE}", then="policy", rig="real policy"),
    "station's clock set back 5 s": _told("relay back * 5", then="", rig="real policy"),
    "everybody's clock set back 5 s": _told("clock back 5", then="policy", rig="clock"),
}  # fmt: skip


@dataclass
class Result:
    """Of one drill. `unsafe`: what must never be; `problems`: what else was not as wanted, for which a busy
    machine may be the reason. Both in words."""

    reached_s: float | None = None  # until HOLD, where that is expected
    recovered_s: float | None = None
    step_over_limit: float = 0.0
    longest_silence_s: float = 0.0  # between two commands
    bag: str = ""
    lost: int = 0  # commands that the bag lacks and should hold; not the recorder's fault on a busy machine
    problems: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)


def run_drill(
    rig: Rig, what: Drill, rng: np.random.Generator, before_s: tuple[float, float] = (0.3, 1.5),
    during_s: float = 2.0,
) -> Result:  # fmt: skip
    """One attempt with one fault, at a random moment of `before_s` after the start; mended
    `during_s` later."""
    result, watch = Result(), rig.watch
    watch.beyond = 0.0
    first: int | None = None
    commands: list[Heard] = []  # of this attempt: before it the cell is reset
    try:
        identity, first = rig.attempt()
        if what.while_ == "teleop":
            rig.press(True)
            rig.wait(lambda: watch.mode == ControlMode.TELEOP, what="TELEOP")
        time.sleep(rng.uniform(*before_s) + 1.2 * what.loses_s)
        rig.wait(lambda: watch.source == what.while_, what=f"{what.while_} commands")
        struck_s, struck = time.monotonic(), len(watch.commands)
        what.strike(rig)
        _observe(rig, what, struck, struck_s, during_s, result)
        if what.check and (complaint := what.check(rig)):
            result.problems.append(complaint)
        time.sleep(max(0.0, struck_s + during_s - time.monotonic()))
        mended_s = time.monotonic()
        what.mend(rig)
        _recover(rig, what, mended_s, result)
        time.sleep(0.3)
        ended = len(watch.commands)
        rig.press(False)
        rig.wait(lambda: watch.source == "policy", what="the policy after the person")
        commands = watch.commands[first:]
        rig.finish()
        before = [c for c in watch.commands[first:ended] if c.received_s < struck_s - 1.1 * what.loses_s]
        after = [] if what.loses_s or what.pauses else watch.commands[struck:ended]
        result.bag, result.lost = look_at_bag(
            rig, identity, before + after, whole=not what.loses_s, drops=what.pauses
        )
        if result.bag not in ("whole", "recovered") and not result.lost:
            result.problems.append(f"bag: {result.bag}")
    except DrillError as error:
        result.problems.append(str(error))
        if first is not None and not commands:
            commands = watch.commands[first:]
        rig.repair()
        with suppress(DrillError):
            rig.finish()
    for part in _heard_of_each(commands, result) if what.restarts else [commands]:
        if len(part) > 1:
            _look_at_commands(part, watch.beyond, result)
    return result


def _heard_of_each(commands: list[Heard], result: Result) -> list[list[Heard]]:
    """The commands cut where an arbiter was replaced and not found before it followed somebody, which is
    after a second of holding: what was not heard of its motion cannot be told from a jump."""
    cuts = [
        index
        for index, (a, b) in enumerate(itertools.pairwise(commands), 1)
        if b.stamp_ns - a.stamp_ns >= AWAY_S * 1e9 and b.source != "hold"
    ]
    if cuts:
        result.problems.append(f"the new arbiter was found when {commands[cuts[0]].source} commanded already")
    return [commands[a:b] for a, b in itertools.pairwise([0, *cuts, len(commands)])]


def _look_at_commands(commands: list[Heard], beyond: float, result: Result) -> None:
    """What must hold of every command, whatever happens."""
    result.step_over_limit = max(result.step_over_limit, largest_step(commands))
    silence_s = max(b.received_s - a.received_s for a, b in itertools.pairwise(commands))
    result.longest_silence_s = max(result.longest_silence_s, silence_s)
    if result.step_over_limit > 1.0 + 1e-6:
        result.unsafe.append(f"a step of {result.step_over_limit:.3f} times the velocity limit")
    positions = np.array([c.positions for c in commands])
    if not np.isfinite(positions).all():
        result.unsafe.append("a command that is not finite")
    if np.any((positions > STATION.upper) | (positions < STATION.lower)):
        result.unsafe.append("a command beyond the joint limits")
    if beyond > SAG:
        result.unsafe.append(f"a joint stood {beyond:.3f} rad beyond its limit")


def _observe(rig: Rig, what: Drill, struck: int, struck_s: float, during_s: float, result: Result) -> None:
    """Wait for the expected hold, or see who commands while the fault lasts."""
    watch = rig.watch
    struck_at_s = time.time() - (time.monotonic() - struck_s)  # as the arbiter stamps
    if what.then == "hold":
        limit_s = what.within_s(rig.settings) + PATIENCE_S
        rig.wait(lambda: rig.commanded_by("hold", struck), limit_s, "a hold")
        held = rig.commanded_by("hold", struck)
        assert held is not None
        result.reached_s = held.stamp_ns / 1e9 - struck_at_s
        rig.wait(lambda: watch.mode == ControlMode.HOLD, what="HOLD")
        since = watch.commands.index(held, struck)
        time.sleep(0.3)
        if any(c.source != "hold" for c in watch.commands[since:]):
            result.problems.append("somebody commanded again before the fault was mended")
        return
    time.sleep(max(0.0, struck_s + during_s - time.monotonic()))
    others = {c.source for c in watch.commands[struck:]} - {what.then}
    if what.then and others:
        result.problems.append(f"wanted {what.then} to command on, found {', '.join(sorted(others))}")


def _recover(rig: Rig, what: Drill, mended_s: float, result: Result) -> None:
    """As before the fault: the same commands, in the mode of a change of hands that is over."""
    mode = {"policy": ControlMode.POLICY, "teleop": ControlMode.TELEOP}[what.while_]

    def recovered() -> bool:
        settled = rig.checkpoint is not None or rig.watch.mode == mode  # an untrained policy never settles
        return settled and rig.watch.source == what.while_

    mended = len(rig.watch.commands)
    rig.wait(lambda: len(rig.watch.commands) > mended + 5, what="commands after the fault was mended")
    rig.wait(recovered, what=f"{what.while_} commands again")
    result.recovered_s = time.monotonic() - mended_s


def largest_step(commands: list[Heard]) -> float:
    """Of commands in a row, over the velocity limit of a tick. A listener kept from running may lose some:
    what it finds then may have moved for as many ticks as the stamps are apart. Where they are a second
    apart, the arbiter was away, or its clock was put forward: then it may not be farther than a tick's way
    from the last command, or from where the arms stand: what a killed arbiter said last need not have come
    as far as to them."""
    worst = 0.0
    for a, b in itertools.pairwise(commands):
        apart_s = (b.stamp_ns - a.stamp_ns) / 1e9
        away = apart_s >= AWAY_S
        ticks = 1 if away else max(1, round(apart_s / TICK_S - 0.25))
        step = float((np.abs(b.positions - a.positions) / (STEP * ticks)).max())
        if away and b.measured is not None:
            step = min(step, float((np.abs(b.positions - b.measured) / STEP).max()))
        worst = max(worst, step)
    return worst


def look_at_bag(rig: Rig, identity: str, heard: list[Heard], whole: bool, drops: bool) -> tuple[str, int]:
    """An attempt's bag → "whole", "recovered" where the recorder was killed, or what is wrong with it; and
    how many of the commands heard it lacks."""
    bag = rig.bags / identity
    rig.wait(lambda: (bag / "metadata.yaml").is_file(), what=f"bag {identity} closed")
    try:
        reader = BagReader(bag)
        recorded = {
            to_ns(deserialize(cdr, topics.JOINT_STATE_TYPE).header.stamp)
            for _, _, cdr in reader.messages({topics.JOINT_COMMAND})
        }
    except BagError as error:
        return str(error), 0
    # The successor of a killed recorder goes on in the next file: the one before was not closed.
    if (whole and not reader.closed_cleanly) or reader.metadata.get("recap.outcome") != "success":
        return f"outcome {reader.metadata.get('recap.outcome')}, closed {reader.closed_cleanly}", 0
    there = [c.stamp_ns in recorded for c in heard]
    if True not in there:
        return "nothing of what was heard", len(there)
    lost = there[there.index(True) :].count(False)  # the recorder may begin a moment later than the listener
    if lost:
        dropped = json.loads(reader.metadata.get("recap.dropped", "{}")).get(topics.JOINT_COMMAND, 0)
        counted = COUNTED if dropped >= lost else f"{dropped} counted"
        return f"{lost} of {len(there)} commands lost, {counted}", lost
    return "whole" if whole else "recovered", 0
