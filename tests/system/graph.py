"""A small real graph for tests: nodes as processes in a ROS domain of the test's own, and a cell, a person
and an episode played by one node in the test's process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from recap_interfaces.msg import ActionChunk, ControlMode, Episode
from sensor_msgs.msg import JointState, Joy

from recap_station import topics
from recap_station.contract import load_station
from recap_station.nodes import qos
from recap_station.nodes.base import to_ns
from recap_station.nodes.discovery import announce_often
from recap_station.parent import STARTER

STATION = load_station("aloha")
NAMES = list(STATION.joint_names)

POLICY = '''
"""Commands the home pose; on a hand-back it is silent for 0.1 s, then sends a chunk and goes on.

control_mode keeps the last message only: a busy listener may hear of one HANDOVER and the next, and of
nothing in between, so that source and reason, not a change of mode, tell a hand-back."""
import time, rclpy
from recap_interfaces.msg import ActionChunk, ControlMode
from recap_station.contract import load_station
from recap_station.nodes import qos
from sensor_msgs.msg import JointState
station = load_station("aloha")
rclpy.init()
node = rclpy.create_node("policy")
commands = node.create_publisher(JointState, "policy/joint_command", qos.COMMAND)
chunks = node.create_publisher(ActionChunk, "policy/action_chunk", qos.EVENT)
state = {"mode": None, "until": 0.0, "seen": node.get_clock().now()}
def on_mode(message):
    mode = (message.mode, message.reason)
    if message.mode == ControlMode.HANDOVER and message.source != "teleop" and mode != state["mode"]:
        state.update(until=time.monotonic() + 0.1, seen=node.get_clock().now())
    state["mode"] = mode
def tick():
    if time.monotonic() < state["until"] or chunks.get_subscription_count() < 2:
        return  # before the arbiter and the World are matched a chunk would be lost
    if state["seen"]:
        chunk = ActionChunk(checkpoint="test")
        chunk.header.stamp = state["seen"].to_msg()
        chunks.publish(chunk)
        state["seen"] = None
    message = JointState(name=list(station.joint_names), position=station.home.tolist())
    message.header.stamp = node.get_clock().now().to_msg()
    commands.publish(message)
node.create_subscription(ControlMode, "control_mode", on_mode, qos.LATCHED)
node.create_timer(0.02, tick)
rclpy.spin(node)
'''


def free_domain() -> int:
    """A ROS domain for this process: tests that run side by side do not hear each other."""
    return 43 + os.getpid() % 58


def forget_the_dead() -> None:
    """Remove what killed processes have left of Fast DDS in shared memory: a lock that nobody will open again
    can keep their successors on the same port from hearing anything."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # ended meanwhile, or another user's
            used |= set(re.findall(r"/dev/shm/\S+", maps.read_text()))
            used |= {os.readlink(opened) for opened in maps.parent.glob("fd/*")}
    for left in Path("/dev/shm").glob("*fastrtps*"):
        with suppress(OSError):
            if str(left) not in used and left.stat().st_uid == os.getuid():
                left.unlink()


def end_on_signals() -> None:
    """For programs: SIGINT, however this one was started, and SIGTERM end it by SystemExit, and so what it
    started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))


@dataclass(frozen=True)
class Received:
    received_s: float
    stamped_s: float
    source: str
    positions: np.ndarray


@dataclass
class Heard:
    commands: list[Received] = field(default_factory=list)
    modes: list[tuple[float, int, str]] = field(default_factory=list)
    chunks: list[float] = field(default_factory=list)


class World(Node):
    """Follows `joint_command` as a cell would; plays the pedal, the leader arms and episode control."""

    def __init__(self, context: Context):
        super().__init__("world", context=context)
        self.position = STATION.home.copy()
        self.heard = Heard()
        self.pressed: bool | None = False  # None: no pedal is there
        self.person = STATION.home + np.where(STATION.is_gripper, 0.0, 0.05)
        self.states = self.create_publisher(JointState, topics.JOINT_STATES, qos.COMMAND)
        self.joy = self.create_publisher(Joy, topics.JOY, qos.EVENT)
        self.teleop = self.create_publisher(JointState, topics.TELEOP_COMMAND, qos.COMMAND)
        self.policy = self.create_publisher(JointState, topics.POLICY_COMMAND, qos.COMMAND)
        self.episodes = self.create_publisher(Episode, topics.EPISODE, qos.LATCHED)
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.RECORD)
        self.create_subscription(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self.create_subscription(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        self.create_timer(0.02, self._tick)

    def _on_command(self, message: JointState) -> None:
        positions = STATION.vector(message.name, message.position)
        stamped_s = to_ns(message.header.stamp) / 1e9
        self.heard.commands.append(Received(time.monotonic(), stamped_s, message.header.frame_id, positions))
        if np.isfinite(positions).all():
            self.position = positions

    def _on_mode(self, message: ControlMode) -> None:
        self.heard.modes.append((time.monotonic(), message.mode, message.reason))

    def _on_chunk(self, message: ActionChunk) -> None:
        self.heard.chunks.append(time.monotonic())

    def _tick(self) -> None:
        self.states.publish(self.message(self.position))
        if self.pressed:
            self.teleop.publish(self.message(self.person))
        if self.pressed is not None:
            self.press(self.pressed)

    def message(self, positions: Any, names: list[str] | None = None) -> JointState:
        message = JointState(name=names or NAMES, position=[float(p) for p in positions])
        message.header.stamp = self.get_clock().now().to_msg()
        return message

    def press(self, pressed: bool) -> None:
        self.pressed = pressed
        message = Joy(buttons=[int(pressed)])
        message.header.stamp = self.get_clock().now().to_msg()
        self.joy.publish(message)

    def episode(self, identity: str, state: int, outcome: int = Episode.UNKNOWN) -> None:
        message = Episode(id=identity, state=state, outcome=outcome, task="handover_insert", seed=1)
        message.header.stamp = self.get_clock().now().to_msg()
        self.episodes.publish(message)

    def mode(self) -> int | None:
        return self.heard.modes[-1][1] if self.heard.modes else None

    def source(self) -> str:
        return self.heard.commands[-1].source if self.heard.commands else ""


class Graph:
    """Processes and the World, or another node, on one domain. Context manager: nothing is left running."""

    def __init__(self, folder: Path, node: Callable[[Context], Any] = World):
        self.folder = folder
        self.domain = free_domain()
        forget_the_dead()
        announce_often()
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(self.domain), "OMP_NUM_THREADS": "1"}
        self.environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        self.environment[STARTER] = str(os.getpid())  # nodes end with this process, however that ends
        self.processes: dict[str, subprocess.Popen] = {}
        self.context = Context()
        rclpy.init(args=[], context=self.context, domain_id=self.domain)
        self.world = node(self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.world)
        self._stop = False
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop:
            self._executor.spin_once(timeout_sec=0.05)

    def start(
        self,
        name: str,
        module: str = "",
        code: str = "",
        remap: dict[str, str] | None = None,
        stdin: int | IO | None = None,
        **parameters: Any,
    ) -> subprocess.Popen:
        """A node's module, or code, as a process; `parameters`: of ROS; `remap`: topics renamed."""
        if name in self.processes:
            self.kill(name)  # left over by a test that failed
        words = ["-m", module] if module else ["-c", code]
        given = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
        given += [word for old, new in (remap or {}).items() for word in ("-r", f"{old}:={new}")]
        arguments = ["--ros-args", *given] if given else []
        log = open(self.folder / f"{name}.log", "a")  # noqa: SIM115
        self.processes[name] = subprocess.Popen(
            [sys.executable, *words, *arguments], env=self.environment, stdin=stdin, stdout=log, stderr=log
        )
        log.close()
        return self.processes[name]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait(self, condition: Callable[[], Any], limit_s: float = 30.0, what: str = "") -> float:
        """Seconds until the condition held. Fails after the limit."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > limit_s:
                raise AssertionError(f"not within {limit_s} s: {what or condition}{self._dead()}")
            time.sleep(0.005)
        return time.monotonic() - start

    def _dead(self) -> str:
        """What has ended unasked, and its last word."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        return "".join(f"; {name} has ended: {self.log(name).strip()[-200:]}" for name in ended)

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        for process in self.processes.values():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._stop = True
        self._thread.join()
        self.world.destroy_node()
        rclpy.shutdown(context=self.context)
