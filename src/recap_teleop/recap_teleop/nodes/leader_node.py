"""Leader arms in the graph: `leader/joint_states`, from any driver, becomes `teleop/joint_command` at 50 Hz.

For leaders with motors (`drive`) it also publishes `leader/joint_command` while the policy commands, so that
a takeover begins with both arms in one pose. While a person commands, while nobody does, and while the
leader is silent, it publishes none: a driver that hears nothing for 0.1 s must let its arm be moved by hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from recap_station import topics
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, run, to_ns
from recap_teleop.leader import Leader, Mirror, identity, load_rows

FOLLOWER_S = 0.1  # a joint command older than this is not mirrored
REFUSED_S = 3.0  # how long a refused message is a warning


class LeaderNode(RecapNode):
    NAME = "leader"
    PARAMETERS = (
        Param(
            "leader", "", "whose joints: a name in config/leaders, or a path to a YAML; empty: the station's"
        ),
        Param("timeout_s", 0.1, "silence of a joint after which nothing is commanded", "s", 0.02, 5.0),
        Param("max_age_s", 0.5, "farthest that a stamp may lie from now", "s", 0.02, 60.0),
        Param("drive", False, "drive the leader to the follower's pose while the policy commands"),
        Param("drive_speed", 0.3, "of the follower's velocity limits", "fraction", 0.01, 1.0),
    )

    def configure(self) -> None:
        name = self.param("leader")
        rows = load_rows(name, self.station) if name else identity(self.station)
        self.leader = Leader(self.station, rows, self.param("timeout_s"), self.param("max_age_s"))
        self.mirror = Mirror(self.leader, self.param("drive_speed")) if self.param("drive") else None
        self._follower: np.ndarray | None = None
        self._follower_s = self._refused_s = -np.inf
        self._driving = False
        self._commands = self.create_publisher(JointState, topics.TELEOP_COMMAND, qos.COMMAND)
        self.create_subscription(JointState, topics.LEADER_STATES, self._on_leader, qos.COMMAND)
        if self.mirror is not None:
            self._drives = self.create_publisher(JointState, topics.LEADER_COMMAND, qos.COMMAND)
            self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.COMMAND)

    def activate(self) -> None:
        self.create_ticker(self.station.control_rate_hz, self._tick)

    def _on_leader(self, message: JointState) -> None:
        stamp_ns = to_ns(message.header.stamp)
        before = dict(self.leader.rejected)
        if not self.leader.hear(time.monotonic(), self.now_ns(), stamp_ns, message.name, message.position):
            reason = next(key for key, count in self.leader.rejected.items() if count != before.get(key, 0))
            self._refused_s = time.monotonic()
            self.complain("leader refused", reason)

    def _on_command(self, message: JointState) -> None:
        """The follower's pose, of interest while the policy gives it."""
        if message.header.frame_id != "policy":
            self._follower_s = -np.inf
            return
        self._follower = self.station.vector(message.name, message.position)
        self._follower_s = time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        command = self.leader.command(now)
        if command is not None:
            self._commands.publish(self._message(self.station.joint_names, command))
        if self.mirror is not None:
            self._drive(self.mirror, now)

    def _drive(self, mirror: Mirror, now: float) -> None:
        wanted = None
        if self._follower is not None and now - self._follower_s <= FOLLOWER_S:
            wanted = mirror.drive(now, self._follower)
        else:
            mirror.let_go()
        self._driving = wanted is not None
        if wanted is not None:
            self._drives.publish(self._message(self.leader.names, wanted))

    def _message(self, names: Iterable[str], positions: np.ndarray) -> JointState:
        message = JointState(name=list(names), position=positions.tolist())
        message.header.stamp = self.get_clock().now().to_msg()
        return message

    def diagnose(self) -> Iterable[Status]:
        leader = self.leader
        values: dict[str, Any] = {
            f"refused: {reason}": count for reason, count in leader.rejected.most_common(5)
        }
        if leader.ignored:
            values["not in the map"] = ", ".join(sorted(leader.ignored))
        now = time.monotonic()
        if silent := leader.silent(now):
            yield Status("leader", ERROR, silent, values)
        else:
            lately = now - self._refused_s < REFUSED_S
            yield Status("leader", WARN if lately else OK, "is heard", values)
        if self.mirror is not None:
            listeners = self._drives.get_subscription_count()
            text = "drives the leader" if self._driving else "lets the leader go"
            text += "" if listeners else f"; nobody listens on {topics.LEADER_COMMAND}"
            yield Status("drive", OK if listeners else ERROR, text)


def main() -> None:
    run(LeaderNode)


if __name__ == "__main__":
    main()
