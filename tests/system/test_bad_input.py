"""Wrong input over real topics and services: one clear line, a hold, nothing lost."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from graph import STATION, Graph
from recap_interfaces.msg import ControlMode, Episode
from recap_interfaces.srv import EndEpisode, LoadPolicy, StartEpisode
from sensor_msgs.msg import CompressedImage

from recap_policy.checkpoint import save_policy
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA
from recap_station import topics
from recap_station.bags import BagReader
from recap_station.contract import Camera
from recap_station.nodes import qos

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    with Graph(tmp_path_factory.mktemp("bad_input")) as graph:
        graph.start("arbiter", "recap_teleop.nodes.arbiter_node")
        yield graph


def call(graph: Graph, kind: Any, name: str, **fields: Any) -> Any:
    client = graph.world.create_client(kind, name)
    assert client.wait_for_service(60.0)
    future = client.call_async(kind.Request(**fields))
    graph.wait(future.done, 60.0, f"an answer of {name}")
    return future.result()


class Cameras:
    """All cameras of the cell at 25 Hz, in a size that can be changed."""

    def __init__(self, graph: Graph):
        self.graph, self.size = graph, (96, 96)
        self._publishers = {
            name: graph.world.create_publisher(CompressedImage, topics.image_topic(name), qos.SENSOR)
            for name in STATION.camera_names
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.04):
            width, height = self.size
            jpeg = cv2.imencode(".jpg", np.full((height, width, 3), 128, np.uint8))[1].tobytes()
            for name, publisher in self._publishers.items():
                message = CompressedImage(format="jpeg", data=jpeg)
                message.header.stamp = self.graph.world.get_clock().now().to_msg()
                message.header.frame_id = name
                publisher.publish(message)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.timeout(200)
def test_wrong_camera_and_wrong_robot_are_named_and_the_robot_holds(graph: Graph, tmp_path: Path) -> None:
    model = VLA(vla_config("tiny"))
    save_policy(model, tmp_path / "ours", {}, station=STATION)
    other = replace(STATION, cameras=(Camera("top_camera", 96, 96, 30.0), *STATION.cameras[1:]))
    save_policy(model, tmp_path / "others", {}, station=other)
    said = "checkpoint of another robot: found camera top_camera of 96x96, wanted base_camera of 96x96"
    world, cameras = graph.world, Cameras(graph)
    try:
        graph.start("policy", "recap_policy.nodes.policy_node", checkpoint=str(tmp_path / "others"))
        graph.wait(lambda: said in graph.log("policy"), 100.0, "the refusal of another robot's checkpoint")
        answer = call(graph, LoadPolicy, "load_policy", path=str(tmp_path / "others"))
        assert not answer.success and said in answer.message
        assert call(graph, LoadPolicy, "load_policy", path=str(tmp_path / "ours")).success

        cameras.size = (64, 48)
        graph.wait(lambda: world.mode() == ControlMode.HOLD)
        world.heard.modes.clear()
        world.episode("cameras", Episode.RUNNING)
        wanted = "is (48, 64, 3) uint8, wanted (96, 96, 3) uint8"
        graph.wait(lambda: wanted in graph.log("policy"), 60.0, "the complaint about the size")
        assert not world.heard.chunks
        assert {mode for _, mode, _ in world.heard.modes} <= {ControlMode.HOLD, ControlMode.HANDOVER}
        assert all(command.source == "hold" for command in world.heard.commands[-50:])
        cameras.size = (96, 96)
        # An untrained policy jumps about, so that the hand-over to it may never be done; it is followed.
        graph.wait(lambda: world.source() == "policy", 60.0, "the policy, once it sees")
        # During an attempt too: refused while somebody waits for the answer, not when it is over.
        for path, why in ((tmp_path / "others", said), (tmp_path / "none", "no checkpoint there")):
            answer = call(graph, LoadPolicy, "load_policy", path=str(path))
            assert not answer.success and why in answer.message
    finally:
        world.episode("cameras", Episode.ENDED, Episode.DISCARDED)
        cameras.stop()
        graph.kill("policy")


@pytest.mark.timeout(100)
def test_calls_out_of_order_are_answered_in_words(graph: Graph) -> None:
    graph.start("episode", "recap_teleop.nodes.episode_node", use_sim="false", reset="none")
    try:

        def end(outcome: int) -> Any:
            return call(graph, EndEpisode, "end_episode", outcome=outcome)

        assert end(EndEpisode.Request.SUCCESS).message == "no episode is running"
        misspelt = call(graph, StartEpisode, "start_episode", task="handover_inser")
        assert not misspelt.success and "did you mean 'handover_insert'" in misspelt.message
        first = call(graph, StartEpisode, "start_episode")
        assert first.success, first.message
        twice = call(graph, StartEpisode, "start_episode")
        assert not twice.success and twice.message == f"episode {first.id} is running; end it first"
        assert "wanted outcome 1 (success), 2 (failure) or 3 (discarded), found 7" in end(7).message
        assert end(EndEpisode.Request.FAILURE).success
    finally:
        graph.kill("episode")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.timeout(120)
def test_full_disk_ends_the_attempt_and_keeps_what_was_recorded(graph: Graph, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    ended: list[EndEpisode.Request] = []

    def serve(request: EndEpisode.Request, response: EndEpisode.Response) -> EndEpisode.Response:
        ended.append(request)
        response.success = True
        return response

    world = graph.world
    service = world.create_service(EndEpisode, "end_episode", serve)
    cameras = Cameras(graph)
    try:
        cameras.size = (1000, 1000)  # some 16 kB each: beside the reserve, room for seconds
        graph.start("recorder", "recap_teleop.nodes.recorder_node", bag_dir=str(disk))
        graph.wait(lambda: world.count_subscribers(topics.EPISODE) > 1, 60.0, "the recorder")
        world.episode("full", Episode.RUNNING)
        graph.wait(lambda: ended, 60.0, "the recorder's call of end_episode")
        assert ended[0].outcome == EndEpisode.Request.DISCARDED and "No space left" in ended[0].reason
        bag = BagReader(disk / "full")
        assert bag.closed_cleanly and bag.metadata["recap.outcome"] == "discarded"
        assert sum(1 for _ in bag.messages([topics.JOINT_COMMAND])) > 10
        # The next attempt is refused at its start, and leaves nothing behind.
        ended.clear()
        world.episode("full", Episode.ENDED, Episode.DISCARDED)
        world.episode("next", Episode.RUNNING)
        graph.wait(lambda: ended, 60.0, "the refusal of the next attempt")
        assert "no room for a bag" in ended[0].reason
        assert [path.name for path in disk.iterdir()] == ["full"]
    finally:
        cameras.stop()
        graph.kill("recorder")
        world.episode("next", Episode.ENDED, Episode.DISCARDED)
        world.destroy_service(service)
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
