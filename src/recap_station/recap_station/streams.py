"""Which topics of a bag, or of the graph, are a cell's state, commands and images, and how they meet ticks.

A station's YAML may say so under `streams:`; what it leaves out is as this project's own nodes publish it::

    streams:
      state:                      # one stream, or several that carry some of the joints each
        - {topic: left/joint_states}
        - {topic: right/joint_states, time: receive}
      command:
        topic: position_controller/commands
        type: std_msgs/msg/Float64MultiArray
        joints: [left_waist, left_shoulder]      # names in the order of the numbers
      images:
        base_camera: {topic: camera/color/image_raw, type: sensor_msgs/msg/Image, align: asof(0.1)}

`align`: `hold` takes the newest message at or before a tick however old it is; `asof(SECONDS)` only when it
is no older than that; `drop` only when it came since the tick before. `time`: `header` is the message's own
stamp, `receive` when the recorder received it; a message without header has only the second. `type` may be
left out: then it is what the bag says. `joints` of a JointState picks joints and passes over the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recap_station import topics
from recap_station.contract import ContractError, Station, read_config
from recap_station.ticks import STALE_S

RAW_IMAGE_TYPE = "sensor_msgs/msg/Image"
FLOAT_ARRAY_TYPE = "std_msgs/msg/Float64MultiArray"
TRAJECTORY_TYPE = "trajectory_msgs/msg/JointTrajectory"
JOINT_TYPES = (topics.JOINT_STATE_TYPE, FLOAT_ARRAY_TYPE, TRAJECTORY_TYPE)
IMAGE_TYPES = (topics.IMAGE_TYPE, RAW_IMAGE_TYPE)
ROLES = ("state", "command", "policy_command", "teleop_command")
ALIGNMENTS = ("hold", "asof", "drop")
TIMES = ("header", "receive")
_ASOF = re.compile(r"asof\(\s*([0-9.]+)\s*\)")


@dataclass(frozen=True)
class Stream:
    """One topic. `type` empty: what the bag says. tolerance_s is that of `asof`."""

    topic: str
    type: str = ""
    align: str = "hold"
    tolerance_s: float = 0.0
    time: str = "header"
    joints: tuple[str, ...] = ()

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Stream:
        """As it stands in YAML, or as to_dict made it. Raises ContractError."""
        if not isinstance(data, Mapping):
            raise ContractError(f"stream {data!r}: wanted a mapping with its topic")
        unknown = set(data) - {"topic", "type", "align", "tolerance_s", "time", "joints"}
        if unknown or not isinstance(data.get("topic"), str):
            wrong = f"unknown key {min(unknown)!r}" if unknown else "it names no topic"
            raise ContractError(f"stream {dict(data)}: {wrong}")
        align, tolerance = str(data.get("align", "hold")), float(data.get("tolerance_s", 0.0))
        if matched := _ASOF.fullmatch(align):
            align, tolerance = "asof", float(matched[1])
        time = str(data.get("time", "header"))
        if align not in ALIGNMENTS or (align == "asof" and tolerance <= 0):
            wanted = "wanted hold, asof(SECONDS) or drop"
            raise ContractError(f"stream {data['topic']}: align is {align!r}, {wanted}")
        if time not in TIMES:
            raise ContractError(f"stream {data['topic']}: time is {time!r}, wanted header or receive")
        joints = tuple(str(name) for name in data.get("joints", ()))
        topic = data["topic"].removeprefix("/")
        return Stream(topic, str(data.get("type", "")), align, tolerance, time, joints)


@dataclass(frozen=True)
class Streams:
    """All streams of a cell. `images`: (camera, stream) of each."""

    state: tuple[Stream, ...]
    command: tuple[Stream, ...]
    policy_command: tuple[Stream, ...]
    teleop_command: tuple[Stream, ...]
    images: tuple[tuple[str, Stream], ...]
    control_mode: Stream
    episode: Stream
    stage: Stream

    def __iter__(self) -> Iterator[Stream]:
        for role in ROLES:
            yield from getattr(self, role)
        yield from (stream for _, stream in self.images)
        yield from (self.control_mode, self.episode, self.stage)

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream.topic for stream in self))

    def image(self, camera: str) -> Stream:
        """Raises ContractError where the cell has no such camera."""
        for name, stream in self.images:
            if name == camera:
                return stream
        raise ContractError(f"no stream of camera {camera!r}")

    def resolved(self, types: Mapping[str, str]) -> Streams:
        """With the types that a bag's topics have. Raises ContractError where they are not those declared, or
        none that can be read. What a cell may lack (control_mode, episode, stage) and no YAML named may be of
        any type: another robot's topic may have that name, and its messages are passed over."""

        def known(stream: Stream, allowed: tuple[str, ...]) -> Stream:
            found = types.get(stream.topic, "") or stream.type or allowed[0]
            if stream.type and found != stream.type:
                raise ContractError(
                    f"topic {stream.topic} is a {found} in the bag, a {stream.type} in the station's streams"
                )
            if found not in allowed:
                raise ContractError(f"topic {stream.topic} is a {found}, wanted {' or '.join(allowed)}")
            return replace(stream, type=found)

        def optional(stream: Stream, name: str, kind: str) -> Stream:
            found = types.get(stream.topic, "") or kind
            named = stream.topic != name or stream.type not in ("", found)
            return known(stream, (kind,)) if named else replace(stream, type=found)

        roles = {role: tuple(known(stream, JOINT_TYPES) for stream in getattr(self, role)) for role in ROLES}
        return Streams(
            **roles,
            images=tuple((camera, known(stream, IMAGE_TYPES)) for camera, stream in self.images),
            control_mode=optional(self.control_mode, topics.CONTROL_MODE, topics.MODE_TYPE),
            episode=optional(self.episode, topics.EPISODE, topics.EPISODE_TYPE),
            stage=optional(self.stage, topics.SIM_TRUTH, topics.TRUTH_TYPE),
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "images": {camera: asdict(stream) for camera, stream in self.images}}

    @staticmethod
    def from_dict(data: Mapping[str, Any], station: Station) -> Streams:
        """What is left out is as this project's nodes publish it. Raises ContractError."""
        defaults = _defaults(station)
        unknown = set(data) - set(defaults)
        if unknown:
            raise ContractError(f"unknown stream {min(unknown)!r}; there are {', '.join(defaults)}")
        given = {**defaults, **data}
        images = {**defaults["images"], **(given["images"] or {})}
        for camera in images:
            station.camera(camera)
        roles = {role: _several(given[role]) for role in ROLES}
        for stream in (stream for role in roles.values() for stream in role):
            if wrong := [name for name in stream.joints if name not in station.joint_names]:
                raise ContractError(f"stream {stream.topic}: {station.name} has no joint {wrong[0]!r}")
        return Streams(
            **roles,
            images=tuple((camera, Stream.from_dict(images[camera])) for camera in station.camera_names),
            control_mode=Stream.from_dict(given["control_mode"]),
            episode=Stream.from_dict(given["episode"]),
            stage=Stream.from_dict(given["stage"]),
        )


def load_streams(name_or_path: str | Path, station: Station) -> Streams:
    """The streams of a station's YAML. Raises ContractError."""
    data, source = read_config("stations", name_or_path)
    streams = data.get("streams") or {}
    if not isinstance(streams, dict):
        raise ContractError(f"{source}: streams: wanted a mapping, found {type(streams).__name__}")
    try:
        return Streams.from_dict(streams, station)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{source}: {error}") from error


def default_streams(station: Station) -> Streams:
    """As this project's own nodes publish them."""
    return Streams.from_dict({}, station)


def _several(given: Any) -> tuple[Stream, ...]:
    return tuple(Stream.from_dict(one) for one in (given if isinstance(given, (list, tuple)) else [given]))


def _defaults(station: Station) -> dict[str, Any]:
    said = f"asof({STALE_S})"  # a source that has fallen silent says nothing
    return {
        "state": {"topic": topics.JOINT_STATES},
        "command": {"topic": topics.JOINT_COMMAND},
        "policy_command": {"topic": topics.POLICY_COMMAND, "align": said},
        "teleop_command": {"topic": topics.TELEOP_COMMAND, "align": said},
        "images": {camera: {"topic": topics.image_topic(camera)} for camera in station.camera_names},
        "control_mode": {"topic": topics.CONTROL_MODE},
        "episode": {"topic": topics.EPISODE},
        "stage": {"topic": topics.SIM_TRUTH},
    }
