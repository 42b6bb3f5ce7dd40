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


def information(
    file: str, topics: Sequence[RecordedTopic], span_ns: tuple[int, int], custom: Mapping[str, str]
) -> dict[str, Any]:
    """rosbag2_bagfile_information of a bag of one file; span_ns: times of the first and last message."""
    start = {"nanoseconds_since_epoch": span_ns[0]}
    duration = {"nanoseconds": span_ns[1] - span_ns[0]}
    count = sum(topic.messages for topic in topics)
    return {
        "version": 9,
        "storage_identifier": "mcap",
        "duration": duration,
        "starting_time": start,
        "message_count": count,
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
        "relative_file_paths": [file],
        "files": [{"path": file, "starting_time": start, "duration": duration, "message_count": count}],
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
