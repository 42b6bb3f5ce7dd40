"""The lifecycle manager over real ROS 2: nodes in processes of their own come up, are named and come back."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph
from lifecycle_msgs.msg import TransitionEvent
from std_srvs.srv import Trigger

from recap_station.nodes import qos

pytestmark = pytest.mark.alone

NODE = """
import pathlib
from recap_station.contract import ContractError
from recap_station.nodes.base import RecapNode, run
from std_msgs.msg import String

class Toy(RecapNode):
    NAME = "{name}"

    def configure(self):
        self.create_subscription(String, "words", print, 10)
        if pathlib.Path("{wish}").exists():
            raise ContractError("wanted a camera, found none")

run(Toy)
"""
NAMES = ["first", "second", "third"]
WORDS = "[first, 'second:first', 'third:second']"


class Managed:
    """Three nodes that wait, a manager, and what is heard of them."""

    def __init__(self, folder: Path) -> None:
        self.graph = Graph(folder)
        self.states: dict[str, tuple[int, str]] = {}
        self.transitions: list[tuple[str, str]] = []
        self.refuses = folder / "refuse"
        world = self.graph.world
        world.create_subscription(DiagnosticArray, "managed_nodes", self._on_summary, qos.LATCHED)
        for name in NAMES:
            topic, heard = f"{name}/transition_event", self._heard(name)
            world.create_subscription(TransitionEvent, topic, heard, qos.RECORD)
        self.clients = {name: world.create_client(Trigger, name) for name in ("bring_up", "shut_down")}

    def _heard(self, name: str) -> Callable[[TransitionEvent], None]:
        return lambda event: self.transitions.append((name, event.goal_state.label))

    def _on_summary(self, message: DiagnosticArray) -> None:
        for status in message.status:
            level = int.from_bytes(status.level, "little")
            self.states[status.name.removeprefix("lifecycle_manager: ")] = (level, status.message)

    def start(self, name: str, autostart: str = "false") -> None:
        wish = self.refuses if name == "second" else "never"
        self.graph.start(name, code=NODE.format(name=name, wish=wish), autostart=autostart)

    def start_manager(self, **parameters: Any) -> None:
        self.graph.start(
            "manager", "recap.nodes.lifecycle_manager_node", nodes=WORDS, retry_s=0.5, **parameters
        )

    def wait(self, name: str, text: str, level: int) -> None:
        def there() -> bool:
            found = self.states.get(name, (-1, ""))
            return found[0] == level and text in found[1]

        try:
            self.graph.wait(there, 90.0, f"{name}: {text}")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.states}; {self.graph.log('manager')}") from None

    def call(self, service: str) -> Trigger.Response:
        client = self.clients[service]
        assert client.wait_for_service(60.0)
        future = client.call_async(Trigger.Request())
        self.graph.wait(future.done, 90.0, f"an answer of {service}")
        answer = future.result()
        assert answer is not None
        return answer

    def reached(self) -> list[tuple[str, str]]:
        """The resting states that nodes came to, in the order heard."""
        return [one for one in self.transitions if one[1] in ("inactive", "active", "unconfigured")]


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Managed]:
    cell = Managed(tmp_path)
    with cell.graph:
        yield cell


def test_all_come_up_in_order_and_go_down_in_reverse(cell: Managed) -> None:
    for name in reversed(NAMES):
        cell.start(name)
    for name in NAMES:
        topic = f"{name}/transition_event"
        cell.graph.wait(lambda topic=topic: cell.graph.world.count_publishers(topic), 60.0, topic)
    cell.start_manager(patience_s=60.0)
    cell.wait("nodes", "3 of 3 nodes active", 0)
    up = [(name, state) for name in NAMES for state in ("inactive", "active")]
    cell.graph.wait(lambda: len(cell.reached()) >= 6, 30.0, "their own words")
    assert cell.reached() == up
    answer = cell.call("shut_down")
    assert answer.success and answer.message == "0 of 3 nodes active, wanted none"
    down = [(name, state) for name in reversed(NAMES) for state in ("inactive", "unconfigured")]
    cell.graph.wait(lambda: len(cell.reached()) >= 12, 30.0, "their own words")
    assert cell.reached()[6:] == down
    answer = cell.call("bring_up")
    assert answer.success and answer.message == "3 of 3 nodes active"
    manager = cell.graph.processes.pop("manager")
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(30.0) == 0
    assert cell.reached()[-1] == ("third", "active")  # its end stops nobody


def test_a_missing_node_is_named_and_a_refusal_is_told_with_its_reason(cell: Managed) -> None:
    cell.refuses.touch()
    cell.start("second")
    cell.start_manager(patience_s=2.0)
    cell.wait("first", "missing: no answer", 2)
    cell.wait("second", "unconfigured: waits for first", 1)
    answer = cell.call("bring_up")
    assert not answer.success and "missing: first, third" in answer.message
    cell.start("first")
    cell.wait("second", "refused to configure", 2)
    cell.wait("second", "wanted a camera, found none", 2)
    cell.start("third")
    cell.wait("third", "unconfigured: waits for second", 1)
    cell.wait("nodes", "refused: second; waiting: third", 2)
    log = cell.graph.log("manager")
    assert re.search(r"ERROR.* first: missing: no answer of its lifecycle for \d+ s", log)
    assert "wanted a camera, found none" in log
    subscribers = cell.graph.world.count_subscribers("words")
    assert subscribers <= 1  # each refusal took back what it had made: only first's is there
    cell.refuses.unlink()
    cell.wait("nodes", "3 of 3 nodes active", 0)


@pytest.mark.parametrize("autostart", ["false", "true"])
def test_a_killed_node_is_missed_and_comes_back(cell: Managed, autostart: str) -> None:
    for name in NAMES:
        cell.start(name, autostart)
    cell.start_manager(patience_s=2.0)
    cell.wait("nodes", "3 of 3 nodes active", 0)
    cell.graph.kill("second")
    cell.wait("second", "missing", 2)
    cell.wait("nodes", "missing: second", 2)
    cell.start("second", autostart)
    cell.wait("nodes", "3 of 3 nodes active", 0)
