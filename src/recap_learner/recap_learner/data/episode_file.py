"""One attempt as its ticks, and the file that keeps them: Parquet, one an episode, written in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_station import storage
from recap_station.contract import Station, Task
from recap_station.files import replace_file
from recap_station.streams import Streams

SUFFIX = ".episode.parquet"
OUTCOMES = ("success", "failure", "discarded")  # what a person or the simulator may say of an attempt


class ConversionError(ValueError):
    """A bag cannot become an episode. One line with what was wanted and what was found."""


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of an attempt besides its ticks."""

    id: str
    bag: str  # where the bag's folder, or its file, is, as seen from the store; see bag_in
    outcome: str  # "success", "failure", "discarded" or "unknown"
    reason: str
    source: str  # "demonstration", "rollout", ...
    checkpoint: str
    seed: int
    task: Task
    station: Station
    damage: str = ""  # what was lost or left out of the recording; empty: nothing
    files: tuple[str, ...] = ()  # of the bag, in order, relative to it: image_at counts in them
    streams: Streams | None = None  # where its columns come from, with types; None: the station's defaults
    unchecked: bool = False  # some message has no checksum, as in sqlite3: there damage can be silent
    made_of: str = ""  # the bag's files as they were (recap_station.storage.version); empty: not known
    told: tuple[str, ...] = ()  # what conversion was told in place of the bag's: "station", "task"

    def bag_in(self, store: Path) -> Path:
        """The bag of an episode of `store`."""
        return storage.place_in(store, self.bag)

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        about = {**self.__dict__, "task": self.task.to_dict(), "station": self.station.to_dict()}
        return {**about, "streams": self.streams.to_dict() if self.streams else None}

    @staticmethod
    def from_dict(about: Mapping[str, Any]) -> EpisodeInfo:
        """As to_dict made it; what older ones lack is as the defaults are."""
        station = Station.from_dict(about["station"])
        streams = Streams.from_dict(about["streams"], station) if about.get("streams") else None
        given = {"task": Task.from_dict(about["task"]), "station": station, "streams": streams}
        listed = {name: tuple(about.get(name, ())) for name in ("files", "told")}
        return EpisodeInfo(**{**about, **given, **listed})


@dataclass(frozen=True)
class Episode:
    """One attempt on its 50 Hz timeline. T ticks, D joints.

    time_ns (T,) int64; state, command (T, D) float32 [rad; gripper 0..1]; policy_command and
    teleop_command likewise, NaN where that source said nothing; source (T,) str of who commanded;
    correction (T,) bool: a person commanded during a rollout; stage (T,) str; gap (T,) bool: state or
    command was older than STALE_S, or of some joint there was none (NaN); image[camera] (T,) int32 which of
    the camera's usable images in the bag, in order of arrival, −1 where there is none; image_age[camera] (T,)
    float32 seconds; objects (T, F) float32 what a simulator's `Scene.features` were, (T, 0) where nobody kept
    them; image_at[camera] (T, 4) int64 where its message stands (see
    recap_station.bag_reader.FilePlace), −1 where there is none or it came from the live graph; mode (T,) int8
    of recap_interfaces/ControlMode, −1 where none had been said.
    """

    info: EpisodeInfo
    time_ns: np.ndarray
    state: np.ndarray
    command: np.ndarray
    policy_command: np.ndarray
    teleop_command: np.ndarray
    source: np.ndarray
    correction: np.ndarray
    stage: np.ndarray
    gap: np.ndarray
    image: dict[str, np.ndarray] = field(default_factory=dict)
    image_age: dict[str, np.ndarray] = field(default_factory=dict)
    image_at: dict[str, np.ndarray] = field(default_factory=dict)
    mode: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int8))
    objects: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def duration_s(self) -> float:
        return len(self) * self.info.station.step_s


def save_episode(episode: Episode, path: Path) -> None:
    """Write an episode as one Parquet file, in one step."""
    dof = episode.state.shape[1]

    def rows(values: np.ndarray) -> pa.Array:
        return _lists(np.ascontiguousarray(values, dtype=np.float32), dof)

    columns: dict[str, Any] = {"time_ns": episode.time_ns}
    for name in ("state", "command", "policy_command", "teleop_command"):
        columns[name] = rows(getattr(episode, name))
    columns |= {
        "source": pa.array(episode.source.tolist()).dictionary_encode(),
        "correction": episode.correction.astype(bool),
        "stage": pa.array(episode.stage.tolist()).dictionary_encode(),
        "gap": episode.gap,
        "mode": _or_unknown(episode.mode, len(episode)),
    }
    if episode.objects.size:
        objects = np.ascontiguousarray(episode.objects, dtype=np.float32)
        columns["objects"] = _lists(objects, objects.shape[1])
    for camera in episode.image:
        columns[f"image.{camera}"] = episode.image[camera]
        columns[f"image_age.{camera}"] = episode.image_age[camera]
        if camera in episode.image_at:
            places = np.ascontiguousarray(episode.image_at[camera], dtype=np.int64)
            columns[f"image_at.{camera}"] = _lists(places, 4)
    about = json.dumps(episode.info.to_dict())
    table = pa.table(columns).replace_schema_metadata({"recap.episode": about})
    replace_file(path, lambda temporary: pq.write_table(table, temporary))


def read_info(path: Path) -> EpisodeInfo:
    """What is known of an episode, without its ticks. Raises ConversionError if the file is not one."""
    return _info(path, pq.read_schema(path).metadata or {})


def load_episode(path: Path) -> Episode:
    """Read an episode back. Raises ConversionError if the file is not one."""
    with open(path, "rb") as file:  # by name it is opened twice, and may be another the second time
        table = pq.read_table(file)
    info = _info(path, table.schema.metadata or {})

    def rows(name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

    cameras = [name.removeprefix("image.") for name in table.column_names if name.startswith("image.")]
    none = np.empty(0, dtype=np.int8)
    placed = [camera for camera in cameras if f"image_at.{camera}" in table.column_names]
    return Episode(
        info=info,
        time_ns=table["time_ns"].to_numpy(),
        state=rows("state"),
        command=rows("command"),
        policy_command=rows("policy_command"),
        teleop_command=rows("teleop_command"),
        source=np.array(table["source"].to_pylist(), dtype=object),
        correction=table["correction"].to_numpy(),
        stage=np.array(table["stage"].to_pylist(), dtype=object),
        gap=table["gap"].to_numpy(),
        image={camera: table[f"image.{camera}"].to_numpy() for camera in cameras},
        image_age={camera: table[f"image_age.{camera}"].to_numpy() for camera in cameras},
        image_at={camera: rows(f"image_at.{camera}") for camera in placed},
        mode=_or_unknown(table["mode"].to_numpy() if "mode" in table.column_names else none, len(table)),
        objects=rows("objects") if "objects" in table.column_names else np.empty((len(table), 0), np.float32),
    )


def _info(path: Path, metadata: Mapping[bytes, bytes]) -> EpisodeInfo:
    if b"recap.episode" not in metadata:
        raise ConversionError(f"{path}: not an episode file")
    return EpisodeInfo.from_dict(json.loads(metadata[b"recap.episode"]))


def _lists(values: np.ndarray, width: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _or_unknown(modes: np.ndarray, ticks: int) -> np.ndarray:
    """Files of before modes were kept, and episodes made without, have none."""
    return modes.astype(np.int8) if len(modes) == ticks else np.full(ticks, -1, dtype=np.int8)
