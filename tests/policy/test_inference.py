"""The inference process: answers, typed refusals, and what happens when it dies."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recap_policy.checkpoint import save_policy
from recap_policy.chunks import Chunk
from recap_policy.device import RuntimeConfig
from recap_policy.inference import Failed, InferenceDied, InferenceProcess, Inferred, Loaded, Reply, WarmUp
from recap_policy.interface import Sampling
from recap_policy.shared import SLOT_BYTES, SLOTS, SharedSlots
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA
from recap_policy.worker import warm_up
from recap_station.contract import ContractError, load_station

STATION = load_station("aloha")
JPEG = cv2.imencode(".jpg", np.full((96, 96, 3), 128, np.uint8))[1].tobytes()
JPEGS = {name: JPEG for name in STATION.camera_names}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "policy"
    save_policy(VLA(vla_config("tiny")), folder, {}, station=STATION)
    return folder


@pytest.fixture
def process() -> Iterator[InferenceProcess]:
    process = InferenceProcess(runtime=RuntimeConfig(device="cpu"))
    process.start()
    yield process
    process.stop()


def _answer(process: InferenceProcess) -> Reply:
    reply = process.poll(60.0)
    assert reply is not None
    return reply


def test_loads_and_infers_and_refuses_in_words(process: InferenceProcess, checkpoint: Path) -> None:
    process.infer(JPEGS, STATION.home, "insert the peg")
    early = _answer(process)
    assert isinstance(early, Failed) and early.message == "no policy is loaded"

    process.load(str(checkpoint.parent / "nothing"), "", STATION)
    missing = _answer(process)
    assert isinstance(missing, Failed) and "no checkpoint there" in missing.message

    ticket = process.load(str(checkpoint), "", STATION)
    loaded = _answer(process)
    assert isinstance(loaded, Loaded) and loaded.ticket == ticket
    assert loaded.runtime == "cpu, float32" and loaded.seconds > 0

    first = process.infer(JPEGS, STATION.home, "insert the peg")
    second = process.infer({**JPEGS, "base_camera": b"torn"}, STATION.home, "insert the peg")
    assert process.busy
    good, bad = _answer(process), _answer(process)
    assert isinstance(good, Inferred) and good.ticket == first and good.policy == loaded.policy
    assert good.chunk.positions.shape == (50, 14)
    assert isinstance(bad, Failed) and bad.ticket == second
    assert bad.message == "image of base_camera: 4 bytes that are no JPEG"
    assert not process.busy


def test_its_death_is_told_and_another_can_be_started(process: InferenceProcess, checkpoint: Path) -> None:
    assert process.pid is not None
    process.load(str(checkpoint), "", STATION)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(InferenceDied, match="ended with code -9"):
        process.poll(60.0)
    assert not process.running and process.poll() is None
    process.start()
    process.load(str(checkpoint), "", STATION)
    assert isinstance(_answer(process), Loaded)


def test_no_memory_and_no_descriptor_is_left_behind_however_it_ends(process: InferenceProcess) -> None:
    def held() -> list[str]:
        links = []
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(entry))
        return [link for link in links if "recap-inference" in link or link.startswith("socket:")]

    process.stop()
    before = held()
    for _ in range(2):
        process.start()
        assert process.pid is not None
        process.infer(JPEGS, STATION.home, "insert the peg")
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(InferenceDied):
            process.poll(60.0)
    assert held() == before
    maps = Path("/proc/self/maps").read_text()
    assert "recap-inference" not in maps


def test_more_than_can_be_kept_is_refused_in_words(process: InferenceProcess) -> None:
    large = {"base_camera": bytes(SLOT_BYTES + 1)}
    with pytest.raises(ContractError, match=f"images of more than {SLOT_BYTES} bytes"):
        process.infer(large, STATION.home, "insert the peg")
    assert not process.busy
    for _ in range(SLOTS):
        process.infer(JPEGS, STATION.home, "insert the peg")
    with pytest.raises(ContractError, match=f"{SLOTS} requests are unanswered, wanted at most {SLOTS}"):
        process.infer(JPEGS, STATION.home, "insert the peg")
    for _ in range(SLOTS):
        assert isinstance(_answer(process), Failed)
    process.infer(JPEGS, STATION.home, "insert the peg")


def test_a_request_of_any_size_does_not_wait_for_the_far_side(process: InferenceProcess) -> None:
    """A socket takes some 200 kB; the far side is stopped and takes nothing."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        process.infer({name: bytes(1 << 20) for name in JPEGS}, STATION.home, "insert the peg")
        assert time.monotonic() - started < 1.0
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_slots_hold_what_was_written_on_either_side() -> None:
    near = SharedSlots()
    far = SharedSlots(os.dup(near.descriptor))
    spans = near.write(1, [b"first", array.array("B", b"second"), b""])
    assert [far.read(1, span).tobytes() for span in spans] == [b"first", b"second", b""]
    positions = np.arange(700.0).reshape(50, 14)
    shape = far.write_array(3, positions[:, ::-1])
    np.testing.assert_array_equal(near.read_array(3, shape), positions[:, ::-1])
    with pytest.raises(ContractError, match="slot 4"):
        far.read(4, (0, 1))
    with pytest.raises(ContractError, match=str(SLOT_BYTES)):
        far.read(0, (SLOT_BYTES - 1, 2))
    near.close()
    far.close()


class _Recorder:
    """A policy that answers zeros and keeps what it was asked."""

    identity, value_identity = "recorder", ""

    def __init__(self) -> None:
        self.asked: list[tuple[float, int, int, int]] = []
        self.resets = 0

    def infer(self, images, state, prompt, how=Sampling(), ahead=None) -> Chunk:
        assert {name: image.shape for name, image in images.items()} == dict.fromkeys(JPEGS, (96, 96, 3))
        self.asked.append((how.beta, how.steps, how.subtask_every, ahead.frozen if ahead else 0))
        return Chunk(np.zeros((50, 14)))

    def reset(self, seed: int | None = None) -> None:
        self.resets += 1


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_warming_up_takes_every_path_that_will_be_taken(beta: float) -> None:
    policy = _Recorder()
    warm_up(policy, STATION, WarmUp(Sampling(beta, 7, subtask_every=2), 3))
    assert set(policy.asked) == {(b, 7, 2, lead) for b in (1.0, beta) for lead in (0, 3)}
    assert policy.resets == 1  # nothing of it is carried over


def test_it_does_not_outlive_its_near_side() -> None:
    code = (
        "import os; from recap_policy.inference import InferenceProcess; "
        "p = InferenceProcess(); p.start(); print(p.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in _status(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_near_side_imports_no_torch() -> None:
    code = "import sys, recap_policy.inference; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
