"""Curves: event files that TensorBoard reads, and Weights & Biases where it is asked for."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from recap_learner.training.logs import (
    WANDB,
    EventFile,
    EventReader,
    Point,
    crc32c,
    events_in,
    open_curves,
    read_curves,
)
from recap_learner.training.training import Schedule, fit


def records(path: Path) -> list[bytes]:
    """Events of a file, every checksum verified."""

    def verified(data: bytes, sum_: bytes) -> bytes:
        crc = crc32c(data)
        assert struct.unpack("<I", sum_)[0] == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        return data

    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack("<Q", verified(data[at : at + 8], data[at + 8 : at + 12]))
        found.append(verified(data[at + 12 : at + 12 + length], data[at + 12 + length : at + 16 + length]))
        at += 16 + length
    return found


def fields(data: bytes) -> list[tuple[int, object]]:
    """A protocol buffer's fields: (number, value)."""
    found: list[tuple[int, object]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        value: object
        if key & 7 == 0:
            value = varint()
        elif key & 7 == 1:
            (value,) = struct.unpack_from("<d", data, at)
            at += 8
        elif key & 7 == 5:
            (value,) = struct.unpack_from("<f", data, at)
            at += 4
        else:
            length = varint()
            value = data[at : at + length]
            at += length
        found.append((key >> 3, value))
    return found


def scalars(path: Path) -> dict[tuple[int, str], float]:
    found = {}
    for event in map(dict, map(fields, records(path)[1:])):
        for _, entry in fields(event[5]):
            tag, value = dict(fields(entry)).values()
            found[event[2], tag.decode()] = value
    return found


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogues
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_what_is_added_is_in_the_file_at_once(tmp_path) -> None:
    file = EventFile(tmp_path)
    file.add(300, {"loss": 0.5, "learning_rate": 1e-3})
    file.add(70_000, {"loss": 0.25})
    assert dict(fields(records(file.path)[0]))[3] == b"brain.Event:2"
    assert scalars(file.path) == pytest.approx(
        {(300, "loss"): 0.5, (300, "learning_rate"): 1e-3, (70_000, "loss"): 0.25}
    )
    file.close()


def test_curves_are_read_while_they_are_written(tmp_path) -> None:
    assert read_curves(tmp_path / "none") == []
    for begin in (0, 40):  # a training that was interrupted
        file = EventFile(tmp_path)
        for step in range(begin, begin + 60, 20):
            file.add(step, {"loss": 1 / (step + 1), "flow": 300.0})
    half = file.path.read_bytes()
    file.add(1000, {"loss": 0.0})
    file.close()
    file.path.write_bytes(file.path.read_bytes()[: len(half) + 9])  # of the last record
    found = read_curves(tmp_path)
    assert [row["step"] for row in found] == [0, 20, 40, 60, 80]
    assert found[2] == {"step": 40, "loss": pytest.approx(1 / 41), "flow": 300.0}


def test_tensorboard_reads_it(tmp_path) -> None:
    name = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(name, reason="tensorboard is not installed")
    file = EventFile(tmp_path)
    for step in (0, 20, 5_000):
        file.add(step, {"loss": 1 / (step + 1)})
    file.close()
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (step, pytest.approx(1 / (step + 1))) for step in (0, 20, 5_000)
    ]


class Loss:
    data_s = 0.0

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        self.data_s += 1e-5
        return {"loss": self.network(torch.randn(8, 4, generator=generator)).square().mean()}


def test_every_training_leaves_curves_of_loss_rate_pace_and_waiting(tmp_path) -> None:
    network = nn.Linear(4, 1)
    log = fit(network, Loss(network), Schedule(steps=45, batch=8), 0, tmp_path)
    (file,) = (tmp_path / "events").iterdir()
    found = scalars(file)
    assert [found[row["step"], "loss"] for row in log] == pytest.approx([row["loss"] for row in log])
    for name in ("learning_rate", "gradient", "samples_per_s", "data_wait_share"):
        assert found[40, name] > 0
    assert found[40, "data_wait_share"] < 1


def test_weights_and_biases_is_asked_for_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(WANDB, raising=False)
    assert [type(curve).__name__ for curve in open_curves(tmp_path)] == ["EventFile"]
    monkeypatch.setenv(WANDB, "recap")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is not installed: .*requirements-wandb.txt"):
        open_curves(tmp_path)


def test_weights_and_biases_offline_keeps_the_run_over_a_restart(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (requirements-wandb.txt)")
    monkeypatch.setenv(WANDB, "recap")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for _ in range(2):
        network = nn.Linear(4, 1)
        fit(network, Loss(network), Schedule(steps=3, batch=8), 0, tmp_path / "run")
        ids.append((tmp_path / "run" / "wandb.id").read_text())
    assert ids[0] == ids[1]
    assert list((tmp_path / "run").rglob(f"*{ids[0]}.wandb"))


def test_curves_are_read_back_while_they_are_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events")
    [path] = events_in(tmp_path)
    reader = EventReader(path)
    assert reader.read() == []
    file.add(0, {"loss": 2.5, "learning_rate": 0.5})
    file.add(300, {"loss": -1.25})
    assert reader.read() == [Point(0, {"loss": 2.5, "learning_rate": 0.5}), Point(300, {"loss": -1.25})]
    file.add(301, {"loss": 0.0})
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # half a record is one that is being written
    assert reader.read() == []
    path.write_bytes(whole)
    assert reader.read() == [Point(301, {"loss": 0.0})] and reader.read() == []
    path.write_bytes(whole[:-1] + b"!")
    with pytest.raises(ValueError, match=r"the record at byte \d+ is damaged"):
        EventReader(path).read()
