"""When an episode's streams came: stamp and receipt of every message in its bag, by the contract."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recap_learner.data.bag_images import episode_bag
from recap_learner.data.episodes import Episode
from recap_station.cdr_scan import CdrError, Cursor
from recap_station.streams import FLOAT_ARRAY_TYPE, ROLES, Streams, default_streams


@dataclass(frozen=True)
class StreamReport:
    """rate_hz: mean; longest_gap_s: between two stamps; delay_s: median of receive time less stamp."""

    messages: int
    rate_hz: float
    longest_gap_s: float
    delay_s: float


def declared_streams(episode: Episode) -> Streams:
    """Those that its columns come from."""
    return episode.info.streams or default_streams(episode.info.station)


def read_stamps(episode: Episode, bag: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """topic → (M, 2) int64 ns of stamp and receive time; camera → (M,) int64 checksums of its images.

    The stamp is that of receipt where the stream is placed by it, or has no other. Messages too short to have
    the stamp that their type has are passed over. Raises ConversionError where the bag has other files than
    when it was converted.
    """
    reader = episode_bag(bag, episode.info.files)
    declared = declared_streams(episode)
    commands = (stream for role in ROLES for stream in getattr(declared, role))
    wanted = [
        stream for stream in (*commands, *(s for _, s in declared.images)) if stream.topic in reader.topics
    ]
    stamped = {s.topic for s in wanted if s.time == "header" and s.type != FLOAT_ARRAY_TYPE}
    times: dict[str, list[tuple[int, int]]] = {stream.topic: [] for stream in wanted}
    camera_of = {stream.topic: camera for camera, stream in declared.images if stream.topic in times}
    sums: dict[str, list[int]] = {camera: [] for camera in camera_of.values()}
    for topic, received, data, _ in reader.scan(list(times)):
        stamp = 0
        if topic in stamped:
            try:
                stamp = Cursor(data).time_ns()  # header.stamp comes first
            except CdrError:  # conversion leaves it out, and has said so
                continue
        times[topic].append((stamp or received, received))
        if topic in camera_of:
            sums[camera_of[topic]].append(zlib.crc32(data[24:]))  # past the stamp
    return (
        {name: np.array(stamps, dtype=np.int64).reshape(-1, 2) for name, stamps in times.items()},
        {camera: np.array(values, dtype=np.int64) for camera, values in sums.items()},
    )


def timing_of(times: np.ndarray) -> StreamReport:
    """times: (M, 2) int64 ns of stamp and receive time, at least one."""
    stamps = np.sort(times[:, 0])
    span = (stamps[-1] - stamps[0]) * 1e-9
    return StreamReport(
        messages=len(stamps),
        rate_hz=float((len(stamps) - 1) / span) if span > 0 else 0.0,
        longest_gap_s=float(np.diff(stamps).max(initial=0)) * 1e-9,
        delay_s=float(np.median(times[:, 1] - times[:, 0])) * 1e-9,
    )
