"""Policies over a websocket: openpi's protocol both ways, what does not fit, and connections that break."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack")
pytest.importorskip("websockets")

import cv2  # noqa: E402
import torch  # noqa: E402
from websockets.exceptions import ConnectionClosedError  # noqa: E402
from websockets.sync.client import connect  # noqa: E402
from websockets.sync.server import serve as listen  # noqa: E402

from recap_policy.checkpoint import read, save_policy, save_value, tower_identity  # noqa: E402
from recap_policy.inference import Failed, InferenceProcess, Inferred, Loaded  # noqa: E402
from recap_policy.interface import ObservationError, Sampling  # noqa: E402
from recap_policy.layout import ActionError, Adapter, load_layout, resize_with_pad  # noqa: E402
from recap_policy.opening import open_policy  # noqa: E402
from recap_policy.remote import RemoteError, RemotePolicy  # noqa: E402
from recap_policy.runtime import Policy  # noqa: E402
from recap_policy.serve import PolicyServer  # noqa: E402
from recap_policy.sizes import value_config, vla_config  # noqa: E402
from recap_policy.text import TinyTokenizer  # noqa: E402
from recap_policy.value import ValueModel  # noqa: E402
from recap_policy.vla import VLA  # noqa: E402
from recap_policy.wire import WireError, pack, unpack  # noqa: E402
from recap_station.contract import ContractError, load_station  # noqa: E402

STATION = load_station("aloha")
LAYOUT = load_layout("aloha_openpi")
PROMPT = "insert the peg"
RANDOM = np.random.default_rng(0)
IMAGES = {name: RANDOM.integers(0, 255, (96, 96, 3), np.uint8) for name in STATION.camera_names}
GOOD = np.tile(STATION.home, (50, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A policy and a value function of it, both fresh."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    words = TinyTokenizer.fit([PROMPT], 128)
    model = VLA(vla_config("tiny"), words)
    states = torch.rand(64, 14)
    chunks = states[:, None] + torch.randn(64, 50, 14).cumsum(1) * 0.01
    model.fit_normalizers(chunks, states, torch.from_numpy(STATION.is_gripper))
    save_policy(model, folder / "policy", {}, station=STATION, prompts=[PROMPT])
    critic = ValueModel(value_config("value-tiny"), words)
    critic.fit_normalizers(states)
    save_value(critic, folder / "value", {}, station=STATION, tower=tower_identity(model.vision))
    return str(folder / "policy"), str(folder / "value")


@pytest.fixture(scope="module")
def policy(folders: tuple[str, str]) -> Policy:
    return Policy.load(*folders, STATION, threads=1)


@contextmanager
def served(policy: Policy, **options: Any) -> Iterator[PolicyServer]:
    server = PolicyServer(policy, STATION, LAYOUT, **{"port": 0, **options})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


@pytest.fixture(scope="module")
def server(policy: Policy) -> Iterator[PolicyServer]:
    with served(policy) as server:
        yield server


@contextmanager
def foreign(answer: Callable[[dict], Any], **options: Any) -> Iterator[str]:
    """A server as openpi's is, over raw msgpack: says some metadata, then what `answer` gives. → its URI"""

    def converse(connection: Any) -> None:
        connection.send(msgpack.packb({"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}))
        for data in connection:
            said = answer(unpack(data))
            connection.send(said if isinstance(said, str) else pack(said))
            if isinstance(said, str):
                connection.close(1011)

    with listen(converse, "127.0.0.1", 0, compression=None, max_size=None, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def client(uri: str, **options: Any) -> RemotePolicy:
    return RemotePolicy(uri, STATION, LAYOUT, **{"timeout_s": 60.0, **options})


def infer(policy: Any, **options: Any) -> Any:
    return policy.infer(IMAGES, STATION.home, PROMPT, Sampling(**options))


def aloha_observation() -> dict[str, Any]:
    """As openpi's ALOHA clients send it: four cameras, channels first."""
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    images = {name: RANDOM.integers(0, 255, (3, 224, 224), np.uint8) for name in cameras}
    return {"state": STATION.home, "images": images, "prompt": PROMPT}


# --- messages -----------------------------------------------------------------------------------------


def test_arrays_travel_as_openpi_writes_them() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = msgpack.unpackb(pack({"a": {"b": array}, "c": np.float32(0.5), "d": [None, "x", 1]}))
    assert raw["a"]["b"] == {
        b"__ndarray__": True,
        b"data": array.tobytes(),
        b"dtype": "<f4",
        b"shape": [2, 3],
    }
    assert raw["c"] == {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}
    assert raw["d"] == [None, "x", 1]
    back = unpack(pack({"a": array, "text": np.array("peg"), "none": np.zeros((0, 3))}))
    assert np.array_equal(back["a"], array) and back["a"].dtype == np.float32
    assert back["text"].item() == "peg" and back["none"].shape == (0, 3)


def _array(**changes: Any) -> bytes:
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f8", "shape": [1], **changes}
    return msgpack.packb({"a": {name.encode(): value for name, value in fields.items()}})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_array(dtype="|O"), r"'\|O', wanted numbers or text"),
        (_array(dtype="<i4,<i4"), "wanted numbers or text"),
        (_array(dtype="<c8"), "wanted numbers or text"),
        (_array(dtype="<b8"), "wanted numbers or text"),
        (_array(dtype=7), "wanted numbers or text"),
        (_array(shape=[2]), r"shape \(2,\) in 8 bytes, wanted 16"),
        (_array(shape=[-1]), "wanted a list of lengths"),
        (_array(shape=[2**40, 2**40]), "in 8 bytes, wanted"),
        (_array(data="text"), "data is a str, wanted bytes"),
        (msgpack.packb([1, 2]), "message is a list, wanted a mapping"),
        (b"\xc1", "1 bytes that are no message"),
        (pack({"a": np.zeros(9)})[:-5], "bytes that are no message"),
        (b"\x81" * 5000, "5000 bytes that are no message"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        unpack(data)


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(2, "c8"), np.zeros(2, "i4,i4"), {1, 2}])
def test_what_would_need_unpickling_is_not_written(value: Any) -> None:
    with pytest.raises(WireError, match=r"cannot be written|wanted numbers or text"):
        pack({"a": value})


# --- layouts ------------------------------------------------------------------------------------------


def test_observation_has_openpis_names_and_shapes() -> None:
    message = Adapter(LAYOUT, STATION).write_observation(IMAGES, STATION.home, PROMPT)
    assert set(message) == {"state", "images", "prompt"}
    assert {name: image.shape for name, image in message["images"].items()} == {
        "cam_high": (3, 224, 224),
        "cam_left_wrist": (3, 224, 224),
        "cam_right_wrist": (3, 224, 224),
    }
    assert np.array_equal(message["state"], STATION.home)


def test_other_names_orders_and_grippers_are_configuration(tmp_path: Path) -> None:
    arms = [name for name in STATION.joint_names if not name.endswith("gripper")]
    file = tmp_path / "other.yaml"
    file.write_text(f"""
name: other
control_rate_hz: 50
horizon: 4
prompt: task
images:
  {{width: 40, height: 30, order: HWC, keys: {{base_camera: observation/image}}}}
state:
  - {{key: observation/joints, joints: {arms[::-1]}}}
  - {{key: [observation, grippers], joints: [right_gripper, left_gripper]}}
actions: {{key: action, joints: {["right_gripper", "left_gripper", *arms]}}}
gripper: {{closed: 100.0, open: 0.0}}
""")
    adapter = Adapter(load_layout(file), STATION)
    state = np.where(STATION.is_gripper, 0.25, STATION.home)
    state[list(STATION.joint_names).index("left_gripper")] = 1.0
    message = adapter.write_observation(IMAGES, state, PROMPT)
    assert set(message) == {"task", "observation/image", "observation/joints", "observation"}
    assert message["observation/image"].shape == (30, 40, 3)
    assert message["observation"]["grippers"].tolist() == [75.0, 0.0]
    assert message["observation/joints"].tolist() == [
        state[STATION.joint_names.index(name)] for name in arms[::-1]
    ]
    rows = np.tile(state, (4, 1))
    actions = adapter.write_actions(rows)
    assert actions["action"][0, :2].tolist() == [75.0, 0.0]
    assert np.allclose(adapter.read_actions(actions, 4), rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"control_rate_hz": 20.0}, "control rate 20 Hz, wanted 50"),
        ({"cameras": {"base_kamera": ("a",)}}, "did you mean 'base_camera'"),
        ({"action_joints": STATION.joint_names[:-1]}, "actions must name each joint once.*'right_gripper'"),
        ({"state": ((("state",), (*STATION.joint_names, "tail")),)}, "state must name each joint.*'tail'"),
    ],
)
def test_layout_of_another_robot_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        Adapter(replace(LAYOUT, **change), STATION)


def test_misspelt_layout_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="did you mean 'aloha_openpi'"):
        load_layout("aloha_openpy")
    file = tmp_path / "torn.yaml"
    file.write_text("name: torn\nimages: {}\n")
    with pytest.raises(ContractError, match=r"torn.yaml: not a layout: 'gripper'"):
        load_layout(file)


def test_images_are_made_to_fit_without_distortion() -> None:
    small = resize_with_pad(np.full((480, 640, 3), 200, np.uint8), (224, 224))
    assert small.shape == (224, 224, 3)
    assert (small[28:196] == 200).all() and not small[:28].any() and not small[196:].any()
    stripes = np.zeros((448, 448, 3), np.uint8)
    stripes[:, ::2] = 255  # averaged when made smaller, not sampled
    inside = resize_with_pad(stripes, (224, 224))[10:-10, 10:-10]
    assert abs(int(inside.max()) - 128) < 16 and abs(int(inside.min()) - 128) < 16
    assert resize_with_pad(small, (224, 224)) is small


@pytest.mark.parametrize("shape", [(480, 640), (96, 96), (100, 333), (224, 224), (300, 200)])
def test_images_are_made_to_fit_as_openpi_does(shape: tuple[int, int]) -> None:
    tools = pytest.importorskip("openpi_client.image_tools", reason="openpi-client is not installed")
    image = RANDOM.integers(0, 255, (*shape, 3), np.uint8)
    wanted = tools.resize_with_pad(image, 224, 224)
    assert np.array_equal(resize_with_pad(image, (224, 224)), wanted)


def _with(row: int, joint: int, value: float) -> np.ndarray:
    rows = GOOD.copy()
    rows[row, joint] = value
    return rows


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, r"actions: found nothing, wanted an array of \(50, 14\) numbers"),
        ({"actions": [1, 2]}, "found list, wanted an array"),
        ({"actions": GOOD[:, :7]}, r"actions are \(50, 7\), wanted \(50, 14\)"),
        ({"actions": GOOD[:16]}, r"actions are \(16, 14\), wanted \(50, 14\)"),
        ({"actions": GOOD[None]}, r"actions are \(1, 50, 14\), wanted"),
        ({"actions": _with(3, 5, np.nan)}, "row 3 of joint left_wrist_rotate is nan, wanted a number"),
        ({"actions": _with(0, 0, 90.0)}, "row 0 of joint left_waist is 90, wanted about -1.57 .. 1.57"),
    ],
)
def test_actions_that_do_not_fit_are_refused(answer: dict[str, Any], said: str) -> None:
    with foreign(lambda _: answer) as uri:
        remote = client(uri)
        with pytest.raises(ActionError, match=said):
            infer(remote)
        remote.close()


# --- client and server --------------------------------------------------------------------------------


def test_round_trip_is_local_inference(policy: Policy, server: PolicyServer) -> None:
    remote = client(server.uri)
    assert remote.identity == policy.identity and remote.value_identity == policy.value_identity != ""
    more = {"metadata": "fast", "subtask_every": 3}
    for options in ({}, {"beta": 2.0, "steps": 3}, {"indicator": "negative"}, more):
        policy.reset(7)
        wanted = [infer(policy, **options) for _ in range(2)]
        remote.reset(7)
        found = [infer(remote, **options) for _ in range(2)]
        for one, other in zip(wanted, found, strict=True):
            assert np.array_equal(one.positions, other.positions)
            assert other.positions.dtype == np.float64
            assert (one.subtask, one.indicator, one.value) == (other.subtask, other.indicator, other.value)
        assert not np.array_equal(found[0].positions, found[1].positions)  # the seed was used once
    remote.close()


def test_openpis_aloha_clients_are_answered(server: PolicyServer, policy: Policy) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5) as response:
        assert response.status == 200 and response.read() == b"OK\n"
    with connect(server.uri, compression=None, max_size=None) as connection:
        metadata = msgpack.unpackb(connection.recv())
        assert metadata["recap"]["checkpoint"] == policy.identity
        for number in range(2):
            connection.send(pack(aloha_observation()))
            answer = unpack(connection.recv())
            assert answer["actions"].shape == (50, 14)
            assert answer["server_timing"]["infer_ms"] > 0
            assert ("prev_total_ms" in answer["server_timing"]) == (number == 1)


def _without(*path: str) -> dict[str, Any]:
    observation = aloha_observation()
    place = observation
    for word in path[:-1]:
        place = place[word]
    del place[path[-1]]
    return observation


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (_without("prompt"), "ObservationError: no prompt in the observation, and the server has none"),
        (_without("state"), r"state: found nothing, wanted an array of \(14,\) numbers"),
        (_without("images", "cam_high"), r"images/cam_high: found nothing, wanted \(3, height, width\)"),
        ({**aloha_observation(), "state": np.zeros(7)}, r"state is \(7,\), wanted \(14,\)"),
        ({**aloha_observation(), "state": np.full(14, np.inf)}, "state of joint left_waist is inf"),
        ({**aloha_observation(), "images": {"cam_high": np.zeros((96, 96, 3), np.uint8)}}, "cam_high: found"),
        ({**aloha_observation(), "images": {"cam_high": np.zeros((3, 9, 9))}}, r"\(3, 9, 9\) float64"),
        ({**aloha_observation(), "prompt": 3}, "prompt: int, wanted a string"),
        ({**aloha_observation(), "recap": {"steps": 10**6}}, "recap/steps is 1000000, wanted 1 .. 100"),
        ({**aloha_observation(), "recap": {"indicator": "great"}}, "recap/indicator is 'great'"),
        ({**aloha_observation(), "recap": {"reset": 1}}, "recap/reset is 1, wanted true or false"),
        ({**aloha_observation(), "recap": {"seed": -1}}, "recap/seed is -1, wanted 0 .. "),
        ({**aloha_observation(), "recap": {"beta": float("nan")}}, "recap/beta is nan, wanted 0 .. 10"),
    ],
)
def test_malformed_observation_is_refused_in_words(
    server: PolicyServer, observation: dict[str, Any], said: str
) -> None:
    with connect(server.uri, compression=None, max_size=None) as connection:
        connection.recv()
        connection.send(pack(observation))
        text = connection.recv()
        assert isinstance(text, str) and "\n" not in text
        with pytest.raises(ContractError, match=said):
            raise ContractError(text)
        with pytest.raises(ConnectionClosedError):
            connection.recv()


def test_bytes_that_are_no_message_are_refused(server: PolicyServer) -> None:
    for data, said in ((b"\xc1 torn", "no message"), ("hello", "is a text, wanted msgpack")):
        with connect(server.uri, compression=None) as connection:
            connection.recv()
            connection.send(data)
            assert said in str(connection.recv())


def test_prompt_of_the_server_stands_in(policy: Policy) -> None:
    with served(policy, prompt=PROMPT) as server, connect(server.uri, max_size=None) as connection:
        connection.recv()
        connection.send(pack(_without("prompt")))
        assert unpack(connection.recv())["actions"].shape == (50, 14)


def test_a_foreign_server_is_told_nothing_it_does_not_know() -> None:
    seen: list[dict] = []

    def answer(message: dict) -> dict:
        seen.append(message)
        return {"actions": GOOD.astype(np.float32) + 1e-3, "policy_timing": {"infer_ms": 1.0}}

    with foreign(answer) as uri:
        remote = client(uri)
        assert remote.identity == uri and remote.value_identity == ""
        remote.reset(3)
        chunk = infer(remote)
        assert set(seen[0]) == {"state", "images", "prompt"}
        assert chunk.positions.shape == (50, 14) and chunk.value is None and chunk.indicator == ""
        assert (chunk.positions <= STATION.upper).all()  # open grippers, a little beyond, are brought back
        with pytest.raises(ObservationError, match=r"knows no advantage .*: beta is 2, .* wanted 1,"):
            infer(remote, beta=2.0)
        with pytest.raises(ObservationError, match="no image of camera left_wrist_camera"):
            remote.infer({"base_camera": IMAGES["base_camera"]}, STATION.home, PROMPT)
        infer(remote)
        remote.close()


def test_what_the_server_says_of_an_error_is_shown_and_the_next_call_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recap_policy.remote.FIRST_PAUSE_S", 1.0)
    traceback = "Traceback (most recent call last):\n  File x\nValueError: Expected images to contain cam"
    answers = [traceback, {"actions": GOOD}]
    with foreign(lambda _: answers.pop(0)) as uri:
        remote = client(uri)
        with pytest.raises(RemoteError, match=r"server says: ValueError: Expected images.*again in 1 s"):
            infer(remote)
        with pytest.raises(RemoteError, match=r"Expected images.*trying again in [01]\.\d s"):
            infer(remote)  # without a call
        time.sleep(1.1)
        assert infer(remote).positions.shape == (50, 14)
        remote.close()


def test_silence_is_not_waited_for() -> None:
    def answer(_: dict) -> dict:
        time.sleep(0.5)
        return {"actions": GOOD}

    with foreign(answer) as uri:
        remote = client(uri, first_timeout_s=5.0, timeout_s=0.2)
        infer(remote)  # the first may take long
        with pytest.raises(RemoteError, match=r"no answer within 0\.2 s"):
            infer(remote)
        remote.close()


def test_lost_connection_is_told_and_built_anew(policy: Policy) -> None:
    with served(policy) as server:
        port = server.port
        remote = client(server.uri)
        infer(remote)
    with pytest.raises(RemoteError, match=rf":{port}: no policy server there: .*trying again in 0.25"):
        infer(remote)
    time.sleep(0.3)
    with pytest.raises(RemoteError, match=r"trying again in 0.5 s"):  # longer with every failure
        infer(remote)
    time.sleep(0.6)
    with served(policy, port=port):
        assert infer(remote).positions.shape == (50, 14)
        remote.close()
        assert infer(remote).positions.shape == (50, 14)  # a connection that had gone is no failure
        remote.close()


@pytest.mark.parametrize(
    ("place", "value", "error", "said"),
    [
        ("ws://127.0.0.1:{port}", "", RemoteError, "no policy server there: .*refused"),
        ("ws://", "", RemoteError, "no policy server there"),
        ("ws://me:secret@127.0.0.1:{port}", "", ContractError, "credentials in its address.*RECAP_API_KEY"),
        ("wss://127.0.0.1:{port}", "some/folder", ContractError, "'some/folder': wanted none"),
    ],
)
def test_a_server_that_cannot_be_had(place: str, value: str, error: type, said: str) -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(error, match=said) as caught:
            open_policy(place.format(port=taken.getsockname()[1]), STATION, value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "recap_policy.remote", None)
    with pytest.raises(ContractError, match="ws://robot: a policy server wants msgpack and websockets 13"):
        open_policy("ws://robot", STATION)


def test_the_key_travels_as_openpis_client_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def converse(connection: Any) -> None:
        seen.append(connection.request.headers.get("Authorization"))
        connection.send(pack({}))
        for _ in connection:
            pass

    monkeypatch.setenv("RECAP_API_KEY", "k1")
    with listen(converse, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client(f"ws://127.0.0.1:{server.socket.getsockname()[1]}").close()
        server.shutdown()
        thread.join()
    assert seen == ["Api-Key k1"]


def test_encrypted_connections_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    subprocess.run([*make, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with foreign(lambda _: {"actions": GOOD}, ssl=context) as uri:
        port = uri.rsplit(":", 1)[1]
        with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
            client(f"wss://localhost:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        remote = client(f"wss://localhost:{port}")
        assert infer(remote).positions.shape == (50, 14)
        remote.close()


def test_a_taken_port_is_told(policy: Policy, server: PolicyServer) -> None:
    with pytest.raises(ContractError, match=rf"cannot listen at 127.0.0.1:{server.port}"):
        PolicyServer(policy, STATION, LAYOUT, port=server.port)


def test_the_inference_process_takes_a_server_for_a_checkpoint(server: PolicyServer, policy: Policy) -> None:
    jpeg = cv2.imencode(".jpg", IMAGES["base_camera"])[1].tobytes()
    process = InferenceProcess()
    process.start()
    try:
        process.load(server.uri, "", STATION)
        loaded = process.poll(60.0)
        assert isinstance(loaded, Loaded) and loaded.policy == policy.identity
        process.infer({name: jpeg for name in STATION.camera_names}, STATION.home, PROMPT, reset=True)
        inferred = process.poll(60.0)
        assert isinstance(inferred, Inferred) and inferred.chunk.positions.shape == (50, 14)
        assert (inferred.policy, inferred.value) == (policy.identity, policy.value_identity)
        process.load("ws://127.0.0.1:1", "", STATION)
        failed = process.poll(60.0)
        assert isinstance(failed, Failed) and "ws://127.0.0.1:1: no policy server there" in failed.message
    finally:
        process.stop()


def test_served_from_the_command_line(folders: tuple[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "recap_policy.serve", "--port", "0", "--threads", "1", "--checkpoint"]
    wrong = subprocess.run([*command, "no/such"], capture_output=True, text=True, env=environment)
    assert wrong.returncode == 1 and wrong.stderr.startswith("recap serve: no/such: no checkpoint there")
    assert len(wrong.stderr.splitlines()) == 1
    process = subprocess.Popen([*command, folders[0]], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"policy {read(folders[0]).identity} served at ws://127.0.0.1:"), line
        remote = client(line.split()[4])
        infer(remote)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


# --- with openpi's own package ------------------------------------------------------------------------


def test_openpis_client_takes_our_server(policy: Policy, server: PolicyServer) -> None:
    reason = "openpi-client is not installed"
    websocket = pytest.importorskip("openpi_client.websocket_client_policy", reason=reason)
    broker = pytest.importorskip("openpi_client.action_chunk_broker", reason=reason)
    theirs = websocket.WebsocketClientPolicy(host="127.0.0.1", port=server.port)
    assert theirs.get_server_metadata()["recap"]["checkpoint"] == policy.identity
    observation = aloha_observation()
    images, state, prompt = Adapter(LAYOUT, STATION).read_observation(observation)
    policy.reset(5)
    wanted = policy.infer(images, state, prompt).positions
    policy.reset(5)
    assert np.array_equal(theirs.infer(observation)["actions"], wanted)
    steps = broker.ActionChunkBroker(theirs, action_horizon=2)
    assert [steps.infer(observation)["actions"].shape for _ in range(3)] == [(14,)] * 3
    with pytest.raises(RuntimeError, match=r"ObservationError: state is \(7,\), wanted \(14,\)"):
        theirs.infer({**observation, "state": np.zeros(7)})


def test_our_client_takes_what_openpis_package_writes() -> None:
    """Its PyPI package has no server: this is the protocol's, with the package's own messages."""
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="openpi-client is not installed")
    seen: list[dict] = []

    def converse(connection: Any) -> None:
        connection.send(theirs.packb({"reset_pose": np.zeros(6)}))
        for data in connection:
            seen.append(theirs.unpackb(data))
            connection.send(theirs.packb({"actions": GOOD.astype(np.float32), "state": STATION.home}))

    with listen(converse, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        remote = client(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        assert np.allclose(infer(remote).positions, GOOD, atol=1e-6)
        server.shutdown()
        thread.join()
    assert seen[0]["prompt"] == PROMPT and np.array_equal(seen[0]["state"], STATION.home)
    assert seen[0]["images"]["cam_high"].shape == (3, 224, 224)
    assert seen[0]["images"]["cam_high"].dtype == np.uint8
