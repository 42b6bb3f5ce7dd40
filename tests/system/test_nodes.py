"""The base of all nodes: errors do not end them, lifecycle works by hand, signals end them cleanly."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph
from lifecycle_msgs.srv import ChangeState, GetState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from recap_station.nodes import qos

pytestmark = pytest.mark.alone

FRAGILE = """
from recap_station.nodes.base import OK, Param, RecapNode, Status, run
from std_msgs.msg import String
from std_srvs.srv import Trigger

class Fragile(RecapNode):
    NAME = "fragile"
    PARAMETERS = (Param("rate_hz", 100.0, "of the loop", "Hz", 1.0, 500.0),)

    def configure(self):
        self.wanted = ["a line"]
        self.create_subscription(String, "words", self.on_word, 10)
        self.create_service(Trigger, "fall", self.fall)

    def activate(self):
        self.ticks = 0
        self.create_ticker(self.param("rate_hz"), self.tick)

    def tick(self):
        self.ticks += 1
        if self.ticks % 10 == 0:
            raise RuntimeError("every tenth tick fails")

    def on_word(self, message):
        raise KeyError(message.data)

    def fall(self, request, response):
        raise ValueError("the service fell")

    def diagnose(self):
        return [Status("wanted", OK, text) for text in self.wanted]

    def shutdown(self):
        print("shut down", flush=True)

run(Fragile)
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    with Graph(tmp_path_factory.mktemp("nodes")) as graph:
        yield graph


def test_errors_in_callbacks_are_told_and_the_node_goes_on(graph: Graph) -> None:
    statuses: dict[str, tuple[bytes, str, dict[str, str]]] = {}

    def keep(array: DiagnosticArray) -> None:
        for status in array.status:
            values = {pair.key: pair.value for pair in status.values}
            statuses[status.name] = (status.level, status.message, values)

    graph.world.create_subscription(DiagnosticArray, "/diagnostics", keep, qos.EVENT)
    words = graph.world.create_publisher(String, "words", 10)
    client = graph.world.create_client(Trigger, "fall")
    process = graph.start("fragile", code=FRAGILE, rate_hz=50)  # an integer where a float is wanted
    assert client.wait_for_service(60.0)
    words.publish(String(data="hello"))
    future = client.call_async(Trigger.Request())
    graph.wait(future.done, 30.0, "an answer of the service that fails")
    assert not future.result().success and future.result().message == "the service fell"
    graph.wait(lambda: "fragile: callbacks" in statuses, 30.0, "diagnostics")
    level, message, values = statuses["fragile: callbacks"]
    assert level == b"\x01" and "last:" in message and "fall" in values
    graph.wait(lambda: float(statuses["fragile: loop"][2]["ticks"]) > 60, 30.0, "it goes on ticking")
    assert 30 < float(statuses["fragile: loop"][2]["rate_hz"]) < 60
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(20.0) == 0 and time.monotonic() - started < 10.0
    del graph.processes["fragile"]
    assert "shut down" in graph.log("fragile") and "KeyError: 'hello'" in graph.log("fragile")


def test_without_autostart_a_manager_brings_it_up(graph: Graph) -> None:
    change = graph.world.create_client(ChangeState, "fragile/change_state")
    get = graph.world.create_client(GetState, "fragile/get_state")
    process = graph.start("managed", code=FRAGILE, autostart="false")
    assert change.wait_for_service(60.0) and get.wait_for_service(60.0)

    def transition(number: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = number
        future = change.call_async(request)
        graph.wait(future.done, 30.0, "a transition")
        return bool(future.result().success)

    def state() -> str:
        future = get.call_async(GetState.Request())
        graph.wait(future.done, 30.0, "the state")
        return str(future.result().current_state.label)

    statuses: list[str] = []

    def keep(array: DiagnosticArray) -> None:
        statuses.extend(status.message for status in array.status)

    graph.world.create_subscription(DiagnosticArray, "/diagnostics", keep, qos.EVENT)
    assert state() == "unconfigured"
    graph.wait(lambda: "not configured" in statuses, 30.0, "diagnostics of a node that is not configured")
    assert transition(1) and state() == "inactive"
    assert transition(3) and state() == "active"
    assert transition(4) and state() == "inactive"
    assert transition(3) and state() == "active"
    assert transition(4) and transition(2) and state() == "unconfigured"
    graph.wait(lambda: graph.world.count_subscribers("words") == 0, 30.0, "cleanup to release what is heard")
    assert transition(1) and transition(3) and state() == "active"
    graph.wait(lambda: graph.world.count_subscribers("words") == 1, 30.0, "what is heard, once again")
    process.send_signal(signal.SIGINT)
    assert process.wait(20.0) == 0
    assert "Traceback" not in graph.log("managed")
    del graph.processes["managed"]


@pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="these tests run under nohup, as nodes then do"
)
def test_a_closed_terminal_ends_a_node_as_a_ctrl_c_does(graph: Graph) -> None:
    process = graph.start("hung_up", code=FRAGILE)
    assert graph.world.create_client(Trigger, "fall").wait_for_service(60.0)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20.0) == 0
    assert "shut down" in graph.log("hung_up")
    del graph.processes["hung_up"]
