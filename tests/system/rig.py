"""A whole cell for drills: every part a process over real ROS 2, each of which can be made to fail.

Simulated station, arbiter, episode control, recorder, learner, pedal (the real node, on a pseudo-terminal),
and stand-ins from `faults.py` for policy and leader, or a real policy node; between the station and everybody
else stands the relay.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
from recap_station.contract import read_config
from recap_station.nodes import qos
from recap_station.nodes.base import TICKING_PRIORITY, claim_realtime, to_ns
from recap_teleop.arbiter import ArbiterSettings

TOLD = 5  # times, of a fault, a second apart
LIMIT_S = 40.0  # for what must come sooner or later, on a machine however busy
BUSY = ArbiterSettings(policy_timeout_s=0.5, teleop_timeout_s=0.5, pedal_timeout_s=0.5, state_timeout_s=1.0)
TASK = {"time_limit_s": 600.0, "max_episode_s": 600.0, "judge": "person"}
PARTS = (
    "clock", "relay", "station", "arbiter", "episode", "recorder", "learner", "policy", "leader", "pedal",
    "flood",
)  # fmt: skip
NODES = ("station", "arbiter", "episode", "recorder", "learner", "pedal")  # those that speak in /diagnostics
TIMEOUTS = ("policy_timeout_s", "teleop_timeout_s", "pedal_timeout_s", "state_timeout_s")


class DrillError(AssertionError):
    """The graph did not do what a drill wanted. One readable line."""


@dataclass(frozen=True)
class Heard:
    """One command: when it came, on the steady clock; its stamp in ns; who commanded; where the arms stood
    then, as the station itself says (not the relay)."""

    received_s: float
    stamp_ns: int
    source: str
    positions: np.ndarray
    measured: np.ndarray | None


class Watch(Node):
    """Hears what everybody hears, and starts and ends attempts."""

    def __init__(self, context: Context):
        super().__init__("watch", context=context)
        self.commands: list[Heard] = []
        self.wishes: deque[np.ndarray] = deque(maxlen=50)  # of the policy, read by name
        self.mode = -1
        self.running: dict[str, int] = {}  # attempt → its first command
        self.said: dict[str, tuple[float, str]] = {}  # part → when it last spoke, and what
        self.measured: np.ndarray | None = None
        self.beyond = 0.0  # rad, of a measured joint beyond its limits
        self.faults = self.create_publisher(String, faults.FAULTS, qos.EVENT)
        self.taken: dict[str, str] = {}  # role → the fault that it took last
        self._started = ("", 0)  # id and stamp of the attempt that ran last
        self.begin = self.create_client(StartEpisode, "start_episode")
        self.end = self.create_client(EndEpisode, "end_episode")
        self.create_subscription(String, faults.TAKEN, self._on_taken, qos.EVENT)
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
        who = message.header.frame_id
        self.commands.append(Heard(time.monotonic(), stamp, who, positions, self.measured))

    def _on_taken(self, message: String) -> None:
        self.taken[message.data.split()[0]] = message.data

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status[-1:]:
            self.said[status.hardware_id] = (time.monotonic(), status.message)

    def _on_episode(self, message: Episode) -> None:
        if message.state == Episode.RUNNING:
            self._started = (message.id, to_ns(message.header.stamp))

    def _on_wish(self, message: JointState) -> None:
        with suppress(ValueError):  # misspelt on purpose
            self.wishes.append(STATION.vector(message.name, message.position))

    def _on_mode(self, message: ControlMode) -> None:
        self.mode = message.mode

    def _on_state(self, message: JointState) -> None:
        state = self.measured = np.array(message.position)
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
    """Context manager. `settings`: the arbiter's time-outs. `checkpoint`: a real policy, instead of the
    stand-in. `clock`: time comes from /clock, so that it can be set back."""

    def __init__(
        self, folder: Path, settings: ArbiterSettings, checkpoint: Path | None = None, clock: bool = False
    ):
        self.settings, self.checkpoint, self.clock, self.folder = settings, checkpoint, clock, folder
        self.bags = folder / "bags"
        real = {"policy"} if checkpoint else set()
        self.stand_ins = faults.ROLES.keys() - real - (set() if clock else {"clock"})
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

    def forget(self, bag: Path) -> None:
        """Remove a bag that was looked at."""
        shutil.rmtree(bag)

    def log(self) -> str:
        """What all parts have said, for a person who looks for the reason of a problem."""
        return "\n".join(f"--- {part}\n{self.graph.log(part)}" for part in self.graph.processes)

    def start(self, part: str) -> None:
        """Start a part, or start it again."""
        time_of_day = {"use_sim_time": "true"} if self.clock else {}
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
            case "clock" if not self.clock:
                return
            case _:
                start(part, "faults", role=part, **time_of_day if part != "clock" else {})

    def fault(self, text: str) -> None:
        """To a stand-in: "<role> <fault> [argument]...", or "<role> none". Told until it is taken; a stand-in
        that does not hear is killed and started again, and the drill has failed."""
        role = text.split()[0]
        self.watch.taken.pop(role, None)
        for _ in range(TOLD):
            self.watch.faults.publish(String(data=text))
            with suppress(DrillError):
                self.wait(lambda: self.watch.taken.get(role) == text, 1.0)
                return
        self.graph.kill(role)
        self.start(role)
        raise DrillError(f"{role} did not hear that it should {text!r}, told {TOLD} times")

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
        for part in PARTS:
            process = self.graph.processes.get(part)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
            else:
                self.start(part)
        for role in self.stand_ins:
            with suppress(DrillError):  # it was started again then, and has no fault
                self.fault(f"{role} none")

    def __enter__(self) -> Rig:
        claim_realtime(TICKING_PRIORITY)  # a listener that is kept from running misses commands
        return self

    def __exit__(self, *_: object) -> None:
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
        for process in self.graph.processes.values():
            process.send_signal(signal.SIGCONT)  # one that is stopped could not end
        self.graph.__exit__()
        self.foot.close()
