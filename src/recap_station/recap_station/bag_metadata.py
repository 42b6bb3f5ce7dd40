"""metadata.yaml of a bag, version 9, as rosbag2 on Jazzy writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from recap_station.cdr import type_hash

_FOREVER = {"sec": 9223372036, "nsec": 854775807}  # what rosbag2 writes for no limit


@dataclass(frozen=True)
class RecordedTopic:
    """`name` in full, namespace and all."""

    name: str
    kind: str
    messages: int
    latched: bool


@dataclass(frozen=True)
class RecordedFile:
    """`name` within the bag; span_ns: times of the first and last message, (0, 0) where it has none."""

    name: str
    span_ns: tuple[int, int]
    messages: int

    def described(self) -> dict[str, Any]:
        start, end = self.span_ns
        return {
            "path": self.name,
            "starting_time": {"nanoseconds_since_epoch": start},
            "duration": {"nanoseconds": end - start},
            "message_count": self.messages,
        }


def information(
    files: Sequence[RecordedFile], topics: Sequence[RecordedTopic], custom: Mapping[str, str]
) -> dict[str, Any]:
    """rosbag2_bagfile_information of a bag."""
    spans = [file.span_ns for file in files if file.messages] or [(0, 0)]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    return {
        "version": 9,
        "storage_identifier": "mcap",
        "duration": {"nanoseconds": last - first},
        "starting_time": {"nanoseconds_since_epoch": first},
        "message_count": sum(topic.messages for topic in topics),
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.kind,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": offered_qos(topic.latched),
                    "type_description_hash": type_hash(topic.kind),
                },
                "message_count": topic.messages,
            }
            for topic in topics
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.name for file in files],
        "files": [file.described() for file in files],
        "custom_data": dict(custom),
        "ros_distro": "jazzy",
    }


def offered_qos(latched: bool) -> list[dict[str, Any]]:
    """Profiles of a topic's publishers, as a bag's metadata and its channels carry them."""
    return [
        {
            "history": "keep_last",
            "depth": 1 if latched else 10,
            "reliability": "reliable",
            "durability": "transient_local" if latched else "volatile",
            "deadline": dict(_FOREVER),
            "lifespan": dict(_FOREVER),
            "liveliness": "automatic",
            "liveliness_lease_duration": dict(_FOREVER),
            "avoid_ros_namespace_conventions": False,
        }
    ]


class _PlainDumper(yaml.SafeDumper):
    """Without anchors: rosbag2's own files have none."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(data: Any) -> str:
    """As rosbag2 writes it: in order, without anchors, one line a string."""
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, width=1 << 20)
