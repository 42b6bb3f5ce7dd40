"""Bags of another recorder, for tests: a robot of three joints and one camera, in MCAP by its own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from mcap.writer import CompressionType, Writer

from recap_learner.data.episodes import (
    Cell,
    Episode,
    load_cell,
    read_attempts,
)
from recap_station import topics
from recap_station.cdr import compressed_image, definition, joint_state, serialize, typestore
from recap_station.streams import FLOAT_ARRAY_TYPE, TRAJECTORY_TYPE

START, STEP, TICKS = 1_700_000_000_000_000_000, 20_000_000, 60
JOINTS = ("a", "b", "c")
JOINT = {"lower": -3.0, "upper": 3.0, "max_velocity": 3.0, "max_acceleration": 30.0, "home": 0.0}
Row = tuple[str, str, int, bytes]  # topic, type, received, CDR


def cell(folder: Path, **streams: Any) -> Cell:
    """A robot of three joints and one camera, read from its YAML as `--station` is."""
    station = {
        "name": "three",
        "control_rate_hz": 50,
        "arms": [{"prefix": "", "joints": [{"name": name, **JOINT} for name in JOINTS]}],
        "cameras": [{"name": "eye", "width": 8, "height": 6, "rate_hz": 10}],
        "streams": streams,
    }
    path = folder / "three.yaml"
    path.write_text(yaml.safe_dump(station))
    return load_cell(path)


def write(file: Path, rows: list[Row], compression: CompressionType = CompressionType.ZSTD) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as opened:
        writer = Writer(opened, chunk_size=10_000, compression=compression)
        writer.start(profile="ros2")
        schemas: dict[str, int] = {}
        channels: dict[str, int] = {}
        for topic, kind, received, cdr in rows:
            if kind not in schemas:
                schemas[kind] = writer.register_schema(kind, "ros2msg", definition(kind).encode())
            if topic not in channels:
                channels[topic] = writer.register_channel(topic, "cdr", schemas[kind])
            writer.add_message(channels[topic], received, cdr, received)
        writer.finish()
    return file


def at(tick: float) -> int:
    return START + round(tick * STEP)


def values(tick: int) -> list[float]:
    return [tick / 100, 1 + tick / 100, 2 + tick / 100]


def state(tick: int, stamp: int | None = None) -> Row:
    now = at(tick)
    cdr = joint_state(now if stamp is None else stamp, JOINTS, values(tick))
    return "/joint_states", topics.JOINT_STATE_TYPE, now, cdr


def command(tick: int) -> Row:
    return "/joint_command", topics.JOINT_STATE_TYPE, at(tick), joint_state(at(tick), JOINTS, values(tick))


def picture(tick: int) -> Row:
    jpeg = cv2.imencode(".jpg", np.full((6, 8, 3), 2 * tick, np.uint8))[1].tobytes()
    return "/eye/image_raw/compressed", topics.IMAGE_TYPE, at(tick), compressed_image(at(tick), jpeg)


def moved(row: Row, seconds: float, received_too: bool = True) -> Row:
    """With another stamp; the topics of `whole`."""
    topic, kind, received, cdr = row
    whole_s, rest = divmod(int.from_bytes(cdr[4:8], "little") * 10**9 + int.from_bytes(cdr[8:12], "little")
                           + round(seconds * 1e9), 10**9)  # fmt: skip
    stamped = cdr[:4] + whole_s.to_bytes(4, "little") + rest.to_bytes(4, "little") + cdr[12:]
    return topic, kind, received + round(seconds * 1e9) * received_too, stamped


def trajectory(tick: int) -> Row:
    """Four points, of three ticks each."""
    types, none = typestore().types, np.zeros(0)
    point = types["trajectory_msgs/msg/JointTrajectoryPoint"]
    duration = types["builtin_interfaces/msg/Duration"]
    points = [
        point(np.full(3, tick + k / 10), none, none, none, duration(sec=0, nanosec=(k + 1) * 3 * STEP))
        for k in range(4)
    ]
    cdr = serialize(TRAJECTORY_TYPE, stamp_ns=at(tick), joint_names=list(JOINTS), points=points)
    return "/go", TRAJECTORY_TYPE, at(tick), cdr


def array(tick: int, numbers: list[float]) -> Row:
    layout = typestore().types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return "/go", FLOAT_ARRAY_TYPE, at(tick), serialize(FLOAT_ARRAY_TYPE, layout=layout, data=numbers)


def whole(change: Callable[[int], list[Row]] = lambda tick: []) -> list[Row]:
    """State, command and image at every tick, and what a test adds."""
    return [
        row
        for tick in range(TICKS)
        for row in (state(tick), command(tick), *([picture(tick)] if tick % 5 == 0 else []), *change(tick))
    ]


def read(rows: list[Row], folder: Path, **streams: Any) -> Episode:
    [episode] = read_attempts(write(folder / "bag.mcap", rows), folder, cell(folder, **streams))
    return episode


def expected() -> np.ndarray:
    return np.array([values(tick) for tick in range(TICKS)], dtype=np.float32)


def event(tick: int, name: str, running: bool, outcome: int = 0, reason: str = "") -> Row:
    kind = topics.EPISODE_TYPE
    fields = {"id": name, "state": 1 if running else 2, "outcome": outcome, "reason": reason}
    return "/episode", kind, at(tick), serialize(kind, stamp_ns=at(tick), **fields)
