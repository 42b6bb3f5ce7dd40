"""Devices in a real graph: a pedal that is pressed, pulled out and plugged in again; a gamepad; leader arms;
twists.

The pedal is a fake where no virtual device can be made (`recap_teleop/devices/fake.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from diagnostic_msgs.msg import DiagnosticArray
from evdev import ecodes
from geometry_msgs.msg import TwistStamped
from graph import POLICY, STATION, Graph
from recap_interfaces.msg import ControlMode, Episode
from recap_interfaces.srv import EndEpisode
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import Trigger

from recap_station import topics
from recap_station.nodes import qos
from recap_teleop.devices.fake import FAKE, FakePedal
from recap_teleop.kinematics import load_chains

pytestmark = pytest.mark.alone

OK, ERROR = b"\x00", b"\x02"


class Cell:
    """The graph, and what it heard of the pedal node: services called, and its lines of diagnostics."""

    def __init__(self, graph: Graph):
        self.graph, self.world = graph, graph.world
        self.world.pressed = None  # the pedal is the node's
        self.calls: list[tuple[str, int]] = []
        self.told: dict[str, tuple[bytes, str]] = {}
        self.pressed: bool | None = None  # a pedal of the test's own
        self.world.create_timer(0.02, self._press)
        self.person = self.world.create_timer(0.02, self._command)
        self.world.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENT)
        self.world.create_service(EndEpisode, "end_episode", self._on_end)
        self.world.create_service(Trigger, "undo_label", self._on_undo)

    def _press(self) -> None:
        if self.pressed is not None:
            self.world.joy.publish(Joy(buttons=[int(self.pressed)]))

    def _command(self) -> None:
        self.world.teleop.publish(self.world.message(self.world.person))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.told |= {status.name: (status.level, status.message) for status in message.status}

    def _on_end(self, request: EndEpisode.Request, response: EndEpisode.Response) -> EndEpisode.Response:
        self.calls.append(("end_episode", request.outcome))
        response.success = True
        return response

    def _on_undo(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.calls.append(("undo_label", 0))
        response.success, response.message = False, "nothing to undo"
        return response

    def wait_for(self, name: str, level: bytes, text: str) -> None:
        def said() -> bool:
            found = self.told.get(name)
            return found is not None and found[0] == level and text in found[1]

        self.graph.wait(said, 60.0, f"{name} to say {text!r}")

    def wait_for_mode(self, mode: int) -> None:
        self.graph.wait(lambda: self.world.mode() == mode, 60.0, f"mode {mode}")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    with Graph(tmp_path_factory.mktemp("devices")) as graph:
        graph.start(
            "arbiter", "recap_teleop.nodes.arbiter_node", policy_timeout_s=1.0, teleop_timeout_s=1.0,
            pedal_timeout_s=1.0, state_timeout_s=2.0,
        )  # fmt: skip
        yield Cell(graph)


def start(cell: Cell, **parameters: Any) -> None:
    cell.graph.start("pedal", "recap_teleop.nodes.pedal_node", **parameters)


@pytest.mark.timeout(240)
def test_pedal_takes_over_ends_the_attempt_and_may_be_pulled_out_and_plugged_in(cell: Cell) -> None:
    foot = FakePedal(cell.graph.folder / "pedal", [ecodes.KEY_A, ecodes.KEY_B, ecodes.KEY_C])
    foot.unplug()
    start(cell, device=f"{FAKE}{foot.path}", actions="success,takeover,undo")
    cell.wait_for("pedal: device", ERROR, "No such file")  # named and missing
    foot.plug()
    cell.wait_for("pedal: device", OK, "is there")
    assert foot.grabbed
    cell.world.episode("one", Episode.RUNNING)

    foot.press(ecodes.KEY_B)
    cell.wait_for_mode(ControlMode.TELEOP)
    foot.press(ecodes.KEY_A)
    cell.graph.wait(lambda: cell.calls, 30.0, "a call of end_episode")
    assert cell.calls == [("end_episode", Episode.SUCCESS)]

    foot.unplug()  # with both down
    cell.wait_for_mode(ControlMode.HOLD)
    cell.wait_for("pedal: device", ERROR, "No such file")
    foot.plug()
    cell.wait_for("pedal: device", OK, "is there")
    foot.press(ecodes.KEY_B)
    cell.wait_for_mode(ControlMode.TELEOP)
    foot.release(ecodes.KEY_B)
    cell.graph.wait(lambda: cell.world.mode() != ControlMode.TELEOP, 30.0, "the end of the takeover")
    assert cell.calls == [("end_episode", Episode.SUCCESS)]  # neither going nor coming back asked for one

    foot.press(ecodes.KEY_C)
    cell.wait_for("pedal: asked", b"\x01", "undo: nothing to undo")
    cell.graph.kill("pedal")
    foot.unplug()


@pytest.mark.timeout(240)
def test_gamepad_takes_over_by_its_trigger(cell: Cell) -> None:
    cell.calls.clear()
    pad = cell.world.create_publisher(Joy, "gamepad/joy", qos.EVENT)
    state = Joy(buttons=[0] * 11, axes=[0.0, 0.0, 1.0])
    timer = cell.world.create_timer(0.05, lambda: pad.publish(state))
    start(cell, input="gamepad/joy", actions="'a2<-0.5=takeover,b3=discard'")
    cell.wait_for("pedal: device", OK, "gamepad/joy is heard")
    cell.world.episode("two", Episode.RUNNING)
    state.axes = [0.0, 0.0, -1.0]
    cell.wait_for_mode(ControlMode.TELEOP)
    state.buttons = [0, 0, 0, 1] + [0] * 7
    cell.graph.wait(lambda: cell.calls, 30.0, "a call of end_episode")
    assert cell.calls == [("end_episode", Episode.DISCARDED)]
    timer.cancel()  # its node dies with the trigger pulled
    cell.wait_for_mode(ControlMode.HOLD)
    cell.wait_for("pedal: device", ERROR, "gamepad/joy silent for")
    time.sleep(0.2)
    assert cell.calls == [("end_episode", Episode.DISCARDED)]
    cell.graph.kill("pedal")


@pytest.mark.timeout(240)
def test_leader_commands_while_it_is_heard_and_is_driven_while_the_policy_commands(cell: Cell) -> None:
    world, graph = cell.world, cell.graph
    cell.person.cancel()  # the person's command is the leader node's
    commands: list[JointState] = []
    drives: list[JointState] = []
    world.create_subscription(JointState, topics.TELEOP_COMMAND, commands.append, qos.RECORD)
    world.create_subscription(JointState, topics.LEADER_COMMAND, drives.append, qos.RECORD)
    leader = world.create_publisher(JointState, topics.LEADER_STATES, qos.COMMAND)
    stands = STATION.home + np.where(STATION.is_gripper, 0.0, 0.3)
    timer = world.create_timer(0.02, lambda: leader.publish(world.message(stands)))
    cell.pressed = False
    graph.start("leader", "recap_teleop.nodes.leader_node", drive="true", timeout_s=0.5)
    graph.start("policy", code=POLICY)
    world.episode("three", Episode.RUNNING)
    cell.wait_for("leader: leader", OK, "is heard")
    cell.wait_for_mode(ControlMode.POLICY)
    # From 0.3, where the leader stands, to the follower's 0; this leader's driver does not obey.
    graph.wait(lambda: drives and drives[-1].position[0] < 0.1, 60.0, "the leader to be driven")
    assert all(-1e-9 <= drive.position[0] <= 0.3 for drive in drives)
    assert commands[-1].position == pytest.approx(stands)

    cell.pressed = True
    cell.wait_for_mode(ControlMode.TELEOP)
    cell.wait_for("leader: drive", OK, "lets the leader go")
    before = len(drives)
    time.sleep(0.3)
    assert len(drives) == before
    timer.cancel()
    cell.wait_for("leader: leader", ERROR, "silent for")
    cell.wait_for_mode(ControlMode.HOLD)
    cell.pressed = None
    for name in ("leader", "policy"):
        graph.kill(name)


@pytest.mark.timeout(240)
def test_twist_moves_the_tip_from_where_it_is_and_its_silence_is_a_hold(cell: Cell) -> None:
    world, graph = cell.world, cell.graph
    cell.person.cancel()
    twist = TwistStamped()
    twist.twist.linear.y = 0.05
    publisher = world.create_publisher(TwistStamped, topics.twist_topic("left"), qos.COMMAND)

    def publish() -> None:
        twist.header.stamp = world.get_clock().now().to_msg()
        publisher.publish(twist)

    timer = world.create_timer(0.02, publish)
    cell.pressed = False
    graph.start("twist", "recap_teleop.nodes.twist_node", arms="left", timeout_s=0.5)
    cell.wait_for("twist: twist", OK, "left heard")
    chain = load_chains("aloha")["left"]
    begin = len(world.heard.commands)
    cell.pressed = True
    cell.wait_for_mode(ControlMode.TELEOP)

    def moved() -> np.ndarray:
        at = [chain.forward(world.heard.commands[i].positions[chain.index]).position for i in (begin, -1)]
        return at[1] - at[0]

    graph.wait(lambda: moved()[1] > 0.05, 60.0, "the tip to move")
    assert np.abs(moved()[[0, 2]]).max() < 2e-3
    timer.cancel()
    cell.wait_for("twist: twist", ERROR, "twist of left silent for")
    cell.wait_for_mode(ControlMode.HOLD)
    cell.pressed = None
    graph.kill("twist")


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"actions": "takeover,sucess"}, "no action 'sucess', did you mean 'success'?"),
        (
            {"actions": "success,takeover"},
            "actions: takeover is button 1 of joy, where the arbiter wants button 0",
        ),
        ({"device": "keyboard", "actions": "takeover"}, "actions: a keyboard's keys name theirs"),
    ],
)
def test_wrong_map_is_one_line_and_exit_code_1(cell: Cell, parameters: dict[str, str], line: str) -> None:
    start(cell, **parameters)
    assert cell.graph.processes["pedal"].wait(60.0) == 1
    del cell.graph.processes["pedal"]
    assert cell.graph.log("pedal").strip().splitlines()[-1].startswith(f"recap pedal: {line}")
