"""A LeRobot data set, version 3.0, as episodes of a store.

One that `lerobot_export` wrote comes back as it was. Anybody else's is read as demonstrations of a station
and a task that are named: observation.state and action in the station's joint order, held at its control
rate. Images go into a bag for each episode, `imported/<id>` in the store, as JPEG.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.store import LABEL_COLUMNS, Store
from recap_learner.exchange.lerobot_export import RECAP, UNLABELLED, video_key
from recap_learner.exchange.video import ExchangeError, read_frames
from recap_station import topics
from recap_station.bags import BagReader, BagWriter
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import Station, Task
from recap_station.streams import ROLES, Stream, Streams, default_streams
from recap_station.ticks import hold, tick_times

JPEG_QUALITY = 95


def import_lerobot(
    folder: Path,
    store: Store,
    station: Station | None = None,
    task: Task | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> list[str]:
    """Read a data set into a store → names of the episodes. station, task: of a data set that is not ours;
    its own prompts take the place of the task's. Killed and called again it goes on. Raises ExchangeError,
    FileExistsError where the store has another episode of the name, ConversionError on a name that leads out
    of the store."""
    try:
        info = json.loads((folder / "meta/info.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ExchangeError(f"{folder}: no LeRobot data set: {error}") from error
    if info.get("codebase_version") != "v3.0":
        raise ExchangeError(f"{folder}: version {info.get('codebase_version')!r}, wanted 'v3.0'")
    ours = json.loads((folder / RECAP).read_text()) if (folder / RECAP).exists() else None
    if ours is None and (station is None or task is None):
        raise ExchangeError(f"{folder}: not exported from here: name its --station and --task")
    episodes = pa.concat_tables(
        [pq.read_table(p) for p in sorted((folder / "meta/episodes").glob("*/*.parquet"))],
        promote_options="default",
    ).to_pylist()
    prompts = _prompts(folder)
    names = []
    for number, about in enumerate(episodes):
        table = _rows(folder, info, about)
        if ours is not None:
            kept = ours["episodes"][about["episode_index"]]
            made = _own(table, kept, f"imported/{kept['id']}")
        else:
            assert station is not None and task is not None
            prompt = prompts.get(table["task_index"][0].as_py(), task.prompt)
            name = f"{folder.name}_{about['episode_index']:06d}"
            made = _foreign(table, info, name, station, replace(task, prompt=prompt))
        if not _is_there(made, store):
            frames = partial(_frames, folder, info, about, table)
            made = _with_images(made, frames, store.folder, a_frame_each_tick=ours is not None)
            store.add(made)
        if ours is not None and ours["tag"] and (table["indicator"].to_numpy() != UNLABELLED).all():
            labels = {name: table[name].to_numpy() for name in LABEL_COLUMNS}
            store.save_labels(ours["tag"], made.info.id, labels, {"imported": str(folder)})
        names.append(made.info.id)
        if progress:
            progress((number + 1) / len(episodes), f"{number + 1}/{len(episodes)} episodes")
    return names


def _is_there(episode: Episode, store: Store) -> bool:
    """Whether it was imported before; else there is room for its bag, and no other is touched: names in a
    data set are somebody else's words."""
    if store.path(episode.info.id).exists():
        old = store.load(episode.info.id)
        pairs = ((old.state, episode.state), (old.command, episode.command))
        if all(np.array_equal(one, other, equal_nan=True) for one, other in pairs):
            return True
        raise FileExistsError(f"{store.folder}: has another episode {episode.info.id!r}; import elsewhere")
    bag = episode.info.bag_in(store.folder)
    if bag.exists():  # of an import that was killed before the episode was added
        shutil.rmtree(bag)
    return False


def _within(folder: Path, name: str) -> Path:
    """A file of the data set. Raises ExchangeError where its name leads out of it."""
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise ExchangeError(f"{folder}: {name!r} is outside the data set")
    return folder / name


def _rows(folder: Path, info: dict[str, Any], about: dict[str, Any]) -> pa.Table:
    places = {"chunk_index": about["data/chunk_index"], "file_index": about["data/file_index"]}
    file = _within(folder, info["data_path"].format(**places))
    table = pq.read_table(file, filters=[("episode_index", "=", about["episode_index"])])
    if table.num_rows != about["length"]:
        raise ExchangeError(
            f"{file}: {table.num_rows} rows of episode {about['episode_index']}, wanted {about['length']}"
        )
    return table.sort_by("frame_index")


def _own(table: pa.Table, kept: dict[str, Any], bag: str) -> Episode:
    cameras = [n.removeprefix("image_index.") for n in table.column_names if n.startswith("image_index.")]
    info = EpisodeInfo.from_dict({**kept, "bag": bag})
    modes = table["control_mode"].to_numpy() if "control_mode" in table.column_names else np.empty(0)
    return Episode(
        info=info,
        time_ns=table["time_ns"].to_numpy(),
        state=_matrix(table, "observation.state"),
        command=_matrix(table, "action"),
        policy_command=_matrix(table, "policy_action"),
        teleop_command=_matrix(table, "teleop_action"),
        source=np.array(table["source"].to_pylist(), dtype=object),
        correction=table["is_intervention"].to_numpy(),
        stage=np.array(table["stage"].to_pylist(), dtype=object),
        gap=table["gap"].to_numpy(),
        image={c: table[f"image_index.{c}"].to_numpy().astype(np.int32) for c in cameras},
        image_age={c: table[f"image_age.{c}"].to_numpy().astype(np.float32) for c in cameras},
        mode=modes.astype(np.int8),
    )


def _foreign(table: pa.Table, info: dict[str, Any], name: str, station: Station, task: Task) -> Episode:
    missing = [n for n in ("observation.state", "action") if n not in table.column_names]
    missing += [video_key(c) for c in station.camera_names if video_key(c) not in info["features"]]
    if missing:
        raise ExchangeError(f"{name}: no feature {missing[0]!r}; it has {', '.join(info['features'])}")
    state, command = _matrix(table, "observation.state"), _matrix(table, "action")
    for what, values in (("observation.state", state), ("action", command)):
        if values.shape[1] != station.dof:
            raise ExchangeError(
                f"{name}: {what} has {values.shape[1]} numbers, station {station.name} {station.dof} joints"
            )
    stamps = np.round(np.arange(len(state)) * (1e9 / info["fps"])).astype(np.int64)
    ticks = tick_times(0, int(stamps[-1]), station.control_rate_hz)
    at = hold(stamps, ticks)
    silent = np.full((len(ticks), station.dof), np.nan, np.float32)
    return Episode(
        info=EpisodeInfo(
            name, f"imported/{name}", "success", "imported", "demonstration", "", -1, task, station
        ),
        time_ns=ticks,
        state=state[at],
        command=command[at],
        policy_command=silent,
        teleop_command=silent,
        source=np.array(["teleop"] * len(ticks), dtype=object),
        correction=np.zeros(len(ticks), bool),
        stage=np.array([""] * len(ticks), dtype=object),
        gap=np.zeros(len(ticks), bool),
        image={c: at.astype(np.int32) for c in station.camera_names},
        image_age={c: ((ticks - stamps[at]) * 1e-9).astype(np.float32) for c in station.camera_names},
    )


def _frames(
    folder: Path, info: dict[str, Any], about: dict[str, Any], table: pa.Table, camera: str
) -> Iterator[np.ndarray]:
    """Images (H, W, 3) uint8 RGB of one camera in an episode, of its video or of the rows themselves."""
    key = video_key(camera)
    if info["features"][key]["dtype"] == "image":
        for row, cell in enumerate(table[key].to_pylist()):
            data = (cell or {}).get("bytes") or b""
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
            if image is None:
                raise ExchangeError(f"{folder}: episode {about['episode_index']} has no {key} in row {row}")
            yield image[..., ::-1]
        return
    places = {name: about[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    video = _within(folder, info["video_path"].format(video_key=key, **places))
    yield from read_frames(video, info["fps"], about[f"videos/{key}/from_timestamp"], about["length"])


def _with_images(
    episode: Episode,
    frames: Callable[[str], Iterator[np.ndarray]],
    store: Path,
    a_frame_each_tick: bool,
) -> Episode:
    """The episode with its images in a bag of their own, numbered from 0 on. frames: of a camera, one for
    each tick as this project exports them, or one for each image."""
    station = episode.info.station
    bag = episode.info.bag_in(store)
    numbered: dict[str, np.ndarray] = {}
    with BagWriter(bag, topics.recorded_topics(station), topics.LATCHED) as writer:
        first = int(episode.time_ns[0])
        writer.write(topics.EPISODE, first, serialize(topics.EPISODE_TYPE, stamp_ns=first, state=1))
        for tick, now in enumerate(episode.time_ns.tolist()):
            state, command = episode.state[tick], episode.command[tick]
            writer.write(topics.JOINT_STATES, now, joint_state(now, station.joint_names, state))
            data = joint_state(now, station.joint_names, command, str(episode.source[tick]))
            writer.write(topics.JOINT_COMMAND, now, data)
        for camera, index in episode.image.items():
            used, numbered[camera] = np.unique(index, return_inverse=True)
            if used[0] < 0:
                used, numbered[camera] = used[1:], numbered[camera] - 1
            first_tick = {int(i): int(np.argmax(index == i)) for i in used}
            frame_of = {(first_tick[int(i)] if a_frame_each_tick else int(i)): int(i) for i in used}
            for number, image in enumerate(frames(camera)):
                if number in frame_of:
                    tick = first_tick[frame_of[number]]
                    age = round(float(episode.image_age[camera][tick]) * 1e9)
                    stamp = int(episode.time_ns[tick]) - age
                    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
                    data = compressed_image(stamp, jpeg.tobytes(), camera)
                    writer.write(topics.image_topic(camera), stamp, data)
        last = int(episode.time_ns[-1])
        writer.write(topics.EPISODE, last, serialize(topics.EPISODE_TYPE, stamp_ns=last, state=2))
        writer.set_metadata(
            {
                "recap.episode": episode.info.id,
                "recap.station": json.dumps(station.to_dict()),
                "recap.task": json.dumps(episode.info.task.to_dict()),
                "recap.source": episode.info.source,
                "recap.outcome": episode.info.outcome,
                "recap.reason": episode.info.reason,
                "recap.checkpoint": episode.info.checkpoint,
                "recap.seed": str(episode.info.seed),
            }
        )
    which = {c: rows.astype(np.int32) for c, rows in numbered.items()}
    return replace(_placed(episode, which, BagReader(bag)), image=which)


def _placed(episode: Episode, image: dict[str, np.ndarray], bag: BagReader) -> Episode:
    """The episode with the places at which its bag has each tick's images."""
    camera_of = {topics.image_topic(camera): camera for camera in image}
    places: dict[str, list[tuple[int, ...]]] = {camera: [] for camera in image}
    for topic, _, _, place in bag.scan(list(camera_of)):
        places[camera_of[topic]].append(tuple(place))
    nowhere = tuple([-1] * 4)  # index −1
    at = {c: np.array([*places[c], nowhere], np.int64)[index] for c, index in image.items()}
    streams = _as_written(episode.info.streams or default_streams(episode.info.station), episode.info.station)
    files = tuple(file.name for file in bag.files)
    info = replace(episode.info, files=files, streams=streams.resolved(bag.topics))
    return replace(episode, info=info, image_at=at)


def _as_written(streams: Streams, station: Station) -> Streams:
    """The streams of the bag that is written here, which meet the ticks as the given ones did.

    A role that came over several topics comes over one, by the first one's alignment.
    """
    own = default_streams(station)

    def met(mine: Stream, theirs: Stream) -> Stream:
        return replace(mine, align=theirs.align, tolerance_s=theirs.tolerance_s, time=theirs.time)

    roles: dict[str, Any] = {role: (met(getattr(own, role)[0], getattr(streams, role)[0]),) for role in ROLES}
    images = tuple((camera, met(stream, streams.image(camera))) for camera, stream in own.images)
    return replace(own, **roles, images=images)


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1).astype(np.float32)


def _prompts(folder: Path) -> dict[int, str]:
    table = pq.read_table(folder / "meta/tasks.parquet")
    text = next((n for n in table.column_names if n != "task_index"), None)
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)) if text else {}
