"""A store as a LeRobot data set, version 3.0.

One data file and one video a camera for each episode, a frame for each tick. LeRobot's own columns are as its
policies want them; what it has no name for stands beside them, and `meta/recap.json` keeps what is not of a
tick, so that `lerobot_import` gives the episodes back:

    observation.state, action (the executed command), policy_action, teleop_action (NaN where silent)
    is_intervention, gap, source, control_mode (recap_interfaces/ControlMode, −1: none said), stage, outcome,
    time_ns; value, advantage (NaN), indicator (−1), forced
    image_index.<camera> (−1 before its first image: the video is black there), image_age.<camera>
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_learner.data.episodes import ConversionError, Episode, read_images
from recap_learner.data.store import Store
from recap_learner.exchange.labels import labels_tag
from recap_learner.exchange.video import ExchangeError, VideoWriter
from recap_station.files import replace_file, write_json

VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
RECAP = "meta/recap.json"
KEPT = ("id", "outcome", "reason", "source", "checkpoint", "seed", "damage", "station", "task", "streams")
IN_CHUNK = 1000
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
UNLABELLED = -1


def export_lerobot(
    store: Store,
    out: Path,
    tag: str = "",
    codec: str = "h264",
    progress: Callable[[float, str], None] | None = None,
) -> int:
    """Write every episode of a store to the new folder `out` → how many.

    tag: labels to write; "": the newest. What fails leaves no `out`. Raises ExchangeError, FileExistsError,
    FileNotFoundError.
    """
    out = out.resolve()
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: wanted a new folder, found one that is not empty")
    tag = labels_tag(store, tag)
    half = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        count = _write(store, half, tag, codec, progress)
        half.rename(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return count


def _write(
    store: Store, out: Path, tag: str, codec: str, progress: Callable[[float, str], None] | None
) -> int:
    entries, problems = store.index()
    if problems or not entries:
        raise ExchangeError(problems[0] if problems else f"{store.folder}: holds no episode")
    tasks: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []  # statistics of each episode
    features: dict[str, Any] | None = None
    first = fps = 0
    for number, entry in enumerate(entries):
        episode = store.load(entry.id)
        info = episode.info
        rate = info.station.control_rate_hz
        fps = round(rate)
        sizes, videos = _write_videos(episode, store.folder, out, number, fps, codec)
        described = _features(episode, sizes, fps, codec)
        if features not in (None, described) or fps != rate:
            found = f"{info.station.name} at {rate} Hz"
            raise ExchangeError(f"{info.id}: wanted one station of a whole rate for all, found {found}")
        features = described
        task = tasks.setdefault(info.task.prompt, len(tasks))
        columns: dict[str, np.ndarray] = {
            **_columns(episode, store.load_labels(tag, info.id) if tag else None),
            "timestamp": (np.arange(len(episode)) / fps).astype(np.float32),
            "frame_index": np.arange(len(episode)),
            "episode_index": np.full(len(episode), number),
            "index": first + np.arange(len(episode)),
            "task_index": np.full(len(episode), task),
        }
        place = {"chunk_index": number // IN_CHUNK, "file_index": number % IN_CHUNK}
        table = pa.table({name: _array(values) for name, values in columns.items()})
        replace_file(out / DATA.format(**place), partial(pq.write_table, table))
        stats = {name: _statistics(values) for name, values in columns.items() if values.dtype != object}
        stats |= videos
        parts.append(stats)
        rows.append(
            {
                "episode_index": number,
                "tasks": [info.task.prompt],
                "length": len(episode),
                "data/chunk_index": place["chunk_index"],
                "data/file_index": place["file_index"],
                "dataset_from_index": first,
                "dataset_to_index": first + len(episode),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{
                    f"videos/{key}/{name}": value
                    for key in videos
                    for name, value in {
                        **place, "from_timestamp": 0.0, "to_timestamp": len(episode) / fps
                    }.items()
                },
                **{f"stats/{n}/{k}": v.tolist() for n, s in stats.items() for k, v in s.items()},
            }
        )  # fmt: skip
        about = info.to_dict()
        kept.append({name: about[name] for name in KEPT})
        first += len(episode)
        if progress:
            progress((number + 1) / len(entries), f"{number + 1}/{len(entries)} episodes")
    assert features is not None
    replace_file(out / EPISODES, lambda path: pq.write_table(pa.Table.from_pylist(rows), path))
    _write_tasks(out / "meta/tasks.parquet", list(tasks))
    write_json(out / "meta/stats.json", _pooled(parts))
    write_json(out / RECAP, {"tag": tag, "episodes": kept})
    write_json(
        out / "meta/info.json",
        {
            "codebase_version": VERSION,
            "robot_type": entries[0].station,
            "total_episodes": len(entries),
            "total_frames": first,
            "total_tasks": len(tasks),
            "chunks_size": IN_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{len(entries)}"},
            "data_path": DATA,
            "video_path": VIDEO,
            "features": features,
        },
    )
    return len(entries)


def _columns(episode: Episode, labels: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    ticks = len(episode)
    if labels is not None and any(len(values) != ticks for values in labels.values()):
        raise ExchangeError(f"{episode.info.id}: its labels are not of its {ticks} ticks: label it anew")
    labels = labels or {}
    silent = np.full(ticks, np.nan, np.float32)
    columns = {
        "observation.state": episode.state.astype(np.float32),
        "action": episode.command.astype(np.float32),
        "policy_action": episode.policy_command.astype(np.float32),
        "teleop_action": episode.teleop_command.astype(np.float32),
        "is_intervention": episode.correction.astype(bool),
        "gap": episode.gap.astype(bool),
        "source": episode.source,
        "control_mode": episode.mode.astype(np.int64),
        "stage": episode.stage,
        "outcome": np.array([episode.info.outcome] * ticks, dtype=object),
        "time_ns": episode.time_ns.astype(np.int64),
        "value": labels.get("value", silent),
        "advantage": labels.get("advantage", silent),
        "indicator": labels.get("indicator", np.full(ticks, UNLABELLED)).astype(np.int64),
        "forced": labels.get("forced", np.zeros(ticks, bool)),
    }
    for camera in episode.image:
        columns[f"image_index.{camera}"] = episode.image[camera].astype(np.int64)
        columns[f"image_age.{camera}"] = episode.image_age[camera].astype(np.float32)
    return columns


def _features(episode: Episode, sizes: Mapping[str, tuple[int, int]], fps: int, codec: str) -> dict[str, Any]:
    joints = list(episode.info.station.joint_names)
    features: dict[str, Any] = {}
    for name, values in _columns(episode, None).items():
        kind = "string" if values.dtype == object else str(values.dtype)
        wide = values.ndim == 2
        features[name] = {
            "dtype": kind, "shape": [values.shape[1] if wide else 1], "names": joints if wide else None
        }  # fmt: skip
    for camera, (height, width) in sizes.items():
        features[video_key(camera)] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": codec,
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        kind = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": kind, "shape": [1], "names": None}
    return features


def video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _write_videos(
    episode: Episode, folder: Path, out: Path, number: int, fps: int, codec: str
) -> tuple[dict[str, tuple[int, int]], dict[str, Any]]:
    """camera → (height, width); video key → statistics in 0..1, of a few of its images."""
    sizes, stats = {}, {}
    for camera in episode.image:
        path = out / VIDEO.format(
            video_key=video_key(camera), chunk_index=number // IN_CHUNK, file_index=number % IN_CHUNK
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            sizes[camera], stats[video_key(camera)] = _write_video(episode, folder, path, camera, fps, codec)
        except (ConversionError, ExchangeError) as error:
            raise ExchangeError(f"{episode.info.id}, {camera}: {error}") from error
    return sizes, stats


def _write_video(
    episode: Episode, folder: Path, path: Path, camera: str, fps: int, codec: str
) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
    info, index = episode.info, episode.image[camera]
    images = read_images(info.bag_in(folder), camera, index[index >= 0], info.streams, info.files)
    image = next(images, None)
    if image is None:  # a camera that was absent: black, of the size that its contract says
        camera_of = info.station.camera(camera)
        image = np.zeros((camera_of.height, camera_of.width, 3), np.uint8)
    size = (image.shape[0], image.shape[1])
    writer = VideoWriter(path, fps, size, codec)
    shown, seen = int(index[np.argmax(index >= 0)]), []
    for tick, wanted in enumerate(index):
        if wanted < 0:
            writer.write(np.zeros_like(image))
            continue
        if wanted != shown:
            image, shown = next(images), int(wanted)
        if tick % fps == 0:
            seen.append(image)
        writer.write(image)
    writer.close()
    pixels = np.array(seen or [image]).reshape(-1, 3) / 255
    found = {name: values.reshape(3, 1, 1) for name, values in _statistics(pixels).items() if name != "count"}
    return size, {**found, "count": np.array([len(seen) or 1])}


def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of one column (T,) or (T, D), of what is a number in it: → (D,) each, and the count (1,)."""
    rows = values.astype(np.float64).reshape(len(values), -1)
    known = np.where(np.isfinite(rows), rows, np.nan)
    filled = np.where(np.isfinite(rows).any(0), known, 0.0)
    found = {n: getattr(np, f"nan{n}")(filled, axis=0) for n in ("min", "max", "mean", "std")}
    quantiles = dict(zip(QUANTILES, np.nanquantile(filled, list(QUANTILES.values()), axis=0), strict=True))
    return {**found, **quantiles, "count": np.array([len(values)])}


def _pooled(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of all episodes together, from those of each; quantiles are the mean of theirs, as LeRobot
    pools them."""
    pooled = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        count = np.array([float(e["count"][0]) for e in each])
        share = (count / count.sum()).reshape(-1, *[1] * np.ndim(each[0]["mean"]))
        mean = np.array([e["mean"] for e in each])
        total = (share * mean).sum(0)
        variance = (share * (np.array([e["std"] for e in each]) ** 2 + (mean - total) ** 2)).sum(0)
        pooled[name] = {
            "min": np.min([e["min"] for e in each], axis=0).tolist(),
            "max": np.max([e["max"] for e in each], axis=0).tolist(),
            "mean": total.tolist(),
            "std": np.sqrt(variance).tolist(),
            **{q: (share * np.array([e[q] for e in each])).sum(0).tolist() for q in QUANTILES},
            "count": [int(count.sum())],
        }
    return pooled


def _array(values: np.ndarray) -> pa.Array:
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values.tolist(), pa.string()) if values.dtype == object else pa.array(values)


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """As pandas writes a frame whose index is the task: LeRobot reads it so."""
    column = {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode",
              "numpy_type": "object", "metadata": None}  # fmt: skip
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
              "numpy_type": "int64", "metadata": None}  # fmt: skip
    frame = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": [number, column]}
    table = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": tasks})
    table = table.replace_schema_metadata({"pandas": json.dumps(frame)})
    replace_file(path, lambda temporary: pq.write_table(table, temporary))
