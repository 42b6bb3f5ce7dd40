"""Plays a bag into the graph: every message as it was recorded, at the pace it was received in.

    python -m recap_station.nodes.replay_node --ros-args -p bag:=bags/one -p rate:=1.0

Bags of any recorder that `recap_station.bag_reader` reads. Nothing is dropped: a publisher that is not
listened to fast enough waits. Topics whose type is not installed are named and left out.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rclpy._rclpy_pybind11 import RCLError
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from recap_station import topics
from recap_station.bag_reader import BagReader
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import OK, Param, RecapNode, Status, message_type, run

PERIOD_S = 0.005
LISTEN_S = 2.0  # since the last topic found a listener
LINGER_S = 2.0  # from the last message to the end: listeners take it in before a launch ends them too
ACKED_S = 5.0  # to wait for listeners that are behind
AT_ONCE = 50  # messages in one turn: between turns the node answers
WHOLE = QoSProfile(
    history=HistoryPolicy.KEEP_ALL,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)


class ReplayNode(RecapNode):
    NAME = "replay"
    PARAMETERS = (
        Param("bag", "", "bag to play: a folder or a file"),
        Param("rate", 1.0, "pace, in times real time", "", 0.01, 1000.0),
        Param("wait_s", 10.0, "for listeners, before it begins without", "s", 0.0, 3600.0),
        Param("stay", False, "stay when the bag has been played, for late listeners of latched topics"),
    )

    def configure(self) -> None:
        if not self.param("bag"):
            raise ContractError("parameter bag is empty, wanted a bag's folder or file")
        self.reader = BagReader(self.param("bag"))
        self._publishers_of: dict[str, Any] = {}
        for topic, kind in self.reader.topics.items():
            try:
                profile = qos.for_topic(topic, recording=True) if topic in topics.LATCHED else WHOLE
                self._publishers_of[topic] = self.create_publisher(message_type(kind), topic, profile)
            except ContractError as error:
                self.get_logger().warning(f"{topic} is left out: {error}")
        self._messages: Iterator[tuple[str, int, bytes]] = self.reader.messages(self._publishers_of)
        self._next: tuple[str, int, bytes] | None = next(self._messages, None)
        self._begun: tuple[float, int] | None = None  # steady clock, time of receipt
        self._waiting_since = self._listened_since = time.monotonic()
        self._listened: list[str] = []
        self._played = 0

    def activate(self) -> None:
        self._timer = self.create_timer(PERIOD_S, self._turn)

    def _turn(self) -> None:
        if self._begun is None:
            if self._next is None:
                return self._end()
            if not self._heard(time.monotonic()):
                return None
            self._begun = (time.monotonic(), self._next[1])
        begun_s, first_ns = self._begun
        due_ns = first_ns + (time.monotonic() - begun_s) * self.param("rate") * 1e9
        for _ in range(AT_ONCE):
            if self._next is None:
                return self._end()
            topic, time_ns, cdr = self._next
            if time_ns > due_ns:
                return None
            try:
                self._publishers_of[topic].publish(cdr)
            except RCLError:  # listeners are behind: the same again in the next turn
                return None
            self._played += 1
            self._next = next(self._messages, None)
        return None

    def _heard(self, now_s: float) -> bool:
        """Whether somebody listens, and no more topics have been listened to for a while."""
        topics_heard = [t for t, one in self._publishers_of.items() if one.get_subscription_count()]
        if topics_heard != self._listened:
            self._listened, self._listened_since = topics_heard, now_s
        settled = bool(topics_heard) and now_s - self._listened_since > LISTEN_S
        return settled or now_s - self._waiting_since > self.param("wait_s")

    def _end(self) -> None:
        self._timer.cancel()
        for line in self.reader.damage:
            self.get_logger().warning(line)
        self.get_logger().info(f"played {self._played} messages of {self.reader.path}")
        if not self.param("stay"):
            self._timer = self.create_timer(LINGER_S, self._leave)

    def _leave(self) -> None:
        self._timer.cancel()
        for publisher in self._publishers_of.values():
            publisher.wait_for_all_acked(Duration(seconds=ACKED_S))
        os.kill(os.getpid(), signal.SIGINT)

    def diagnose(self) -> Iterable[Status]:
        text = "waiting for listeners" if self._begun is None else f"{self._played} messages played"
        yield Status("replay", OK, text, {"played": self._played})


def main() -> None:
    run(ReplayNode)


if __name__ == "__main__":
    main()
