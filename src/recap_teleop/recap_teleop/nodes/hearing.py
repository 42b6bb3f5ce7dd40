"""Filling a Board from the graph, and calling the cell's services: for nodes that show a cell to a person.

Messages are fetched by hand, all that have come, with the time that each was received at: woken by every one
of several hundred a second, rclpy's executor would need a core and fall behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from recap_interfaces.msg import ControlMode, Episode, ValueEstimate
from recap_interfaces.srv import EndEpisode, MarkStage, StartEpisode
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from recap_station import topics
from recap_station.nodes import qos
from recap_station.nodes.base import message_type, to_ns
from recap_teleop.board import Board
from recap_teleop.requests import CALL_S, Request

LONGEST_AGE_S = 86400.0  # an older latched message was stamped by another clock
# The other services are Triggers.
TYPES = {"start_episode": StartEpisode, "end_episode": EndEpisode, "mark_stage": MarkStage}


class ByHand(CallbackGroup):
    """Keeps its subscriptions out of the executor."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        raise AssertionError("nothing of this group is executed")


class Hearing:
    """Subscriptions of `node` that fill `board` when `fetch` is called."""

    def __init__(self, node: Node, board: Board) -> None:
        self._node, self.board = node, board
        self._by_hand = ByHand()
        self._heard: dict[str, tuple[Any, list[Callable[[Any, float], None]]]] = {}
        self.hear(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self.hear(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.hear(Joy, topics.JOY, self._on_joy, qos.EVENT)
        self.hear(ValueEstimate, topics.VALUE, self._on_value, qos.EVENT)
        self.hear(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.RECORD)

    def fetch(self) -> None:
        """Take in all that has come. Receipt is stamped by the system's clock: what counts is its age."""
        for subscription, listeners in self._heard.values():
            take = subscription.handle.take_message
            while (taken := take(subscription.msg_type, subscription.raw)) is not None:
                message, about = taken
                ago_s = max(0, time.time_ns() - about["received_timestamp"]) / 1e9
                for take_in in listeners:
                    take_in(message, time.monotonic() - min(ago_s, 1.0))

    def hear(
        self, kind: Any, topic: str, take_in: Callable[[Any, float], None], profile: Any, raw: bool = False
    ) -> None:
        """Give `take_in` every message of the topic, and when it was received on the steady clock. Several
        may hear one topic, in the form that the first of them asked for."""
        if topic in self._heard:
            self._heard[topic][1].append(take_in)
            return
        subscription = self._node.create_subscription(
            kind, topic, lambda message: None, profile, callback_group=self._by_hand, raw=raw
        )
        self._heard[topic] = (subscription, [take_in])

    def watch(self, topic: str, kind: str) -> None:
        """Count the topic's messages, as raw bytes: nothing is read of them."""
        if topic not in self._heard:
            counted = lambda _, at_s: self.board.heard(topic, at_s)  # noqa: E731
            self.hear(message_type(kind), topic, counted, qos.RECORD, raw=True)

    def _on_mode(self, message: ControlMode, at_s: float) -> None:
        self.board.mode(message.mode, message.source, message.reason, at_s)

    def _on_episode(self, message: Episode, at_s: float) -> None:
        age_s = (self._node.get_clock().now().nanoseconds - to_ns(message.header.stamp)) / 1e9
        names = ("id", "state", "outcome", "reason", "task", "seed", "elapsed_s", "time_limit_s")
        fields = {name: getattr(message, name) for name in names}
        fields |= {name: getattr(message, name, "") for name in ("stage", "message")}  # of later versions
        self.board.episode(at_s, age_s if 0.0 <= age_s <= LONGEST_AGE_S else 0.0, **fields)

    def _on_joy(self, message: Joy, at_s: float) -> None:
        self.board.joy(any(message.buttons), at_s)

    def _on_value(self, message: ValueEstimate, at_s: float) -> None:
        self.board.value(message.value, at_s)

    def _on_diagnostics(self, message: DiagnosticArray, at_s: float) -> None:
        for status in message.status:
            level = int.from_bytes(status.level, "little")
            values = {pair.key: pair.value for pair in status.values}
            self.board.status(status.name, level, status.message, values, at_s)


@dataclass
class _Call:
    request: Request
    asked_s: float
    done: Callable[[str, bool], None]
    future: Future | None = None  # None until it could be sent


class Calls:
    """Service calls that nobody waits for: `serve`, called again and again, sends and takes in answers."""

    def __init__(self, node: Node, services: Iterable[str], asked_by: str) -> None:
        self._asked_by = asked_by
        # Made now: the first call must find its service known, not begin to look for it.
        self._clients = {name: node.create_client(TYPES.get(name, Trigger), name) for name in services}
        self._calls: list[_Call] = []

    def ask(self, request: Request, done: Callable[[str, bool], None]) -> None:
        """`done` gets the answer's text and whether it was granted."""
        self._calls.append(_Call(request, time.monotonic(), done))

    def serve(self) -> None:
        """Send what can be sent, take in answers, end calls whose time is over."""
        for call in list(self._calls):
            request, waited_s = call.request, time.monotonic() - call.asked_s
            client = self._clients[request.service]
            if call.future is None and client.service_is_ready():
                call.future = client.call_async(self._message(request))
            if call.future is None:
                if waited_s <= CALL_S:
                    continue
                call.done(f"{request.service}: no such service is there", False)
            elif call.future.done():
                answer = call.future.result()
                call.done(answer.message if answer else "no answer", bool(answer and answer.success))
            elif waited_s > request.patience_s:
                call.done(f"{request.service}: no answer in {request.patience_s:.0f} s", False)
                client.remove_pending_request(call.future)
            else:
                continue
            self._calls.remove(call)

    def _message(self, request: Request) -> Any:
        message = TYPES.get(request.service, Trigger).Request()
        if isinstance(message, EndEpisode.Request):
            message.outcome, message.reason = request.outcome, self._asked_by
        elif isinstance(message, StartEpisode.Request):
            message.seed = -1
        elif isinstance(message, MarkStage.Request):
            message.stage = request.stage
        return message
