"""The operator's view in the graph: hears it, calls its services, and drives the terminal. `./recap operate`.

    python -m recap.nodes.operate_node --once --json

One thread: messages are taken in, keys are read and lines are drawn in turn. Messages are fetched 25 times
a second, all that have come, with the time that each was received at: woken by every one of several hundred
a second, rclpy's executor would need a core and fall behind. It is an ordinary process beside the cell's: it
can end, hang or be closed at any moment without the robot noticing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters
from rclpy.callback_groups import CallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from recap_interfaces.msg import ControlMode, Episode, ValueEstimate
from recap_interfaces.srv import EndEpisode, StartEpisode
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from recap.operate import view
from recap.operate.actions import CALL_S, QUIT, Hands, Request, Told
from recap.operate.model import Board, Snapshot, wanted_topics
from recap.operate.terminal import Terminal, TerminalGone
from recap_station import topics
from recap_station.contract import ContractError, load_station
from recap_station.nodes import qos
from recap_station.nodes.base import message_type, to_ns
from recap_station.nodes.discovery import announce_often
from recap_teleop.keys import ACTIONS, split_keys, unfinished

FETCH_S = 0.04  # a key is noticed at once
DRAW_S = 0.1
MEASURE_S = 2.5  # --once: rates and two rounds of /diagnostics
ANEW_S = 10.0  # everything is drawn again so often, in case something else wrote on the terminal
LONGEST_AGE_S = 86400.0  # an older latched message was stamped by another clock
SERVICES = {"start_episode": StartEpisode, "end_episode": EndEpisode}  # the others are Triggers


class ByHand(CallbackGroup):
    """Keeps its subscriptions out of the executor."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        raise AssertionError("nothing of this group is executed")


class OperateError(RuntimeError):
    """There is nothing to operate. One readable line."""


@dataclass
class _Call:
    request: Request
    asked_s: float
    future: Future | None = None  # None until it could be sent


class OperateNode(Node):
    """Keeps a Board of what it hears; `ask` calls a service, and its answer becomes the board's."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"operate_{os.getpid()}", namespace=namespace.strip("/") or None)
        self.board = Board(os.environ.get("ROS_DOMAIN_ID", "0"), namespace, wanted_topics(0.0, ()))
        self._calls: list[_Call] = []
        # Made now: the first key must find its service known, not begin to look for it.
        self._clients_by_name = {
            name: self.create_client(SERVICES.get(name, Trigger), name)
            for name in {*(action.service for action in ACTIONS.values()), "take_over", "hand_back"} - {""}
        }
        self._contract: Future | None = None
        self._contract_known = False
        self._contract_s = 0.0
        self._contract_client = self.create_client(GetParameters, "arbiter/get_parameters")
        self._by_hand = ByHand()
        self._heard: list[tuple[Any, Callable[[Any, float], None]]] = []
        self._watched: set[str] = set()
        self._hear(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self._hear(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self._hear(Joy, topics.JOY, self._on_joy, qos.EVENT)
        self._hear(ValueEstimate, topics.VALUE, self._on_value, qos.EVENT)
        self._hear(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.RECORD)
        joints = (topics.POLICY_COMMAND, topics.TELEOP_COMMAND, topics.JOINT_STATES, topics.JOINT_COMMAND)
        for topic in joints:
            self._watch(topic, topics.JOINT_STATE_TYPE)

    # --- what comes in ------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Take in all that has come. Receipt is stamped by the system's clock: what counts is its age."""
        for subscription, take_in in self._heard:
            take = subscription.handle.take_message
            while (taken := take(subscription.msg_type, subscription.raw)) is not None:
                message, about = taken
                ago_s = max(0, time.time_ns() - about["received_timestamp"]) / 1e9
                take_in(message, time.monotonic() - min(ago_s, 1.0))

    def _hear(
        self, kind: Any, topic: str, take_in: Callable[[Any, float], None], profile: Any, raw: bool = False
    ) -> None:
        subscription = self.create_subscription(
            kind, topic, lambda message: None, profile, callback_group=self._by_hand, raw=raw
        )
        self._heard.append((subscription, take_in))

    def _watch(self, topic: str, kind: str) -> None:
        """Count the topic's messages, as raw bytes: nothing is read of them."""
        if topic not in self._watched:
            self._watched.add(topic)
            counted = lambda _, at_s: self.board.heard(topic, at_s)  # noqa: E731
            self._hear(message_type(kind), topic, counted, qos.RECORD, raw=True)

    def _on_mode(self, message: ControlMode, at_s: float) -> None:
        self.board.mode(message.mode, message.source, message.reason, at_s)

    def _on_episode(self, message: Episode, at_s: float) -> None:
        age_s = (self.get_clock().now().nanoseconds - to_ns(message.header.stamp)) / 1e9
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

    def look(self) -> None:
        """Ask the arbiter once which robot this is, so that its cameras can be watched at their rates."""
        if self._contract_known:
            return
        now = time.monotonic()
        if self._contract is None:
            if self._contract_client.service_is_ready():
                self._contract = self._contract_client.call_async(GetParameters.Request(names=["station"]))
                self._contract_s = now
        elif not self._contract.done():
            if now - self._contract_s > CALL_S:
                self._contract_client.remove_pending_request(self._contract)
                self._contract = None
        else:
            answer = self._contract.result()
            self._contract_known = True
            try:
                station = load_station(answer.values[0].string_value) if answer else None
            except (ContractError, IndexError) as error:
                self.board.said(f"which cameras there are is not known: {error}", good=False)
                return
            if station is not None:
                cameras = [(camera.name, camera.rate_hz) for camera in station.cameras]
                self.board.wanted = wanted_topics(station.control_rate_hz, cameras)
                for camera, _ in cameras:
                    self._watch(topics.image_topic(camera), topics.IMAGE_TYPE)

    # --- what goes out ------------------------------------------------------------------------------

    def ask(self, request: Request) -> None:
        self._calls.append(_Call(request, time.monotonic()))
        self.board.asked(request.service)
        self.board.said(request.text, good=None)

    def serve_calls(self) -> None:
        """Send what can be sent, take in answers, end calls whose time is over."""
        for call in list(self._calls):
            request, waited_s = call.request, time.monotonic() - call.asked_s
            client = self._clients_by_name[request.service]
            if call.future is None and client.service_is_ready():
                call.future = client.call_async(_message(request))
            if call.future is None:
                if waited_s <= CALL_S:
                    continue
                self.board.said(f"{request.service}: no such service is there", good=False)
            elif call.future.done():
                answer = call.future.result()
                self.board.said(answer.message if answer else "no answer", bool(answer and answer.success))
            elif waited_s > request.patience_s:
                self.board.said(f"{request.service}: no answer in {request.patience_s:.0f} s", good=False)
                client.remove_pending_request(call.future)
            else:
                continue
            self._calls.remove(call)


def _message(request: Request) -> Any:
    """Request → the service's."""
    message = SERVICES.get(request.service, Trigger).Request()
    if isinstance(message, EndEpisode.Request):
        message.outcome, message.reason = request.outcome, "operator"
    elif isinstance(message, StartEpisode.Request):
        message.seed = -1
    return message


class Session:
    """One run of the view: waiting for the cell, then keys and lines until somebody ends it."""

    def __init__(self, node: OperateNode, wait_s: float) -> None:
        self.node = node
        self.ended = False
        self._wait_s = wait_s
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._hands = Hands()

    def end(self, *_: object) -> None:
        self.ended = True

    def listen(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        while not (self.ended or until()) and time.monotonic() < deadline:
            time.sleep(FETCH_S)
            self._take_in()

    def _take_in(self) -> None:
        self.node.fetch()
        self._executor.spin_once(timeout_sec=0.0)  # answers of services
        self.node.look()
        self.node.serve_calls()

    def snapshot(self) -> Snapshot:
        return self.node.board.snapshot(time.monotonic())

    def find(self) -> None:
        """Wait for an arbiter. Raises OperateError, with what there is instead, when none was heard."""
        board = self.node.board
        self.listen(self._wait_s, lambda: board.complete)
        if board.complete or self.ended:
            return
        where = f"ROS domain {board.domain}, namespace /{board.namespace.strip('/')}"
        heard = f"only {', '.join(nodes)} in /diagnostics" if (nodes := self.snapshot().nodes) else "nothing"
        raise OperateError(
            f"no arbiter in {where}: waited {self._wait_s:g} s for control_mode, heard {heard}; "
            "./recap up starts a cell, ROS_DOMAIN_ID and --namespace choose where to look"
        )

    def once(self) -> Snapshot:
        """The cell as it stands, after a while of listening."""
        self.find()
        self.listen(MEASURE_S)
        return self.snapshot()

    def show(self, terminal: Terminal) -> None:
        """Draw and take keys until the quit key or a signal. Raises TerminalGone."""
        glyphs = view.Glyphs() if terminal.unicode else view.ASCII
        drawn_s = anew_s = 0.0
        said = begun = ""
        size = terminal.size
        while not self.ended:
            typed = terminal.typed(FETCH_S)
            # The rest of a key's sequence follows at once: what stays alone was an escape.
            typed, begun = begun * bool(typed) + typed, unfinished(typed)
            keys = split_keys(typed.removesuffix(begun) if begun else typed)
            self._take_in()
            for key in keys:
                self._press(key)
            now = time.monotonic()
            if terminal.dumb:
                line = view.one_line(self.snapshot())
                answer = self.node.board.answer
                for text in (line, answer):
                    if text and text not in said:
                        terminal.say(text)
                said = f"{line}\n{answer}"
            elif keys or now - drawn_s >= DRAW_S or terminal.size != size:
                anew = now - anew_s >= ANEW_S
                anew_s, drawn_s, size = now if anew else anew_s, now, terminal.size
                terminal.draw(view.lines(self.snapshot(), *size, glyphs), anew)

    def _press(self, key: str) -> None:
        if key == QUIT:
            self.end()
            return
        wish = self._hands.press(key, self.snapshot(), time.monotonic())
        if isinstance(wish, Told):
            self.node.board.said(wish.text, wish.good)
        elif wish is not None:
            self.node.ask(wish)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="recap operate", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--namespace", default="", help="of the cell")
    parser.add_argument("--once", action="store_true", help="print the state once")
    parser.add_argument("--json", action="store_true", help="as one line of JSON, once")
    parser.add_argument("--wait", type=float, default=10.0, help="for an arbiter to be heard [s]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    once = options.once or options.json
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("recap: operate wants a terminal; --once prints the state without one", file=sys.stderr)
        return 2
    # What ROS logs would end up between the lines.
    quiet = ["--ros-args", "--log-level", "fatal"]
    announce_often()
    rclpy.init(args=quiet, signal_handler_options=SignalHandlerOptions.NO)
    node = OperateNode(options.namespace)
    session = Session(node, options.wait)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, session.end)
    try:
        if once:
            _print(session.once(), options.json)
        else:
            print(f"recap: looking for an arbiter in ROS domain {node.board.domain} ...", file=sys.stderr)
            session.find()
            with Terminal(sys.stdin.fileno(), sys.stdout.fileno(), os.environ) as terminal:
                session.show(terminal)
    except (TerminalGone, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left to say
        return 1
    except OperateError as error:
        print(f"recap: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        return 1
    finally:
        node.destroy_node()
        rclpy.shutdown()
    return 0


def _print(now: Snapshot, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"ok": True, **now.to_dict()}))
        return
    for line in view.lines(now, 100, 60, view.ASCII if os.environ.get("TERM") == "dumb" else view.Glyphs()):
        if line.plain:
            print(line.plain)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
