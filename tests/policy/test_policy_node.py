"""The policy node in a graph of its own: when it commands, what it flushes, how it takes a new checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces")

import torch  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from recap_interfaces.msg import ActionChunk, ControlMode, Episode  # noqa: E402
from recap_interfaces.srv import LoadPolicy  # noqa: E402
from sensor_msgs.msg import CompressedImage, JointState  # noqa: E402

from recap_policy.checkpoint import read, save_policy  # noqa: E402
from recap_policy.nodes.policy_node import PolicyNode  # noqa: E402
from recap_policy.runtime import Policy  # noqa: E402
from recap_policy.sizes import vla_config  # noqa: E402
from recap_policy.vla import VLA  # noqa: E402
from recap_station import topics  # noqa: E402
from recap_station.contract import ContractError, load_station  # noqa: E402
from recap_station.nodes import qos  # noqa: E402
from recap_station.nodes.base import WARN, to_ns, to_time  # noqa: E402

pytestmark = pytest.mark.alone

STATION = load_station("aloha")
JPEG = cv2.imencode(".jpg", np.full((96, 96, 3), 128, np.uint8))[1].tobytes()


class Graph:
    """The node and a peer that plays robot, arbiter and episode control."""

    def __init__(self, checkpoint: str, domain: int, **parameters: Any) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.attempts = 0
        given = {"checkpoint": checkpoint, "inference_nice": 0, **parameters}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        self.node = PolicyNode(context=self.context, parameter_overrides=overrides)
        self.peer = Node("peer", context=self.context)
        self.commands: list[JointState] = []
        self.chunks: list[ActionChunk] = []
        self.peer.create_subscription(JointState, topics.POLICY_COMMAND, self.commands.append, qos.COMMAND)
        self.peer.create_subscription(
            ActionChunk, topics.POLICY_CHUNK, lambda chunk: self.chunks.append(chunk), qos.EVENT
        )
        self.peer.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENT)
        self.images = {
            name: self.peer.create_publisher(CompressedImage, topics.image_topic(name), qos.SENSOR)
            for name in STATION.camera_names
        }
        self.states = self.peer.create_publisher(JointState, topics.JOINT_STATES, qos.COMMAND)
        self.modes = self.peer.create_publisher(ControlMode, topics.CONTROL_MODE, qos.LATCHED)
        self.episodes = self.peer.create_publisher(Episode, topics.EPISODE, qos.LATCHED)
        self.loader = self.peer.create_client(LoadPolicy, "load_policy")
        self.observing = True
        self.back_ns = 0  # how far the clock of cameras and joints has been set back
        self.stuck_ns = 0  # the stamp that the cameras repeat, where they do
        self.jpegs = dict.fromkeys(STATION.camera_names, JPEG)
        self.state = STATION.home.copy()
        self.said = ""  # the checkpoint's line in /diagnostics
        self.peer.create_timer(0.02, self._observe)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.peer)
        self.node.start()

    def now_ns(self) -> int:
        return self.peer.get_clock().now().nanoseconds

    def _observe(self) -> None:
        if not self.observing:
            return
        stamp = to_time(self.now_ns() - self.back_ns)
        for name, publisher in self.images.items():
            image = CompressedImage(format="jpeg", data=self.jpegs[name])
            image.header.stamp = to_time(self.stuck_ns) if self.stuck_ns else stamp
            image.header.frame_id = name
            publisher.publish(image)
        state = JointState(name=list(STATION.joint_names), position=self.state.tolist())
        state.header.stamp = stamp
        self.states.publish(state)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "policy: checkpoint":
                self.said = status.message

    def mode(self, mode: int, reason: str, source: str = "hold") -> int:
        now = self.now_ns()
        message = ControlMode(mode=mode, reason=reason, source=source)
        message.header.stamp = to_time(now)
        self.modes.publish(message)
        return now

    def episode(self, state: int) -> int:
        self.attempts += state == Episode.RUNNING
        now = self.now_ns()
        message = Episode(id=f"attempt {self.attempts}", state=state, prompt="insert the peg")
        message.header.stamp = to_time(now)
        self.episodes.publish(message)
        return now

    def start_attempt(self) -> int:
        """→ its stamp [ns]"""
        self.commands.clear()
        began_ns = self.episode(Episode.RUNNING)
        self.mode(ControlMode.HANDOVER, "episode started")
        self.wait(lambda: self.commands)
        self.mode(ControlMode.POLICY, "fresh policy command reached", "policy")
        return began_ns

    def load(self, path: str) -> LoadPolicy.Response:
        assert self.loader.wait_for_service(10.0)
        future = self.loader.call_async(LoadPolicy.Request(path=path))
        self.wait(future.done)
        return future.result()

    def load_between(self, path: str) -> LoadPolicy.Response:
        self.episode(Episode.ENDED)
        self.wait(lambda: not self.node._running)
        return self.load(path)

    def first_row(self, chunk: int) -> np.ndarray:
        """Of a chunk heard, (dof,)."""
        return np.array(self.chunks[chunk].positions[: STATION.dof])

    def status(self) -> Any:
        return next(iter(self.node.diagnose()))

    def wait(self, condition: Callable[[], Any], limit_s: float = 40.0) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self.executor.spin_once(timeout_sec=0.05)

    def wait_for_silence(self) -> None:
        """Until what is left of the last chunk has been carried out and no command follows."""
        quiet_since, seen = time.monotonic(), len(self.commands)
        self.wait(lambda: self.commands)
        while time.monotonic() < quiet_since + 0.3:
            self.run(0.02)
            if len(self.commands) != seen:
                quiet_since, seen = time.monotonic(), len(self.commands)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.01)

    def close(self) -> None:
        self.node.end()
        self.executor.shutdown()
        self.node.destroy_node()
        self.peer.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("run")
    for name in ("first", "second"):
        save_policy(VLA(vla_config("tiny")), folder / name, {"name": name}, station=STATION)
    torch.set_num_threads(1)
    return str(folder / "first"), str(folder / "second")


@pytest.fixture(scope="module")
def shared(checkpoints: tuple[str, str]) -> Iterator[Graph]:
    shared = Graph(checkpoints[0], domain=1 + os.getpid() % 20)
    yield shared
    shared.close()


@pytest.fixture
def graph(shared: Graph) -> Iterator[Graph]:
    """Between attempts, with a policy loaded."""
    shared.wait(lambda: shared.status().level != WARN)
    yield shared
    shared.episode(Episode.ENDED)
    shared.mode(ControlMode.HOLD, "episode ended")
    shared.run(0.2)
    shared.commands.clear()
    shared.chunks.clear()


@contextmanager
def served(checkpoint: str, port: int = 0) -> Iterator[int]:
    """The checkpoint on a policy server → its port."""
    from recap_policy.layout import load_layout
    from recap_policy.serve import PolicyServer

    policy = Policy.load(checkpoint, station=STATION, threads=1)
    server = PolicyServer(policy, STATION, load_layout("aloha_openpi"), port=port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.close()
        thread.join()


def test_commands_only_in_an_attempt_and_by_its_chunk(graph: Graph, checkpoints: tuple[str, str]) -> None:
    graph.mode(ControlMode.HOLD, "started")
    graph.run(0.3)
    assert not graph.commands and not graph.chunks
    graph.start_attempt()
    graph.wait(lambda: len(graph.commands) >= 3)
    chunk = graph.chunks[-1]
    assert chunk.checkpoint == read(checkpoints[0]).identity
    assert tuple(chunk.joint_names) == tuple(graph.commands[0].name) == STATION.joint_names
    rows = [np.array(chunk.positions).reshape(chunk.horizon, STATION.dof) for chunk in graph.chunks]
    sent = [np.array(command.position) for command in graph.commands[:3]]
    places = [
        min((np.abs(row - command).max(), i) for chunk in rows for i, row in enumerate(chunk))
        for command in sent
    ]
    assert all(distance < 1e-6 for distance, _ in places)
    # The robot stood still until the first chunk came: it is begun at its beginning, and goes on from there.
    np.testing.assert_allclose(sent[0], rows[0][0], atol=1e-6)
    assert 0 == places[0][1] < places[1][1] < places[2][1]
    graph.episode(Episode.ENDED)
    graph.run(0.2)
    graph.commands.clear()
    graph.run(0.3)
    assert not graph.commands


def test_hand_back_waits_for_what_was_seen_after_it(graph: Graph) -> None:
    graph.start_attempt()
    graph.mode(ControlMode.HANDOVER, "take over", "teleop")
    graph.mode(ControlMode.TELEOP, "person's command reached", "teleop")
    graph.run(0.3)
    graph.commands.clear()
    graph.run(0.2)
    assert not graph.commands  # the person commands
    graph.observing = False
    graph.run(0.1)
    graph.chunks.clear()
    flushed_ns = graph.mode(ControlMode.HANDOVER, "hand back")
    graph.run(0.3)
    assert not graph.commands and not graph.chunks  # nothing was seen since
    graph.observing = True
    graph.wait(lambda: graph.commands)
    assert to_ns(graph.chunks[0].header.stamp) >= flushed_ns


def test_a_checkpoint_is_loaded_between_attempts(graph: Graph, checkpoints: tuple[str, str]) -> None:
    graph.start_attempt()
    later = graph.load(checkpoints[1])
    assert later.success and "when the episode under way is over" in later.message
    assert later.checkpoint == read(checkpoints[0]).identity
    graph.chunks.clear()
    graph.wait(lambda: graph.chunks)
    assert graph.chunks[-1].checkpoint == read(checkpoints[0]).identity
    graph.episode(Episode.ENDED)
    graph.wait(lambda: graph.status().values["identity"] == read(checkpoints[1]).identity)
    at_once = graph.load(checkpoints[0])
    assert at_once.success and at_once.checkpoint == read(checkpoints[0]).identity


def test_a_checkpoint_is_swapped_exactly_between_two_attempts(
    graph: Graph, checkpoints: tuple[str, str]
) -> None:
    before, after = (read(folder).identity for folder in checkpoints)
    pid, ticks = graph.node._process.pid, graph.node._ticker.statistics
    started, ticked = time.monotonic(), ticks.ticks
    graph.start_attempt()
    assert graph.load(checkpoints[1]).success
    graph.wait(lambda: len(graph.chunks) >= 2)
    known = len(graph.chunks)
    graph.wait(lambda: len(graph.chunks) > known)  # of the same attempt, with the new checkpoint known
    graph.episode(Episode.ENDED)
    began_ns = graph.start_attempt()  # at once: the node may not even tick in between
    graph.wait(lambda: to_ns(graph.chunks[-1].header.stamp) >= began_ns)
    known = len(graph.chunks)
    graph.wait(lambda: len(graph.chunks) > known)
    heard = graph.chunks
    attempt = [to_ns(chunk.header.stamp) >= began_ns for chunk in heard]
    assert [chunk.checkpoint for chunk in heard] == [after if new else before for new in attempt]
    assert graph.node._process.pid == pid  # no restart
    # It ticked on throughout: a busy machine may cost some ticks, a load in its thread most.
    due = (time.monotonic() - started) * STATION.control_rate_hz
    print(f"{ticks.ticks - ticked} ticks of {due:.0f}")
    assert ticks.ticks - ticked > 0.7 * due
    assert graph.load_between(checkpoints[0]).success


def test_a_late_chunk_holds_and_is_not_entered_in_its_middle(graph: Graph) -> None:
    graph.start_attempt()
    pid, errors = graph.node._process.pid, graph.node._errors.get("inference", 0)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        graph.wait_for_silence()
        graph.wait(lambda: "s ago is late" in graph.said)
        graph.commands.clear()
        chunks = len(graph.chunks)
    finally:
        resumed_ns = graph.now_ns()
        os.kill(pid, signal.SIGCONT)
    graph.wait(lambda: graph.commands)
    # What was inferred from before the stop is dropped; a chunk made afterwards is begun at its beginning.
    assert graph.node._errors["inference"] > errors
    graph.wait(lambda: len(graph.chunks) > chunks)
    assert to_ns(graph.chunks[chunks].header.stamp) > resumed_ns - 100_000_000
    np.testing.assert_allclose(graph.commands[0].position, graph.first_row(chunks), atol=1e-6)


def test_images_that_cannot_be_read_hold_and_are_named(graph: Graph) -> None:
    graph.start_attempt()
    graph.jpegs["base_camera"] = b"torn"
    graph.wait_for_silence()
    reason = "image of base_camera: 4 bytes that are no JPEG"
    graph.wait(lambda: graph.said == f"the last inference failed: {reason}")
    graph.jpegs["base_camera"] = JPEG
    graph.commands.clear()
    graph.wait(lambda: graph.commands)


def test_a_camera_that_falls_silent_holds_and_is_named(graph: Graph) -> None:
    graph.start_attempt()
    silent = graph.images.pop("left_wrist_camera")
    graph.wait_for_silence()
    graph.wait(lambda: graph.said.startswith("nothing to infer from: left_wrist_camera is "))
    graph.images["left_wrist_camera"] = silent
    graph.commands.clear()
    graph.wait(lambda: graph.commands)


def test_a_hung_inference_is_ended_and_numbers_that_are_not_finite_hold(tmp_path: Path) -> None:
    """The policy answers NaN where the first joint is exactly at 0.1 rad, and nowhere else."""
    model = VLA(vla_config("tiny"))
    model.prefix.normalizer.low[0] = model.prefix.normalizer.high[0] = 0.1
    save_policy(model, tmp_path / "policy", {}, station=STATION)
    graph = Graph(str(tmp_path / "policy"), domain=45 + os.getpid() % 20, inference_timeout_s=2.0)
    try:
        graph.wait(lambda: graph.status().level != WARN)
        graph.start_attempt()
        graph.state[0] = 0.1
        graph.wait_for_silence()
        graph.wait(
            lambda: graph.said == "the last inference failed: the chunk holds a number that is not finite"
        )
        assert all(np.isfinite(command.position).all() for command in graph.commands)
        graph.state[0] = STATION.home[0]
        graph.commands.clear()
        graph.wait(lambda: graph.commands)
        assert graph.node._process.pid is not None
        os.kill(graph.node._process.pid, signal.SIGSTOP)
        graph.wait(lambda: graph.said == "an inference took more than 2 s")
        graph.commands.clear()
        graph.wait(lambda: graph.commands)
        assert graph.status().values["restarts"] == 1
    finally:
        graph.close()


def test_a_policy_that_answers_no_numbers_is_never_ready(
    graph: Graph, checkpoints: tuple[str, str], tmp_path: Path
) -> None:
    model = VLA(vla_config("tiny"))
    torch.nn.init.constant_(model.expert.action_out.weight, float("nan"))
    identity = save_policy(model, tmp_path / "policy", {}, station=STATION)
    answer = graph.load_between(str(tmp_path / "policy"))
    assert not answer.success
    assert answer.message == f"policy {identity}: its first chunk holds a number that is not finite"
    assert graph.status().values["identity"] == read(checkpoints[0]).identity  # goes on with what it has
    assert graph.load(checkpoints[0]).success


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"device": "gpu"}, "device is 'gpu', wanted one of auto, cpu, cuda"),
        ({"device": "cpu", "cuda_graphs": "on"}, "cuda_graphs is 'on' and device 'cpu'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(parameters: dict[str, str], problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        Graph("", domain=87 + os.getpid() % 20, **parameters)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said(checkpoints: tuple[str, str]) -> None:
    graph = Graph(checkpoints[0], domain=108 + os.getpid() % 20, device="cuda")
    try:
        graph.wait(lambda: graph.said.startswith("device is 'cuda', but this torch is built without CUDA"))
        assert graph.status().level == WARN
    finally:
        graph.close()


def test_without_a_checkpoint_it_waits_for_one(checkpoints: tuple[str, str]) -> None:
    graph = Graph("", domain=21 + os.getpid() % 20)
    try:
        graph.run(0.3)
        assert graph.status().level == WARN
        assert graph.status().message == "no checkpoint: waiting for load_policy"
        wrong = graph.load(str(Path(checkpoints[0]).parent / "nothing"))
        assert not wrong.success and "no checkpoint there" in wrong.message
        assert graph.load(checkpoints[0]).success
        graph.start_attempt()
    finally:
        graph.close()


def test_a_policy_server_is_waited_for_drives_and_is_found_again(checkpoints: tuple[str, str]) -> None:
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    with served(checkpoints[0]) as port:
        pass
    graph = Graph(f"ws://127.0.0.1:{port}", domain=170 + os.getpid() % 40)
    try:
        graph.wait(lambda: "no policy server there" in graph.status().message)
        assert graph.status().level == WARN
        with served(checkpoints[0], port):
            graph.wait(lambda: graph.status().level != WARN)
            assert graph.status().values["identity"] == read(checkpoints[0]).identity
            graph.start_attempt()
            graph.wait(lambda: graph.chunks)
            assert graph.chunks[-1].checkpoint == read(checkpoints[0]).identity
            assert graph.chunks[-1].horizon == 50 and len(graph.chunks[-1].positions) == 50 * STATION.dof
        graph.wait(lambda: "the last inference failed: ws://" in graph.status().message)
        graph.run(1.2)  # what was left of the last chunk
        graph.commands.clear()
        graph.run(0.3)
        assert not graph.commands  # the arbiter holds
        with served(checkpoints[1], port):
            graph.wait(lambda: graph.commands)
            assert graph.status().values["identity"] == read(checkpoints[1]).identity
            assert graph.status().level != WARN
            refused = graph.load("ws://127.0.0.1:1")
            assert refused.success and "when the episode under way is over" in refused.message
            graph.episode(Episode.ENDED)
            graph.wait(lambda: "127.0.0.1:1: no policy server there" in graph.status().message)
    finally:
        graph.close()


def test_chunks_are_painted_onto_the_last_ones_rest(checkpoints: tuple[str, str]) -> None:
    more = {"rtc": "inpainting", "subtask_every": 3, "metadata": "fast", "lead_steps": 6}
    graph = Graph(checkpoints[0], domain=66 + os.getpid() % 20, **more)
    try:
        graph.wait(lambda: graph.status().level != WARN)
        graph.start_attempt()
        graph.wait(lambda: len(graph.chunks) >= 3)
        rows = [np.array(c.positions).reshape(c.horizon, STATION.dof) for c in graph.chunks[:3]]
        for last, new in pairwise(rows):
            # From where it was asked on, 6 steps of the last chunk are carried out whatever comes.
            gaps = [np.abs(last[at : at + 6] - new[:6]).max() for at in range(len(last) - 6)]
            assert min(gaps) < 1e-5 and 10 <= int(np.argmin(gaps)) <= 25
    finally:
        graph.close()


def test_a_dead_inference_process_is_replaced(graph: Graph) -> None:
    graph.start_attempt()
    restarts = graph.status().values["restarts"]
    assert graph.node._process.pid is not None
    os.kill(graph.node._process.pid, signal.SIGKILL)
    graph.wait(lambda: graph.status().values["restarts"] == restarts + 1)
    assert graph.status().level == WARN
    graph.run(0.2)
    graph.commands.clear()
    graph.run(0.2)
    assert not graph.commands
    graph.wait(lambda: graph.commands)
    assert graph.status().values["restarts"] == restarts + 1


def test_a_clock_set_back_during_an_attempt_does_not_end_it(graph: Graph) -> None:
    graph.start_attempt()
    graph.back_ns = 3600 * 10**9
    try:
        graph.run(1.5)  # what was inferred before has been carried out; a moment's hold is no harm
        graph.commands.clear()
        graph.wait(lambda: graph.commands)
    finally:
        graph.back_ns = 0


def test_a_camera_that_repeats_its_last_image_counts_as_silent(graph: Graph) -> None:
    graph.start_attempt()
    graph.stuck_ns = graph.now_ns()
    try:
        graph.run(3.0)  # longer than an observation may be old, and the chunk inferred from it lasts
        graph.commands.clear()
        graph.run(0.5)
        assert not graph.commands
    finally:
        graph.stuck_ns = 0
