"""Parts of a cell that misbehave when told to: a policy, a leader, a driver in between, a pedal gone wild.

    python -m faults --ros-args -p role:=policy|leader|relay|flood|clock [-p station:=…] [-p seed:=…]

Used by the drills and by benchmarks; each runs as a process of its own. A fault is a std_msgs/String on
`faults`: "<role> <fault> [argument]…"; "<role> none" ends it. It is said again on `faults/taken` by the part
that took it: a fault that nobody heard of would pass for one that did no harm.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from recap_interfaces.msg import ActionChunk, ControlMode
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import String

from recap_station import topics
from recap_station.contract import Station, load_station
from recap_station.nodes import qos
from recap_station.nodes.base import STEADY, TICKING_PRIORITY, claim_realtime, message_type, to_time
from recap_station.parent import end_with_starter

FAULTS, TAKEN = "faults", "faults/taken"
BEFORE = "cell/"  # in front of the names of what the relay hears; it passes it on under the plain names
INFERENCE_S = 0.06  # how long the stand-in policy is silent after a flush
CHUNK_S = 0.5  # between its chunks


class Part(Node):
    """A process of the drills: knows the station and hears of its faults."""

    PRIORITY = TICKING_PRIORITY  # as a real node's that ticks at 50 Hz

    def __init__(self, role: str):
        super().__init__(role)
        self.station = load_station(self.declare_parameter("station", "aloha").value)
        self.seed = int(self.declare_parameter("seed", 0).value)
        self.fault: list[str] = ["none"]
        self.role = role
        self._taken = self.create_publisher(String, TAKEN, qos.EVENT)
        self.create_subscription(String, FAULTS, self._on_fault, qos.EVENT)

    def _on_fault(self, message: String) -> None:
        role, *fault = message.data.split()
        if role == self.role:
            if fault != self.fault:  # it may be told again until it is heard
                self.fault = fault
                self.on_fault()
            self._taken.publish(message)

    def on_fault(self) -> None:
        """Called when the fault has changed."""

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        self.create_timer(seconds, callback, clock=STEADY)


class Motion:
    """Smooth, endless and never the same: sines about the home pose, at most 0.4 of the velocity limit."""

    def __init__(self, station: Station, seed: int, amplitude: float = 0.25, offset: float = 0.0):
        rng = np.random.default_rng(seed)
        self._station, self._amplitude = station, amplitude
        self._center = station.home + np.where(station.is_gripper, -0.4, offset)
        self._phase = rng.uniform(0, 2 * np.pi, station.dof)
        top_hz = 0.4 * station.max_velocity / (2 * np.pi * amplitude)
        self._hz = np.minimum(rng.uniform(0.3, 0.8, station.dof), top_hz)

    def at(self, seconds: float) -> np.ndarray:
        """(dof,) within the limits."""
        wave = self._amplitude * np.sin(2 * np.pi * self._hz * seconds + self._phase)
        return np.clip(self._center + wave, self._station.lower, self._station.upper)


def spoilt(fault: str, names: list[str], positions: np.ndarray) -> tuple[list[str], np.ndarray]:
    """A command with a fault: names and positions as they are sent."""
    match fault:
        case "nan" | "inf":
            positions[3] = float(fault)
        case "permuted":  # still right: joints are matched by name
            names, positions = names[::-1], positions[::-1]
        case "misspelt":
            names = [*names[:-1], names[-1] + "s"]
        case "missing":
            names, positions = names[:-1], positions[:-1]
        case "zeros":
            positions = np.zeros_like(positions)
        case "jump":
            positions = positions + 1.0
    return names, positions


class Policy(Part):
    """Commands a smooth motion and publishes chunks; after a flush it is silent for one inference."""

    def __init__(self) -> None:
        super().__init__("policy")
        self.motion = Motion(self.station, self.seed)
        self.mode: tuple[int, str] | None = None
        self.silent_until = self.chunk_due = 0.0
        self.seen: Any = None  # when the last flush was: what the next chunk is made from
        self.commands = self.create_publisher(JointState, topics.POLICY_COMMAND, qos.COMMAND)
        self.chunks = self.create_publisher(ActionChunk, topics.POLICY_CHUNK, qos.EVENT)
        self.create_subscription(ControlMode, topics.CONTROL_MODE, self.on_mode, qos.LATCHED)
        self.every(self.station.step_s, self.tick)

    def on_mode(self, message: ControlMode) -> None:
        mode = (message.mode, message.reason)
        if message.mode == ControlMode.HANDOVER and message.source != "teleop" and mode != self.mode:
            self.silent_until, self.chunk_due = time.monotonic() + INFERENCE_S, 0.0
            self.seen = self.get_clock().now().to_msg()
        self.mode = mode

    def tick(self) -> None:
        now = time.monotonic()
        if now < self.silent_until or not self.commands.get_subscription_count():
            return
        stamp = self.get_clock().now().to_msg()
        if now >= self.chunk_due:
            chunk = ActionChunk(checkpoint="stand-in")
            chunk.header.stamp = self.seen or stamp
            self.chunks.publish(chunk)
            self.seen, self.chunk_due = None, now + CHUNK_S
        names, positions = spoilt(self.fault[0], list(self.station.joint_names), self.motion.at(now))
        message = JointState(name=names, position=positions.tolist())
        message.header.stamp = stamp
        self.commands.publish(message)


class Leader(Part):
    """Leader arms that a person moves, elsewhere than the follower: 0.3 rad off the home pose."""

    def __init__(self) -> None:
        super().__init__("leader")
        self.motion = Motion(self.station, self.seed, offset=0.3)
        self.commands = self.create_publisher(JointState, topics.TELEOP_COMMAND, qos.COMMAND)
        self.every(self.station.step_s, self.tick)

    def tick(self) -> None:
        positions = self.motion.at(time.monotonic())
        message = JointState(name=list(self.station.joint_names), position=positions.tolist())
        message.header.stamp = self.get_clock().now().to_msg()
        self.commands.publish(message)


class Relay(Part):
    """Between the station and everybody else: hears `cell/<topic>`, passes it on as `<topic>`.

    Faults, of one topic or of all ("*"): freeze (nothing comes), stuck (the last message again and again),
    half (every other one), twice, swap (pairs exchanged), late S, back S (stamps that much earlier).
    """

    def __init__(self) -> None:
        super().__init__("relay")
        self._late: deque[tuple[float, Any, bytes]] = deque()
        self._kept: dict[str, bytes] = {}
        self._count = 0
        for topic in (topics.JOINT_STATES, *map(topics.image_topic, self.station.camera_names)):
            kind = topics.JOINT_STATE_TYPE if topic == topics.JOINT_STATES else topics.IMAGE_TYPE
            publisher = self.create_publisher(message_type(kind), topic, qos.for_topic(topic))
            hear = partial(self.on_message, topic, publisher)
            self.create_subscription(message_type(kind), BEFORE + topic, hear, qos.for_topic(topic), raw=True)
        self.every(0.004, self.send_late)

    def on_fault(self) -> None:
        self._kept.clear()

    def on_message(self, topic: str, publisher: Any, cdr: bytes) -> None:
        fault, *rest = self.fault
        if not rest or rest[0] not in ("*", topic):
            fault = "none"
        match fault:
            case "freeze":
                return
            case "stuck":
                publisher.publish(self._kept.setdefault(topic, cdr))
            case "half":
                self._count += 1
                if self._count % 2:
                    publisher.publish(cdr)
            case "twice":
                publisher.publish(cdr)
                publisher.publish(cdr)
            case "swap":
                if topic in self._kept:
                    publisher.publish(cdr)
                    publisher.publish(self._kept.pop(topic))
                else:
                    self._kept[topic] = cdr
            case "late":
                self._late.append((time.monotonic() + float(rest[1]), publisher, cdr))
            case "back":
                publisher.publish(stamped_earlier(cdr, float(rest[1])))
            case _:
                publisher.publish(cdr)

    def send_late(self) -> None:
        while self._late and time.monotonic() >= self._late[0][0]:
            _, publisher, cdr = self._late.popleft()
            publisher.publish(cdr)


def stamped_earlier(cdr: bytes, seconds: float) -> bytes:
    """A message that begins with a header, as CDR: 4 bytes, then int32 s and uint32 ns, little-endian."""
    sec, nanosec = struct.unpack_from("<iI", cdr, 4)
    stamp = to_time(sec * 1_000_000_000 + nanosec - round(seconds * 1e9))
    return cdr[:4] + struct.pack("<iI", stamp.sec, stamp.nanosec) + cdr[12:]


class Flood(Part):
    """Joy at a thousand times a second while told to: "released", or "random" presses."""

    PRIORITY = 0

    def __init__(self) -> None:
        super().__init__("flood")
        self._random = np.random.default_rng(self.seed)
        self._joy = self.create_publisher(Joy, topics.JOY, qos.EVENT)
        self.every(0.01, self.tick)

    def tick(self) -> None:
        if self.fault[0] == "none":
            return
        for _ in range(10):
            pressed = int(self.fault[0] == "random" and self._random.random() < 0.5)
            message = Joy(buttons=[pressed])
            message.header.stamp = self.get_clock().now().to_msg()
            self._joy.publish(message)


class ClockSource(Part):
    """`/clock`, for nodes with use_sim_time: the time of day, until it is set back by "back S"."""

    def __init__(self) -> None:
        super().__init__("clock")
        self._clock = self.create_publisher(Clock, "/clock", qos.EVENT)
        self.every(0.01, self.tick)

    def tick(self) -> None:
        back_s = float(self.fault[1]) if self.fault[0] == "back" else 0.0
        self._clock.publish(Clock(clock=to_time(time.time_ns() - round(back_s * 1e9))))


ROLES: dict[str, type[Part]] = {
    "policy": Policy,
    "leader": Leader,
    "relay": Relay,
    "flood": Flood,
    "clock": ClockSource,
}


def main() -> None:
    end_with_starter()
    rclpy.init()
    asked = Node("asked")
    role = str(asked.declare_parameter("role", "").value)
    asked.destroy_node()
    try:
        part = ROLES[role]()
        claim_realtime(part.PRIORITY)
        rclpy.spin(part)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass  # that is how it ends


if __name__ == "__main__":
    main()
