"""metadata.yaml of a bag, version 9, as rosbag2 on Jazzy writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from recap_station.cdr import type_hash
from recap_station.contract import ContractError

_FOREVER = {"sec": 9223372036, "nsec": 854775807}  # what rosbag2 writes for no limit


@dataclass(frozen=True)
class RecordedTopic:
    """`name` in full, namespace and all. latched None: it is not known how its publishers offered it."""

    name: str
    kind: str
    messages: int
    latched: bool | None


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
    files: Sequence[RecordedFile],
    topics: Sequence[RecordedTopic],
    custom: Mapping[str, str],
    storage: str = "mcap",
    packed: str = "",
) -> dict[str, Any]:
    """rosbag2_bagfile_information of a bag. packed: by zstd, each "FILE" or each "MESSAGE"."""
    spans = [file.span_ns for file in files if file.messages] or [(0, 0)]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    return {
        "version": 9,
        "storage_identifier": storage,
        "duration": {"nanoseconds": last - first},
        "starting_time": {"nanoseconds_since_epoch": first},
        "message_count": sum(topic.messages for topic in topics),
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.kind,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": [] if topic.latched is None else offered_qos(topic.latched),
                    "type_description_hash": _hash(topic.kind),
                },
                "message_count": topic.messages,
            }
            for topic in topics
        ],
        "compression_format": "zstd" if packed else "",
        "compression_mode": packed,
        "relative_file_paths": [file.name for file in files],
        "files": [file.described() for file in files],
        "custom_data": dict(custom),
        "ros_distro": "jazzy",
    }


def _hash(kind: str) -> str:
    """Empty, as rosbag2 has it where it knows none, for a type that is not known here."""
    try:
        return type_hash(kind)
    except ContractError:
        return ""


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


UNREADABLE_YAML = (yaml.YAMLError, ValueError, RecursionError)  # of numbers and dates that cannot be, too


class _Loader(yaml.SafeLoader):
    """Refuses an alias of what holds an alias itself: a few lines of those expand to gigabytes."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._open: list[str | None] = []  # anchors of the nodes that are being read
        self._nested: set[str | None] = set()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._nested or event.anchor in self._open:
                raise yaml.composer.ComposerError(None, None, "an alias of aliases", event.start_mark)
            self._nested.update(anchor for anchor in self._open if anchor is not None)
            return super().compose_node(parent, index)
        self._open.append(getattr(event, "anchor", None))
        node = super().compose_node(parent, index)
        self._open.pop()
        return node


def from_yaml(text: str) -> Any:
    """Raises one of UNREADABLE_YAML."""
    return yaml.load(text, _Loader)


class _PlainDumper(yaml.SafeDumper):
    """Without anchors: rosbag2's own files have none."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(data: Any) -> str:
    """As rosbag2 writes it: in order, without anchors, one line a string."""
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, width=1 << 20)
