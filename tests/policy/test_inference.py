"""The inference process: answers, typed refusals, and what happens when it dies."""

from __future__ import annotations

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
from recap_policy.config import vla_config
from recap_policy.inference import Failed, InferenceDied, InferenceProcess, Inferred, Loaded, Reply
from recap_policy.vla import VLA
from recap_station.contract import load_station

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
    process = InferenceProcess()
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
