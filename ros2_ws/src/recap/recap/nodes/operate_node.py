"""The operator's view in the graph: hears it, calls its services, and drives the terminal. `./recap operate`.

    python -m recap.nodes.operate_node --once --json

One thread: messages are taken in, keys are read and lines are drawn in turn. It is an ordinary process
beside the cell's: it can end, hang or be closed at any moment without the robot noticing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable

import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from recap.operate import view
from recap.operate.actions import QUIT, Hands, Told
from recap.operate.terminal import Terminal, TerminalGone
from recap_station import topics
from recap_station.contract import ContractError, load_station
from recap_station.nodes.discovery import announce_often
from recap_teleop.board import Board, wanted_topics
from recap_teleop.keys import ACTIONS, split_keys, unfinished
from recap_teleop.nodes.hearing import Calls, Hearing
from recap_teleop.requests import CALL_S, Request
from recap_teleop.snapshot import Snapshot

FETCH_S = 0.04  # a key is noticed at once
DRAW_S = 0.1
MEASURE_S = 2.5  # --once: rates and two rounds of /diagnostics
ANEW_S = 10.0  # everything is drawn again so often, in case something else wrote on the terminal


class OperateError(RuntimeError):
    """There is nothing to operate. One readable line."""


class OperateNode(Node):
    """Keeps a Board of what it hears; `ask` calls a service, and its answer becomes the board's."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"operate_{os.getpid()}", namespace=namespace.strip("/") or None)
        self.board = Board(os.environ.get("ROS_DOMAIN_ID", "0"), namespace, wanted_topics(0.0, ()))
        services = {*(action.service for action in ACTIONS.values()), "take_over", "hand_back"} - {""}
        self._calls = Calls(self, services, "operator")
        self._contract: Future | None = None
        self._contract_known = False
        self._contract_s = 0.0
        self._contract_client = self.create_client(GetParameters, "arbiter/get_parameters")
        self._hearing = Hearing(self, self.board)
        joints = (topics.POLICY_COMMAND, topics.TELEOP_COMMAND, topics.JOINT_STATES, topics.JOINT_COMMAND)
        for topic in joints:
            self._hearing.watch(topic, topics.JOINT_STATE_TYPE)

    def take_in(self) -> None:
        """Take in messages and answers, and send what can be sent."""
        self._hearing.fetch()
        self.look()
        self._calls.serve()

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
                    self._hearing.watch(topics.image_topic(camera), topics.IMAGE_TYPE)

    def ask(self, request: Request) -> None:
        self._calls.ask(request, self.board.said)
        self.board.asked(request.service)
        self.board.said(request.text, good=None)


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
        self._executor.spin_once(timeout_sec=0.0)  # answers of services
        self.node.take_in()

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
