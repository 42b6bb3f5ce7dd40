"""From rosbags to labelled episodes: one row per 50 Hz tick, written beside the bags, never into them.

An episode holds states, commands, who commanded, the stage and which image of each camera belongs to
each tick. Images stay in the bag and are read from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_station import topics
from recap_station.bags import BagReader, deserialize
from recap_station.contract import ContractError, Station, Task
from recap_station.files import replace_file
from recap_station.ticks import STALE_S, age_s, hold, tick_times

SUFFIX = ".episode.parquet"
OUTCOMES = ("success", "failure", "discarded")  # what a person or the simulator may say of an attempt
EPISODE_RUNNING = 1  # recap_interfaces/msg/Episode.RUNNING


class ConversionError(ValueError):
    """A bag cannot become an episode. One line with what was wanted and what was found."""


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of an attempt besides its ticks."""

    id: str
    bag: str  # path of the bag's folder, relative to the store
    outcome: str  # "success", "failure", "discarded" or "unknown"
    reason: str
    source: str  # "demonstration", "rollout", ...
    checkpoint: str
    seed: int
    task: Task
    station: Station

    @property
    def success(self) -> bool:
        return self.outcome == "success"


@dataclass(frozen=True)
class Episode:
    """One attempt on its 50 Hz timeline. T ticks, D joints.

    time_ns (T,) int64; state, command (T, D) float32 [rad; gripper 0..1]; policy_command and
    teleop_command likewise, NaN where that source said nothing; source (T,) str of who commanded;
    correction (T,) bool: a person commanded during a rollout; stage (T,) str; gap (T,) bool: state or
    command was older than STALE_S; image[camera] (T,) int32 index of the image in the bag, −1 before
    the first; image_age[camera] (T,) float32 seconds.
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

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def duration_s(self) -> float:
        return len(self) * self.info.station.step_s


def convert_bags(
    bags: Iterable[Path], store: Path, progress: Callable[[float, str], None] | None = None
) -> tuple[list[Path], list[str]]:
    """Convert bags, or folders of bags, into `store` → (files written or already there, problems).

    A bag that was changed since, such as by a new outcome, is converted anew. One that cannot be used
    becomes one line in the problems; the others go on. Raises OSError where the store cannot be written.
    """
    folders = find_bags(bags)
    files: list[Path] = []
    problems: list[str] = []
    for index, folder in enumerate(folders):
        target = store / f"{folder.name}{SUFFIX}"
        try:
            episode = None if _converted(folder, target) else read_bag(folder, store)
        except (ConversionError, ContractError) as error:
            problems.append(f"{folder}: {error}".replace("\n", " "))
        except Exception as error:  # somebody else's data: whatever is wrong with it, the others go on
            problems.append(f"{folder}: {type(error).__name__}: {error}".replace("\n", " "))
        else:
            if episode is not None:
                save_episode(episode, target)
            files.append(target)
        if progress:
            progress((index + 1) / len(folders), f"{index + 1}/{len(folders)} bags")
    return files, problems


def _converted(folder: Path, target: Path) -> bool:
    """Whether `target` is this bag's episode, and no older than the bag. Raises ConversionError where it is
    that of another bag of the same name."""
    if not target.exists():
        return False
    about = json.loads((pq.read_schema(target).metadata or {}).get(b"recap.episode", b"{}"))
    other = (target.parent / about.get("bag", folder)).resolve()
    if other != folder.resolve() and other.is_dir():
        raise ConversionError(f"{target} is the episode of {other} already; rename one of the bags")
    newest = max(file.stat().st_mtime_ns for file in (*folder.glob("*.mcap"), *folder.glob("metadata.yaml")))
    return other == folder.resolve() and target.stat().st_mtime_ns >= newest


def find_bags(paths: Iterable[Path]) -> list[Path]:
    """Bag folders among `paths`, which are bags or folders of bags; sorted by name, each once."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConversionError(f"{path}: wanted a bag folder or a folder of bags, found none")
        candidates = [path] if any(path.glob("*.mcap")) else sorted(p for p in path.iterdir() if p.is_dir())
        bags = [p for p in candidates if any(p.glob("*.mcap"))]
        if not bags:
            raise ConversionError(f"{path}: holds no bag (a folder with an .mcap file)")
        found.update(dict.fromkeys(bags))
    return list(found)


def read_bag(folder: Path, store: Path) -> Episode:
    """Read one attempt's bag. Raises ConversionError if it has no outcome or no contract."""
    reader = BagReader(folder)
    about = reader.metadata
    if "recap.station" not in about or "recap.task" not in about:
        raise ConversionError("its metadata holds no contract (recap.station, recap.task): not an attempt")
    try:
        station = Station.from_dict(json.loads(about["recap.station"]))
        task = Task.from_dict(json.loads(about["recap.task"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"its contract cannot be read: {error!r}") from error
    outcome = about.get("recap.outcome", "unknown")
    if outcome not in OUTCOMES:
        raise ConversionError(
            f"it has no outcome (found {outcome!r}, wanted success, failure or discarded); "
            f"./recap label {folder} --outcome <one of them>"
        )
    streams = _read_streams(reader, station)
    commands = streams.joints[topics.JOINT_COMMAND]
    states = streams.joints[topics.JOINT_STATES]
    if len(commands.stamps) < 2 or len(states.stamps) < 2:
        raise ConversionError(
            f"{len(states.stamps)} joint states and {len(commands.stamps)} commands, "
            "wanted at least 2 of each"
        )
    start, end = streams.running(commands.stamps)
    start = max(start, int(states.stamps[0]), int(commands.stamps[0]))
    if end <= start:
        raise ConversionError("no time in which the episode ran and both state and command were there")
    ticks = tick_times(start, end, station.control_rate_hz)
    state_at, command_at = hold(states.stamps, ticks), hold(commands.stamps, ticks)
    source = np.array(commands.labels, dtype=object)[command_at]
    rollout = about.get("recap.source", "rollout") != "demonstration"
    stage_at = hold(streams.stage_stamps, ticks)
    gap = (age_s(states.stamps, ticks, state_at) > STALE_S) | (
        age_s(commands.stamps, ticks, command_at) > STALE_S
    )
    image, image_age = {}, {}
    for camera, stamps in streams.images.items():
        at = hold(stamps, ticks)
        image[camera] = at.astype(np.int32)
        image_age[camera] = age_s(stamps, ticks, at)
    info = EpisodeInfo(
        id=folder.name,  # not the episode's: one whose recorder was restarted has two bags
        bag=os.path.relpath(folder, store),
        outcome=outcome,
        reason=about.get("recap.reason", ""),
        source=about.get("recap.source", "rollout"),
        checkpoint=about.get("recap.checkpoint", ""),
        seed=int(about.get("recap.seed", -1)),
        task=task,
        station=station,
    )
    return Episode(
        info=info,
        time_ns=ticks,
        state=states.values[state_at],
        command=commands.values[command_at],
        policy_command=_while_fresh(streams.joints[topics.POLICY_COMMAND], ticks, station.dof),
        teleop_command=_while_fresh(streams.joints[topics.TELEOP_COMMAND], ticks, station.dof),
        source=source,
        correction=(source == "teleop") & rollout,
        stage=np.array([streams.stages[i] if i >= 0 else "" for i in stage_at], dtype=object),
        gap=gap,
        image=image,
        image_age=image_age,
    )


def read_images(bag: Path, camera: str, wanted: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Decode the wanted images of one camera, in ascending order → (H, W, 3) uint8 RGB each."""
    topic = topics.image_topic(camera)
    want = iter(sorted({int(i) for i in wanted}))
    following = next(want, None)
    for index, (_, _, cdr) in enumerate(BagReader(bag).messages([topic])):
        if following is None:
            return
        if index == following:
            yield decode_jpeg(deserialize(cdr, topics.IMAGE_TYPE).data)
            following = next(want, None)
    if following is not None:
        raise ConversionError(f"{bag}: image {following} of {topic} is missing")


def decode_jpeg(data: np.ndarray) -> np.ndarray:
    """JPEG bytes → (H, W, 3) uint8 RGB. Raises ConversionError if they are not an image."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ConversionError(f"{len(data)} bytes that are not a JPEG image")
    return image


def save_episode(episode: Episode, path: Path) -> None:
    """Write an episode as one Parquet file, in one step."""
    dof = episode.state.shape[1]

    def rows(values: np.ndarray) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, dof)

    columns: dict[str, Any] = {"time_ns": episode.time_ns}
    for name in ("state", "command", "policy_command", "teleop_command"):
        columns[name] = rows(getattr(episode, name))
    columns |= {
        "source": pa.array(episode.source.tolist()).dictionary_encode(),
        "correction": episode.correction.astype(bool),
        "stage": pa.array(episode.stage.tolist()).dictionary_encode(),
        "gap": episode.gap,
    }
    for camera in episode.image:
        columns[f"image.{camera}"] = episode.image[camera]
        columns[f"image_age.{camera}"] = episode.image_age[camera]
    info = episode.info
    about = {**info.__dict__, "task": info.task.to_dict(), "station": info.station.to_dict()}
    table = pa.table(columns).replace_schema_metadata({"recap.episode": json.dumps(about)})
    replace_file(path, lambda temporary: pq.write_table(table, temporary))


def load_episode(path: Path) -> Episode:
    """Read an episode back. Raises ConversionError if the file is not one."""
    with open(path, "rb") as file:  # by name it is opened twice, and may be another the second time
        table = pq.read_table(file)
    metadata = table.schema.metadata or {}
    if b"recap.episode" not in metadata:
        raise ConversionError(f"{path}: not an episode file")
    about = json.loads(metadata[b"recap.episode"])
    info = EpisodeInfo(
        **{
            **about,
            "task": Task.from_dict(about["task"]),
            "station": Station.from_dict(about["station"]),
        }
    )

    def rows(name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

    cameras = [name.removeprefix("image.") for name in table.column_names if name.startswith("image.")]
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
    )


@dataclass
class _Joints:
    """A JointState stream: stamps (M,), values (M, D) and header.frame_id of each message."""

    stamps: np.ndarray
    values: np.ndarray
    labels: list[str]


@dataclass
class _Streams:
    joints: dict[str, _Joints]
    images: dict[str, np.ndarray]
    stage_stamps: np.ndarray
    stages: list[str]
    episode_states: list[tuple[int, int]]

    def running(self, fallback: np.ndarray) -> tuple[int, int]:
        """Start and end of the running time in ns; all of `fallback`'s where the bag says nothing."""
        running = [stamp for stamp, state in self.episode_states if state == EPISODE_RUNNING]
        ended = [stamp for stamp, state in self.episode_states if state > EPISODE_RUNNING]
        start = running[0] if running else int(fallback[0])
        return start, min(ended[0] if ended else int(fallback[-1]), int(fallback[-1]))


def _read_streams(reader: BagReader, station: Station) -> _Streams:
    joints: dict[str, tuple[list[int], list[np.ndarray], list[str]]] = {
        name: ([], [], [])
        for name in (
            topics.JOINT_STATES,
            topics.JOINT_COMMAND,
            topics.POLICY_COMMAND,
            topics.TELEOP_COMMAND,
        )
    }
    images: dict[str, list[int]] = {camera: [] for camera in station.camera_names}
    camera_of = {topics.image_topic(camera): camera for camera in station.camera_names}
    stage_stamps: list[int] = []
    stages: list[str] = []
    episode_states: list[tuple[int, int]] = []
    wanted = [*joints, *camera_of, topics.SIM_TRUTH, topics.EPISODE]
    types = reader.topics
    for topic, _, cdr in reader.messages([name for name in wanted if name in types]):
        message = deserialize(cdr, types[topic])
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        if topic in joints:
            stamps, values, labels = joints[topic]
            stamps.append(stamp)
            values.append(station.vector(message.name, message.position))
            labels.append(message.header.frame_id)
        elif topic in camera_of:
            images[camera_of[topic]].append(stamp)
        elif topic == topics.SIM_TRUTH:
            stage_stamps.append(stamp)
            stages.append(message.stage)
        else:
            episode_states.append((stamp, message.state))
    return _Streams(
        joints={name: _in_order(*stream, station.dof) for name, stream in joints.items()},
        images={camera: np.array(stamps, dtype=np.int64) for camera, stamps in images.items()},
        stage_stamps=np.array(stage_stamps, dtype=np.int64),
        stages=stages,
        episode_states=episode_states,
    )


def _in_order(stamps: list[int], values: list[np.ndarray], labels: list[str], dof: int) -> _Joints:
    """Sort a stream by stamp: receive order can differ by a message where two publishers take turns."""
    times = np.array(stamps, dtype=np.int64)
    order = np.argsort(times, kind="stable")
    rows = np.array(values, dtype=np.float32).reshape(-1, dof)
    return _Joints(times[order], rows[order], [labels[i] for i in order])


def _while_fresh(stream: _Joints, ticks: np.ndarray, dof: int) -> np.ndarray:
    """Values of a source at each tick; NaN where it had fallen silent."""
    values = np.full((len(ticks), dof), np.nan, dtype=np.float32)
    at = hold(stream.stamps, ticks)
    fresh = age_s(stream.stamps, ticks, at) <= STALE_S
    values[fresh] = stream.values[at[fresh]]
    return values
