"""Curves of a training: TensorBoard's event files always, Weights & Biases where it is asked for.

An event file is a row of records: length, its checksum, bytes, their checksum, the bytes a protocol buffer
`Event` of which six fields are used here. That is written out below rather than brought by a package.
Whoever shows a training while it runs reads the same files.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WANDB = "RECAP_WANDB"  # environment: project to log to


class Curves(Protocol):
    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class EventFile:
    """Scalars for `tensorboard --logdir`. A run that goes on begins another file; TensorBoard joins them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._file = self.path.open("ab")
        self._record(_field(1, time.time()) + _field(3, b"brain.Event:2"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        summary = b"".join(
            _field(1, _field(1, name.encode()) + _number(2, float(value))) for name, value in values.items()
        )
        self._record(_field(1, time.time()) + _field(2, step) + _field(5, summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _record(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))


@dataclass(frozen=True)
class Point:
    """What a curve has at one step."""

    step: int
    values: dict[str, float]


class EventReader:
    """Follows an event file of `EventFile` that may be being written: every call gives what is new."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0

    def read(self) -> list[Point]:
        """Whole records only. Raises ValueError on one that is damaged, OSError where the file is gone."""
        found = []
        with self.path.open("rb") as file:
            file.seek(self._at)
            while len(head := file.read(12)) == 12:
                (length,) = struct.unpack("<Q", head[:8])
                if head[8:] != _checksum(head[:8]):
                    raise ValueError(f"{self.path}: the record at byte {self._at} is damaged")
                body = file.read(length + 4)
                if len(body) < length + 4:
                    break
                event = body[:length]
                if body[length:] != _checksum(event):
                    raise ValueError(f"{self.path}: the record at byte {self._at} is damaged")
                self._at += 12 + length + 4
                fields = dict(_fields(event))
                if 5 in fields:
                    found.append(Point(int(fields.get(2, 0)), _values(fields[5])))
        return found


def events_in(workbench: Path) -> list[Path]:
    """The event files of a training, oldest first: one that went on began another."""
    return sorted((workbench / "events").glob("events.out.tfevents.*"))


def _values(summary: bytes) -> dict[str, float]:
    scalars = [dict(_fields(value)) for _, value in _fields(summary)]
    return {scalar[1].decode(): scalar[2] for scalar in scalars}


class WandbRun:
    """Weights & Biases, with its own settings from the environment (WANDB_MODE=offline needs no network).

    A run that goes on goes on there too. Raises ValueError where the package is missing.
    """

    def __init__(self, project: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"curves are to go to Weights & Biases, but {error.name} is not installed: "
                ".venv/bin/pip install --no-deps -r requirements-wandb.txt"
            ) from error
        mark = folder / "wandb.id"
        if not mark.exists():
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=project, id=mark.read_text(), name=folder.name, dir=str(folder), resume="allow"
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open_curves(folder: Path) -> list[Curves]:
    """Where the curves of the training in `folder` go."""
    curves: list[Curves] = [EventFile(folder / "events")]
    if project := os.environ.get(WANDB):
        curves.append(WandbRun(project, folder))
    return curves


def read_curves(folder: Path) -> list[dict[str, float]]:
    """What `EventFile` has written into `folder` so far, by step: {"step": …, "loss": …, and so on}. Several
    files are one training that was interrupted; a damaged one is left out."""
    rows: dict[int, dict[str, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        with suppress(ValueError):
            for point in EventReader(file).read():
                rows.setdefault(point.step, {"step": point.step}).update(point.values)
    return [rows[step] for step in sorted(rows)]


class Pace:
    """Samples a second and the share of time spent waiting for data, since the last call."""

    def __init__(self, loss: Any, batch: int) -> None:
        self._loss, self._batch, self._step = loss, batch, -1
        self._began, self._waited = time.monotonic(), self._data_s()

    def __call__(self, step: int) -> dict[str, float]:
        now, waited = time.monotonic(), self._data_s()
        spent = max(1e-9, now - self._began)
        found = {"samples_per_s": (step - self._step) * self._batch / spent} if self._step >= 0 else {}
        if hasattr(self._loss, "data_s"):
            found["data_wait_share"] = (waited - self._waited) / spent
        self._step, self._began, self._waited = step, now, waited
        return found

    def _data_s(self) -> float:
        return float(getattr(self._loss, "data_s", 0.0))


# Protocol buffers: a key (number of the field and kind of value), then the value.


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 1) + struct.pack("<d", value)
    return _varint(number << 3) + _varint(value)


def _number(field: int, value: float) -> bytes:
    """A float32."""
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of what `_field` and `_number` write."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _read_varint(data, at)
            yield number, data[at : at + length]
            at += length
        else:
            form = {1: "<d", 5: "<f"}[kind]
            yield number, struct.unpack_from(form, data, at)[0]
            at += struct.calcsize(form)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """→ the number and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


# CRC-32C (Castagnoli), as the records want it: rotated, and a constant added.


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
