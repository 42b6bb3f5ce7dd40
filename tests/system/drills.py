"""Drills: one part of the cell fails at a random moment; who commands then, how soon, and is all well again?

A `Rig` is the whole graph over real ROS 2: simulated station, arbiter, episode control, recorder, learner,
pedal (the real node on a pseudo-terminal), and stand-ins from `faults.py` for policy and leader, or a real
policy node; between station and the rest stands the relay. `drill(rig, DRILLS[name], rng)` runs one attempt with
one fault in it. `test_drills.py` runs each once or twice, `benchmarks/drills.py` as often as asked.
"""

from __future__ import annotations

import itertools
import os
import pty
import signal
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import numpy as np
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from graph import STATION, Graph
from rclpy.context import Context
from rclpy.node import Node
from recap_interfaces.msg import ControlMode, Episode
from recap_interfaces.srv import EndEpisode, StartEpisode
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from recap_station import topics
from recap_station.bags import FLUSH_S, BagError, BagReader, deserialize
from recap_station.contract import read_config
from recap_station.nodes import qos
from recap_station.nodes.base import to_ns
from recap_teleop.arbiter import ArbiterSettings

STEP = STATION.max_velocity * STATION.step_s
TICK_S = STATION.step_s
SAG = 0.05  # rad: how far a measured joint may stand beyond its limit: commands stay within
BUSY = ArbiterSettings(policy_timeout_s=0.5, teleop_timeout_s=0.5, pedal_timeout_s=0.5, state_timeout_s=1.0)
LIMIT_S = 40.0  # for what must come sooner or later, on a machine however busy
CAMERA = STATION.camera_names[0]
CHUNK_S, OLDEST_S = 1.0, 0.5  # of the real policy: a chunk's length; observations older are not used
TASK = {"time_limit_s": 600.0, "max_episode_s": 600.0, "judge": "person"}


class DrillError(AssertionError):
    """The graph did not do what a drill wanted. One readable line."""


@dataclass(frozen=True)
class Heard:
    """One command: when it came, on the steady clock; its stamp in ns; who commanded."""

    received_s: float
    stamp_ns: int
    source: str
    positions: np.ndarray


class Watch(Node):
    """Hears what everybody hears, and starts and ends attempts."""

    def __init__(self, context: Context):
        super().__init__("watch", context=context)
        self.commands: list[Heard] = []
        self.wish: np.ndarray | None = None  # of the policy, read by name
        self.mode = -1
        self.running: dict[str, int] = {}  # attempt → its first command
        self.said: dict[str, tuple[float, str]] = {}  # part → when its last /diagnostics came, and what it said
        self.beyond = 0.0  # rad, of a measured joint beyond its limits
        self.faults = self.create_publisher(String, faults.FAULTS, qos.EVENT)
        self._started = ("", 0)  # id and stamp of the attempt that ran last
        self.begin = self.create_client(StartEpisode, "start_episode")
        self.end = self.create_client(EndEpisode, "end_episode")
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENT)
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.RECORD)
        self.create_subscription(JointState, topics.POLICY_COMMAND, self._on_wish, qos.COMMAND)
        self.create_subscription(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.create_subscription(JointState, faults.BEFORE + topics.JOINT_STATES, self._on_state, qos.COMMAND)

    def _on_command(self, message: JointState) -> None:
        stamp = to_ns(message.header.stamp)
        positions = STATION.vector(message.name, message.position)
        if stamp > self._started[1]:  # what was on its way when the attempt began is not of it
            self.running.setdefault(self._started[0], len(self.commands))
        self.commands.append(Heard(time.monotonic(), stamp, message.header.frame_id, positions))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status[-1:]:
            self.said[status.hardware_id] = (time.monotonic(), status.message)

    def _on_episode(self, message: Episode) -> None:
        if message.state == Episode.RUNNING:
            self._started = (message.id, to_ns(message.header.stamp))

    def _on_wish(self, message: JointState) -> None:
        with suppress(ValueError):  # misspelt on purpose
            self.wish = STATION.vector(message.name, message.position)

    def _on_mode(self, message: ControlMode) -> None:
        self.mode = message.mode

    def _on_state(self, message: JointState) -> None:
        state = np.array(message.position)
        arms = ~STATION.is_gripper
        beyond = np.maximum(state - STATION.upper, STATION.lower - state)[arms]
        self.beyond = max(self.beyond, float(beyond.max()))

    @property
    def source(self) -> str:
        return self.commands[-1].source if self.commands else ""


class Foot:
    """The space bar of a pseudo-terminal, in which the real pedal node runs."""

    def __init__(self) -> None:
        self._keyboard, self.terminal = pty.openpty()
        self.down = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat)
        self._thread.start()

    def _repeat(self) -> None:
        while not self._stop.wait(0.04):
            if self.down:
                os.write(self._keyboard, b" ")

    def forget(self) -> None:
        """What was typed while nobody read."""
        termios.tcflush(self.terminal, termios.TCIFLUSH)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._keyboard)
        os.close(self.terminal)


class Rig:
    """See the module's text. `checkpoint`: a real policy instead of the stand-in, and time from /clock, so that
    it can be set back. `settings`: the arbiter's time-outs. Context manager."""

    def __init__(self, folder: Path, settings: ArbiterSettings, checkpoint: Path | None = None):
        self.settings, self.checkpoint, self.folder = settings, checkpoint, folder
        self.bags = folder / "bags"
        self.graph = Graph(folder, Watch)
        self.watch: Watch = self.graph.world
        self.foot = Foot()
        task = {**read_config("tasks", "handover_insert")[0], **TASK}
        (folder / "drill.yaml").write_text(yaml.safe_dump(task))
        try:
            for part in PARTS:
                self.start(part)
            for part in NODES:
                self.wait_for(part, since_s=0.0)
        except BaseException:
            self.__exit__()
            raise

    def wait_for(self, part: str, since_s: float, text: str = "") -> None:
        """Until a node has spoken in /diagnostics since then (and said `text`)."""

        def spoken() -> bool:
            at, said = self.watch.said.get(part, (-1.0, ""))
            return at > since_s and text in said

        self.wait(spoken, what=f"{part} in /diagnostics")

    def log(self) -> str:
        """What all parts have said, for a person who looks for the reason of a problem."""
        return "\n".join(f"--- {part}\n{self.graph.log(part)}" for part in self.graph.processes)

    def start(self, part: str) -> None:
        """Start a part, or start it again."""
        time_of_day = {"use_sim_time": "true"} if self.checkpoint else {}
        cell = {"task": self.folder / "drill.yaml", **time_of_day}
        outs = [topics.JOINT_STATES, *map(topics.image_topic, STATION.camera_names)]
        start = self.graph.start
        match part:
            case "station":
                remap = {topic: faults.BEFORE + topic for topic in outs}
                start(part, "recap_station.nodes.station_node", remap=remap, **cell)
            case "arbiter":
                given = {name: getattr(self.settings, name) for name in TIMEOUTS}
                start(part, "recap_teleop.nodes.arbiter_node", **given, **cell)
            case "episode":
                start(part, "recap_teleop.nodes.episode_node", **cell)
            case "recorder":
                start(part, "recap_teleop.nodes.recorder_node", bag_dir=self.bags, **cell)
            case "learner":
                start(part, "recap_learner.nodes.learner_node", **cell)
            case "pedal":
                self.foot.forget()
                stdin = self.foot.terminal
                start(part, "recap_teleop.nodes.pedal_node", stdin=stdin, device="keyboard", **cell)
            case "policy" if self.checkpoint:
                start(part, "recap_policy.nodes.policy_node", checkpoint=self.checkpoint, **cell)
            case "clock" if not self.checkpoint:
                return
            case _:
                start(part, "faults", role=part, **time_of_day if part != "clock" else {})

    def fault(self, text: str) -> None:
        """To a stand-in: "<role> <fault> [argument]...", or "<role> none"."""
        self.watch.faults.publish(String(data=text))

    def signal(self, part: str, number: int) -> None:
        self.graph.processes[part].send_signal(number)

    def press(self, down: bool) -> None:
        self.foot.down = down

    def wait(self, condition: Callable[[], Any], limit_s: float = LIMIT_S, what: str = "") -> float:
        try:
            return self.graph.wait(condition, limit_s, what)
        except AssertionError as error:
            raise DrillError(str(error)) from None

    def commanded_by(self, source: str, since: int = 0) -> Heard | None:
        return next((c for c in self.watch.commands[since:] if c.source == source), None)

    def attempt(self) -> tuple[str, int]:
        """Start an attempt, until the policy commands → its id, and which command is its first.

        Before it the cell is reset, and the arbiter holds it where it then stands: that is no jump."""
        answer = self._call(self.watch.begin, StartEpisode.Request(seed=1))
        self.wait(lambda: answer.id in self.watch.running, what="RUNNING")
        since = self.watch.running[answer.id]
        self.wait(lambda: self.commanded_by("policy", since), what="the policy commands")
        return answer.id, since

    def finish(self) -> None:
        self._call(self.watch.end, EndEpisode.Request(outcome=EndEpisode.Request.SUCCESS, reason="drill"))
        self.wait(lambda: self.watch.mode == ControlMode.HOLD, what="HOLD after the attempt")

    def _call(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        self.wait(future.done, what=f"an answer of {client.srv_name}")
        answer = future.result()
        if not answer.success:
            raise DrillError(f"{client.srv_name}: {answer.message}")
        return answer

    def repair(self) -> None:
        """Everything runs, nothing is out of order: after a drill, however it ended."""
        self.press(False)
        for role in faults.ROLES:
            self.fault(f"{role} none")
        for part in PARTS:
            process = self.graph.processes.get(part)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
            elif part != "clock" or self.checkpoint:
                self.start(part)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.graph.processes.values():
            process.send_signal(signal.SIGCONT)  # one that is stopped could not end
        self.graph.__exit__()
        self.foot.close()


PARTS = ("clock", "relay", "station", "arbiter", "episode", "recorder", "learner", "policy", "leader", "pedal",
         "flood")  # fmt: skip
NODES = ("station", "arbiter", "episode", "recorder", "learner", "pedal")  # those that speak in /diagnostics
TIMEOUTS = ("policy_timeout_s", "teleop_timeout_s", "pedal_timeout_s", "state_timeout_s")


@dataclass(frozen=True)
class Drill:
    """`while_`: who commands when it strikes. `then`: "hold", who commands on as before ("policy", "teleop"), or
    "" for whoever it be. `timeout`: the arbiter's time-out that it runs into; `extra_s` comes on top."""

    strike: Callable[[Rig], None]
    mend: Callable[[Rig], None]
    then: str = "hold"
    while_: str = "policy"
    timeout: str = ""
    extra_s: float = 0.0
    real_policy: bool = False
    loses_s: float = 0.0  # of the bag before the fault
    pauses: bool = False  # of the recorder: messages after the fault may be missing
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
    """Whether the robot is commanded what the policy wishes, joint by joint."""
    off = max(
        float(np.abs(rig.watch.commands[-1].positions - rig.watch.wish).max())
        for _ in range(5)
        if rig.watch.wish is not None and not time.sleep(0.05)
    )
    return "" if off < 0.15 else f"commands {off:.2f} off the policy's, joint by joint"


_SILENT_POLICY: dict[str, Any] = {"timeout": "policy_timeout_s"}
_NO_PICTURE: dict[str, Any] = {
    "timeout": "policy_timeout_s", "extra_s": OLDEST_S + CHUNK_S, "real_policy": True
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
    "policy stopped for 2 s": _stopped("policy", **_SILENT_POLICY),
    "pedal stopped for 2 s while pressed": _stopped("pedal", while_="teleop", timeout="pedal_timeout_s"),
    "leader stopped for 2 s": _stopped("leader", while_="teleop", timeout="teleop_timeout_s"),
    "station stopped for 2 s": _stopped("station", timeout="state_timeout_s"),
    "recorder stopped for 2 s": _stopped("recorder", then="policy", pauses=True),
    "learner stopped for 2 s": _stopped("learner", then="policy"),
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
    "camera at half rate": _told(f"relay half {_IMAGE}", then="policy", real_policy=True),
    "station's clock set back 5 s": _told("relay back * 5", real_policy=True, timeout="policy_timeout_s",
                                         extra_s=CHUNK_S),
    "everybody's clock set back 5 s": _told("clock back 5", then="", real_policy=True),
}  # fmt: skip


@dataclass
class Result:
    """Of one drill. `problems`: what went otherwise than wanted, in words."""

    reached_s: float | None = None  # until HOLD, where that is expected
    recovered_s: float | None = None
    step_over_limit: float = 0.0
    longest_silence_s: float = 0.0  # between two commands
    bag: str = ""
    lost: int = 0  # commands that the bag lacks and should hold
    problems: list[str] = field(default_factory=list)


def drill(
    rig: Rig, what: Drill, rng: np.random.Generator, before_s: tuple[float, float] = (0.3, 1.5),
    during_s: float = 2.0,
) -> Result:  # fmt: skip
    """One attempt with one fault, at a random moment of `before_s` after the start; mended `during_s` later."""
    result, watch = Result(), rig.watch
    watch.beyond, first = 0.0, 0
    try:
        identity, first = rig.attempt()
        if what.while_ == "teleop":
            rig.press(True)
            rig.wait(lambda: watch.mode == ControlMode.TELEOP, what="TELEOP")
        time.sleep(rng.uniform(*before_s) + 1.2 * what.loses_s)
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
        result.bag, result.lost = look_at_bag(rig, identity, before + after, whole=not what.loses_s)
        if result.bag not in ("whole", "recovered"):
            result.problems.append(f"bag: {result.bag}")
    except DrillError as error:
        result.problems.append(str(error))
        commands = watch.commands[first:]
        rig.repair()
        with suppress(DrillError):
            rig.finish()
    result.step_over_limit = largest_step(commands)
    result.longest_silence_s = max(b.received_s - a.received_s for a, b in itertools.pairwise(commands))
    if result.step_over_limit > 1.0 + 1e-6:
        result.problems.append(f"a step of {result.step_over_limit:.3f} times the velocity limit")
    positions = np.array([c.positions for c in commands])
    if not np.isfinite(positions).all():
        result.problems.append("a command that is not finite")
    if np.any((positions > STATION.upper) | (positions < STATION.lower)):
        result.problems.append("a command beyond the joint limits")
    if watch.beyond > SAG:
        result.problems.append(f"a joint stood {watch.beyond:.3f} rad beyond its limit")
    return result


def _observe(
    rig: Rig, what: Drill, struck: int, struck_s: float, during_s: float, result: Result
) -> None:
    """Wait for the expected hold, or see who commands while the fault lasts."""
    watch = rig.watch
    struck_at_s = time.time() - (time.monotonic() - struck_s)  # as the arbiter stamps
    if what.then == "hold":
        rig.wait(lambda: rig.commanded_by("hold", struck), what="a hold")
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
    what it finds then may have moved for as many ticks as the stamps are apart."""
    worst = 0.0
    for a, b in itertools.pairwise(commands):
        ticks = max(1, round((b.stamp_ns - a.stamp_ns) / 1e9 / TICK_S - 0.25))
        worst = max(worst, float((np.abs(b.positions - a.positions) / (STEP * ticks)).max()))
    return worst


def look_at_bag(rig: Rig, identity: str, heard: list[Heard], whole: bool) -> tuple[str, int]:
    """An attempt's bag → "whole", "recovered" where the recorder was killed, or what is wrong with it; and how
    many of the commands heard it lacks."""
    parts = [rig.bags / identity, *sorted(rig.bags.glob(f"{identity}_part*"))]
    rig.wait(lambda: (parts[-1] / "metadata.yaml").is_file(), what=f"bag {parts[-1].name} closed")
    recorded: set[int] = set()
    try:
        readers = [BagReader(part) for part in parts]
        for reader in readers:
            for _, _, cdr in reader.messages({topics.JOINT_COMMAND}):
                recorded.add(to_ns(deserialize(cdr, topics.JOINT_STATE_TYPE).header.stamp))
    except BagError as error:
        return str(error), 0
    last = readers[-1]
    if not last.closed_cleanly or last.metadata.get("recap.outcome") != "success":
        outcome = last.metadata.get("recap.outcome")
        return f"{last.path.name}: outcome {outcome}, closed {last.closed_cleanly}", 0
    if whole and len(parts) > 1:
        return f"{len(parts)} parts, wanted one", 0
    there = [c.stamp_ns in recorded for c in heard]
    if True not in there:
        return "nothing of what was heard", len(there)
    lost = there[there.index(True) :].count(False)  # the recorder may begin a moment later than the listener
    if lost:
        return f"{lost} of {len(there)} commands lost, {last.metadata.get('recap.dropped')} counted", lost
    return "whole" if whole else "recovered", 0
