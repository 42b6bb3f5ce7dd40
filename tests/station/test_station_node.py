import io
import os
import time

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from recap_interfaces.msg import SimTruth  # noqa: E402
from recap_interfaces.srv import ResetCell  # noqa: E402
from sensor_msgs.msg import CompressedImage, JointState  # noqa: E402

from recap_station import topics  # noqa: E402
from recap_station.contract import ContractError, load_station  # noqa: E402
from recap_station.nodes import qos  # noqa: E402
from recap_station.nodes.station_node import RESET_GRACE_S, StationNode  # noqa: E402

pytestmark = pytest.mark.alone

STATION = load_station("aloha")


class Graph:
    """The station node and a peer that listens and commands, in a ROS domain of their own."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=50 + os.getpid() % 50)
        self.station = StationNode(context=self.context)
        self.peer = Node("peer", context=self.context)
        self.got: dict[str, list] = {}
        self.listen(topics.JOINT_STATES, JointState)
        self.listen(topics.SIM_TRUTH, SimTruth)
        for camera in STATION.camera_names:
            self.listen(topics.image_topic(camera), CompressedImage)
        self.peer.create_subscription(DiagnosticArray, "/diagnostics", self._keep("diagnostics"), qos.EVENT)
        self.command = self.peer.create_publisher(
            JointState, topics.JOINT_COMMAND, qos.for_topic(topics.JOINT_COMMAND)
        )
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.station)
        self.executor.add_node(self.peer)
        self.station.start()
        self.wait(lambda: self.got.get(topics.JOINT_STATES) and self.command.get_subscription_count())

    def _keep(self, topic):
        return lambda message: self.got.setdefault(topic, []).append(message)

    def listen(self, topic, kind):
        self.peer.create_subscription(kind, topic, self._keep(topic), qos.for_topic(topic, recording=True))

    def wait(self, condition, limit_s=10.0):
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self.executor.spin_once(timeout_sec=0.05)

    def run(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.01)

    def send(self, positions, names=STATION.joint_names):
        self.command.publish(JointState(name=list(names), position=[float(p) for p in positions]))

    def reset(self, **fields):
        client = self.peer.create_client(ResetCell, "reset")
        assert client.wait_for_service(5.0)
        future = client.call_async(ResetCell.Request(**fields))
        self.wait(future.done)
        return future.result()

    def state(self):
        self.got[topics.JOINT_STATES].clear()
        self.wait(lambda: self.got[topics.JOINT_STATES])
        message = self.got[topics.JOINT_STATES][-1]
        return STATION.vector(message.name, message.position)

    def close(self):
        self.station.end()
        self.executor.shutdown()
        self.station.destroy_node()
        self.peer.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


def test_without_commands_it_holds_home_and_shows_all_it_has(graph):
    graph.reset(seed=0)
    graph.got.clear()
    graph.run(1.0)
    assert np.abs(graph.state() - STATION.home).max() < 0.01
    assert {message.stage for message in graph.got[topics.SIM_TRUTH]} == {"reach"}
    # loose on purpose: the machine may be busy. The ratio of images to ticks is what the schedule makes it.
    ticks = graph.station._tick
    images = graph.got[topics.image_topic("base_camera")]
    assert len(images) >= 5 and ticks > 0
    for camera in STATION.camera_names:
        message = graph.got[topics.image_topic(camera)][-1]
        picture = cv2.imdecode(np.frombuffer(io.BytesIO(message.data).getvalue(), np.uint8), cv2.IMREAD_COLOR)
        assert message.format == "jpeg" and message.header.frame_id == camera
        assert picture.shape == (96, 96, 3)


def test_cameras_come_at_thirty_of_fifty_ticks_and_not_all_in_one(graph):
    schedule = []
    was = graph.station._tick
    for tick in range(50):
        graph.station._tick = tick
        schedule.append([graph.station._due(k, 30.0) for k in range(3)])
    graph.station._tick = was
    assert np.sum(schedule, axis=0).tolist() == [30, 30, 30]
    assert np.sum(schedule, axis=1).max() <= 2


def test_it_follows_the_newest_command(graph):
    graph.reset(seed=0)
    goal = STATION.home + 0.08 * ~STATION.is_gripper
    graph.send(goal)
    graph.wait(lambda: np.abs(graph.state() - goal).max() < 0.02)


def test_an_unknown_joint_is_refused_with_its_name_and_the_last_command_held(graph):
    graph.reset(seed=0)
    goal = STATION.home + 0.08 * ~STATION.is_gripper
    graph.send(goal)
    graph.wait(lambda: np.abs(graph.state() - goal).max() < 0.02)
    graph.got["diagnostics"] = []
    graph.send(STATION.home, [*STATION.joint_names[:-1], "right_griper"])

    def reported():
        return [
            status.message
            for message in graph.got["diagnostics"]
            for status in message.status
            if status.level == DiagnosticStatus.ERROR
        ]

    graph.wait(lambda: reported())
    assert "right_griper" in reported()[0] and "right_gripper" in reported()[0]
    assert np.abs(graph.state() - goal).max() < 0.02
    broken = STATION.home
    broken[0] = np.nan
    graph.send(broken)
    graph.run(0.2)
    assert np.abs(graph.state() - goal).max() < 0.02


def test_reset_places_by_seed_and_does_not_jump_back_to_the_old_pose(graph):
    away = STATION.home + 0.5 * ~STATION.is_gripper
    graph.run(RESET_GRACE_S + 0.1)
    graph.send(away)
    graph.wait(lambda: np.abs(graph.state() - away).max() < 0.05)
    answer = graph.reset(seed=11)
    assert answer.success and answer.seed == 11
    graph.send(away)  # as an arbiter does that still holds its last command
    graph.run(0.2)
    assert np.abs(graph.state() - STATION.home).max() < 0.05
    first = graph.station.cell.scene().mouth
    graph.reset(seed=12)
    assert not np.allclose(first, graph.station.cell.scene().mouth)
    assert graph.reset(seed=-1).seed >= 0


def test_resetting_to_a_misspelt_task_answers_with_the_nearest(graph):
    answer = graph.reset(seed=0, task="handover_inser")
    assert not answer.success and "handover_insert" in answer.message


def test_it_refuses_to_play_a_real_robot():
    context = Context()
    rclpy.init(context=context, domain_id=50 + os.getpid() % 50)
    node = StationNode(
        context=context, parameter_overrides=[Parameter("use_sim", Parameter.Type.BOOL, False)]
    )
    with pytest.raises(ContractError, match="use_sim"):
        node.start()
    node.destroy_node()
    rclpy.shutdown(context=context)
