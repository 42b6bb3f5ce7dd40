"""Stands in for a value function: rises while the policy commands, wavers, falls, as an attempt's would."""

from __future__ import annotations

import contextlib
import math

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from recap_interfaces.msg import Episode, ValueEstimate

from recap_station import topics
from recap_station.nodes import qos
from recap_station.parent import end_with_starter


class Value(Node):
    def __init__(self) -> None:
        super().__init__("value")
        self.elapsed_s = 0.0
        self.running = False
        self.out = self.create_publisher(ValueEstimate, topics.VALUE, qos.EVENT)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.create_timer(0.1, self._tick)

    def _on_episode(self, message: Episode) -> None:
        self.running = message.state == Episode.RUNNING
        self.elapsed_s = message.elapsed_s

    def _tick(self) -> None:
        if not self.running:
            return
        self.elapsed_s += 0.1
        value = -0.45 + 0.012 * self.elapsed_s + 0.1 * math.sin(0.5 * self.elapsed_s)
        message = ValueEstimate(value=min(0.0, value), checkpoint="stand-in")
        message.header.stamp = self.get_clock().now().to_msg()
        self.out.publish(message)


def main() -> None:
    end_with_starter()
    rclpy.init()
    node = Value()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__":
    main()
