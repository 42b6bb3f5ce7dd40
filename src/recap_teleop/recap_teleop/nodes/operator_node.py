"""The scripted operator in the graph: stands in for a person with a pedal and leader arms."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from recap_interfaces.msg import Episode, SimTruth
from sensor_msgs.msg import JointState, Joy

from recap_station import topics
from recap_station.nodes import qos
from recap_station.nodes.base import OK, WARN, Param, RecapNode, Status, run, to_ns
from recap_station.sim.truth import Truth
from recap_teleop.operator import Operator


class OperatorNode(RecapNode):
    """Publishes `joy` at 50 Hz always, and `teleop/joint_command` while it presses."""

    NAME = "operator"
    PARAMETERS = (Param("seed", 0, "of its moods", "", 0, 2**31 - 1),)

    def configure(self) -> None:
        self.operator = Operator(self.station, self.task, self.param("seed"))
        self._truth: Truth | None = None
        self._state: np.ndarray | None = None
        self._episode = Episode()
        self._started_s = 0.0
        self._started_ns = 0
        self._pressed = False
        self._presses = 0
        self._joy = self.create_publisher(Joy, topics.JOY, qos.EVENT)
        self._commands = self.create_publisher(JointState, topics.TELEOP_COMMAND, qos.COMMAND)
        self.create_subscription(SimTruth, topics.SIM_TRUTH, self._on_truth, qos.EVENT)
        self.create_subscription(JointState, topics.JOINT_STATES, self._on_state, qos.COMMAND)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)

    def activate(self) -> None:
        self.create_ticker(self.station.control_rate_hz, self._tick)

    def _on_truth(self, message: SimTruth) -> None:
        if to_ns(message.header.stamp) >= self._started_ns:
            qpos = np.array(message.qpos)
            self._truth = Truth(message.stage, message.success, message.failure, qpos)

    def _on_state(self, message: JointState) -> None:
        self._state = self.station.vector(message.name, message.position)

    def _on_episode(self, message: Episode) -> None:
        if message.state == Episode.RUNNING and message.id != self._episode.id:
            self.operator.reset()
            self._truth = None  # the one known is of the attempt before
            self._started_s = time.monotonic()
            self._started_ns = to_ns(message.header.stamp)
        if message.state == Episode.RUNNING or message.id == self._episode.id:
            self._episode = message

    def _tick(self) -> None:
        pressed = False
        command = None
        if self._episode.state == Episode.RUNNING and self._truth is not None and self._state is not None:
            output = self.operator.update(self._truth, self._state, time.monotonic() - self._started_s)
            pressed, command = output.pressed, output.command
        stamp = self.get_clock().now().to_msg()
        joy = Joy(buttons=[int(pressed)])
        joy.header.stamp = stamp
        if pressed and not self._pressed:
            self._presses += 1
            self.get_logger().info(f"takes over: {output.reason}")
        elif self._pressed and not pressed:
            self.get_logger().info("hands back")
        self._pressed = pressed
        if command is not None:  # before the press is heard, so that its first tick has something to follow
            message = JointState(name=list(self.station.joint_names), position=command.tolist())
            message.header.stamp = stamp
            self._commands.publish(message)
        self._joy.publish(joy)

    def diagnose(self) -> Iterable[Status]:
        blind = self._episode.state == Episode.RUNNING and self._truth is None
        text = "sees no truth" if blind else "drives" if self._pressed else "watches"
        yield Status("operator", WARN if blind else OK, text, {"presses": self._presses})


def main() -> None:
    run(OperatorNode)


if __name__ == "__main__":
    main()
