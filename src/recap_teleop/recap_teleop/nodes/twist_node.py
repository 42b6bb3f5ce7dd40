"""Twists in the graph: `twist/left`, `twist/right` move the tips; `teleop/joint_command` at 50 Hz."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from geometry_msgs.msg import Twist, TwistStamped, Vector3
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Float64

from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, Param, RecapNode, Status, run, to_ns
from recap_teleop.kinematics import load_chains
from recap_teleop.twist import TwistSettings, TwistTeleop

_D = TwistSettings()
CLOSE, OPEN = 0, 1  # buttons of a twist device


class TwistNode(RecapNode):
    NAME = "twist"
    PARAMETERS = (
        Param("arms", "", "arms that a person drives, such as left; empty: all. Each of them must be heard"),
        Param("stamped", True, "twists are geometry_msgs/TwistStamped; false: geometry_msgs/Twist"),
        Param("frame", _D.frame, "of the twists: station, base (of the arm) or tip"),
        Param("max_linear", _D.max_linear, "fastest motion of a tip", "m/s", 0.001, 2.0),
        Param("max_angular", _D.max_angular, "fastest turning of a tip", "rad/s", 0.001, 10.0),
        Param("gripper_speed", _D.gripper_speed, "while a button is held", "ranges/s", 0.01, 10.0),
        Param(
            "timeout_s", _D.timeout_s, "silence of a twist after which nothing is commanded", "s", 0.02, 5.0
        ),
        Param("max_age_s", 0.5, "farthest that a stamp may lie from now", "s", 0.02, 60.0),
    )

    def configure(self) -> None:
        names = ("frame", "max_linear", "max_angular", "gripper_speed", "timeout_s")
        settings = TwistSettings(**{name: self.param(name) for name in names})
        arms = [arm.strip() for arm in self.param("arms").split(",") if arm.strip()]
        self.teleop = TwistTeleop(self.station, load_chains(self.param("station")), arms, settings)
        self._commands = self.create_publisher(JointState, topics.TELEOP_COMMAND, qos.COMMAND)
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.COMMAND)
        kind, heard = (TwistStamped, self._on_stamped) if self.param("stamped") else (Twist, self._on_twist)
        for arm in self.teleop.arms:
            self._subscribe(kind, topics.twist_topic(arm), heard, arm)
            self._subscribe(Float64, topics.gripper_topic(arm), self._on_gripper, arm)
            self._subscribe(Joy, topics.twist_joy_topic(arm), self._on_joy, arm)

    def _subscribe(self, kind: Any, topic: str, heard: Callable[..., None], arm: str) -> None:
        self.create_subscription(kind, topic, partial(heard, arm), qos.COMMAND)

    def activate(self) -> None:
        self.create_ticker(self.station.control_rate_hz, self._tick)

    def _on_stamped(self, arm: str, message: TwistStamped) -> None:
        age_s = (self.now_ns() - to_ns(message.header.stamp)) / 1e9
        if abs(age_s) > self.param("max_age_s"):
            limit = self.param("max_age_s")
            raise ContractError(f"twist of {arm} is stamped {age_s:.2f} s ago, wanted less than {limit:g} s")
        self._on_twist(arm, message.twist)

    def _on_twist(self, arm: str, message: Twist) -> None:
        self.teleop.hear(arm, time.monotonic(), _three(message.linear), _three(message.angular))

    def _on_gripper(self, arm: str, message: Float64) -> None:
        self.teleop.hear_opening(arm, message.data)

    def _on_joy(self, arm: str, message: Joy) -> None:
        if len(message.buttons) <= OPEN:
            raise ContractError(
                f"joy of {arm} has {len(message.buttons)} buttons, wanted 0 (close), 1 (open)"
            )
        self.teleop.hear_squeeze(
            arm, time.monotonic(), bool(message.buttons[CLOSE]), bool(message.buttons[OPEN])
        )

    def _on_command(self, message: JointState) -> None:
        positions = self.station.vector(message.name, message.position)
        self.teleop.follow(time.monotonic(), positions, message.header.frame_id == "teleop")

    def _tick(self) -> None:
        command = self.teleop.tick(time.monotonic())
        if command is not None:
            message = JointState(name=list(self.station.joint_names), position=command.tolist())
            message.header.stamp = self.get_clock().now().to_msg()
            self._commands.publish(message)

    def diagnose(self) -> Iterable[Status]:
        silent = self.teleop.silent(time.monotonic())
        arms = ", ".join(self.teleop.arms)
        yield Status("twist", ERROR if silent else OK, silent or f"{arms} heard")


def _three(vector: Vector3) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def main() -> None:
    run(TwistNode)


if __name__ == "__main__":
    main()
