"""Bags: one directory per attempt, MCAP inside, as rosbag2 on Jazzy writes them; readable after a crash.

`BagWriter` puts ready CDR bytes into `<bag>/<bag>_0.mcap` in uncompressed chunks of at most a second, so
that a killed process loses at most the last second; metadata.yaml (version 9) is written on close. The
same key-value metadata also stands inside the file from the start, so a bag without metadata.yaml still
says which attempt it was. `BagReader` of `recap_station.bag_reader` reads those bags and those of other
recorders. Message text is in `recap_station.cdr`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from recap_station.bag_file import BagError
from recap_station.bag_metadata import RecordedTopic, information, offered_qos, to_yaml
from recap_station.bag_reader import BagReader
from recap_station.cdr import compressed_image, definition, deserialize, joint_state, serialize, type_hash
from recap_station.topics import LATCHED

FLUSH_S = 1.0  # what a SIGKILL may cost
FLUSH_BYTES = 1 << 20
RESERVE_BYTES = 4 << 20  # given back when the disk is full, so that the bag can still be closed
__all__ = [
    "BagError", "BagReader", "BagWriter", "amend_metadata",
    "compressed_image", "deserialize", "joint_state", "serialize",
]  # fmt: skip


class BagWriter:
    """Writes one bag. Not thread-safe: one thread writes.

    `topics` maps names to types; a relative name is written under `/<namespace>/`. `latched` names get
    transient-local QoS, so that `ros2 bag play` latches them again. Raises BagError where the folder
    exists, OSError when the disk is full; close() still works then and keeps what was written before.
    """

    def __init__(
        self,
        path: Path | str,
        topics: Mapping[str, str],
        latched: Collection[str] = frozenset(),
        namespace: str = "",
    ):
        self.path = Path(path)
        self.counts = dict.fromkeys(topics, 0)
        self._topics = dict(topics)
        self._latched = frozenset(latched)
        self._prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
        self._custom = {"recap.namespace": self._prefix}
        self._start_ns, self._end_ns = 2**63 - 1, 0
        self._pending_bytes = 0
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise BagError(f"bag {self.path} exists already; a bag is never overwritten") from None
        self._file = _File(self.path / f"{self.path.name}_0.mcap", self.path / ".reserve")
        # The chunk size is out of reach: a chunk ends where flush() says, so one cut short can be undone.
        self._mcap = McapWriter(self._file, chunk_size=1 << 62, compression=CompressionType.NONE)  # type: ignore[arg-type]
        self._mcap.start(profile="ros2", library="recap")
        self._channels = self._register()
        self._flushed = time.monotonic()
        self._mcap.add_metadata("recap", self._custom)
        self.flush()

    def write(self, topic: str, time_ns: int, cdr: bytes) -> None:
        """Append one serialised message (CDR with its 4-byte header), received or made at `time_ns`."""
        if self._file.full:
            raise OSError(errno.ENOSPC, "no room for more messages", str(self.path))
        try:
            channel = self._channels[topic]
        except KeyError:
            known = ", ".join(self._topics)
            raise BagError(f"topic {topic!r} is not in bag {self.path.name} (it has {known})") from None
        self._mcap.add_message(channel, log_time=time_ns, publish_time=time_ns, data=cdr)
        self.counts[topic] += 1
        self._start_ns, self._end_ns = min(self._start_ns, time_ns), max(self._end_ns, time_ns)
        self._pending_bytes += len(cdr)
        if self._pending_bytes > FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system. Raises OSError when the disk is full; what was written
        before is in the bag even then, and close() still works."""
        self._pending_bytes = 0
        self._flushed = time.monotonic()
        self._mcap.flush()
        if self._file.full:
            raise OSError(errno.ENOSPC, "No space left for the bag", str(self.path))

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Add to the bag's key-value metadata; a later value of a key wins."""
        for key, value in metadata.items():
            if not isinstance(value, str):
                raise TypeError(f"metadata {key} is {type(value).__name__}, wanted str")
        self._custom.update(metadata)
        if not self._file.broken:
            self._mcap.add_metadata("recap", dict(metadata))
            self._mcap.flush()

    def close(self) -> None:
        """Write the summary and metadata.yaml. A second call does nothing."""
        if self._file.closed:
            return
        if not self._file.broken:  # else the file ends after its last whole chunk, without a summary
            with contextlib.suppress(OSError):
                self._mcap.add_metadata("rosbag2", {"serialized_metadata": to_yaml(self._information())})
                self._mcap.finish()
        self._file.close()
        whole = {"rosbag2_bagfile_information": self._information()}
        temporary = self.path / "metadata.yaml.tmp"
        temporary.write_text(to_yaml(whole))
        temporary.replace(self.path / "metadata.yaml")

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _full(self, topic: str) -> str:
        return topic if topic.startswith("/") else self._prefix + topic

    def _register(self) -> dict[str, int]:
        schemas: dict[str, int] = {}
        channels = {}
        for topic, kind in self._topics.items():
            if kind not in schemas:
                schemas[kind] = self._mcap.register_schema(kind, "ros2msg", definition(kind).encode())
            qos = to_yaml(offered_qos(topic in self._latched))
            metadata = {"offered_qos_profiles": qos, "topic_type_hash": type_hash(kind)}
            channels[topic] = self._mcap.register_channel(self._full(topic), "cdr", schemas[kind], metadata)
        return channels

    def _information(self) -> dict[str, Any]:
        topics = [
            RecordedTopic(self._full(topic), kind, self.counts[topic], topic in self._latched)
            for topic, kind in self._topics.items()
        ]
        span = (self._start_ns, self._end_ns) if sum(self.counts.values()) else (0, 0)
        return information(self._file.path.name, topics, span, self._custom)


def amend_metadata(path: Path | str, metadata: Mapping[str, str]) -> None:
    """Change key-value metadata of a bag that nobody writes, in metadata.yaml; the recording stays as it is.

    A bag whose recorder was killed has no metadata.yaml: it gets one, of what is there. Raises BagError.
    """
    bag = BagReader(path)
    if bag.path.is_file():
        raise BagError(f"{path} is a single file: only a bag's folder has metadata that can be changed")
    described = bag.path / "metadata.yaml"
    if described.is_file():
        whole = yaml.safe_load(described.read_text())
    else:
        whole = {"rosbag2_bagfile_information": _surveyed(bag)}
    information = whole["rosbag2_bagfile_information"]
    information["custom_data"] = {**(information.get("custom_data") or {}), **metadata}
    temporary = described.with_suffix(".yaml.tmp")
    temporary.write_text(to_yaml(whole))
    temporary.replace(described)


def _surveyed(bag: BagReader) -> dict[str, Any]:
    """As the writer would have described the bag, had it come to close it."""
    if len(bag.files) != 1:
        raise BagError(f"bag {bag.path} has {len(bag.files)} files and no metadata.yaml: reindex it first")
    counts = dict.fromkeys(bag.topics, 0)
    times = []
    for topic, time_ns, _ in bag.messages():
        counts[topic] += 1
        times.append(time_ns)
    prefix = bag.metadata.get("recap.namespace", "/")
    topics = []
    for topic, kind in bag.topics.items():
        name = topic if topic.startswith("/") else prefix + topic
        topics.append(RecordedTopic(name, kind, counts[topic], topic in LATCHED))
    span = (min(times), max(times)) if times else (0, 0)
    return information(bag.files[0].name, topics, span, bag.metadata)


class _File:
    """An unbuffered file with a reserve: when the disk is full the reserve is given back and the write is
    done, with `full` set; where even that fails the file is cut back to its last whole chunk."""

    def __init__(self, path: Path, reserve: Path):
        self.path = path
        self.full = False
        self.broken = False
        self._reserve = reserve
        try:
            with open(reserve, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:  # no bag can be written here: leave no empty one behind
            reserve.unlink(missing_ok=True)
            path.parent.rmdir()
            raise OSError(error.errno, f"no room for a bag ({error.strerror})", str(path.parent)) from error
        self._raw = open(path, "xb", buffering=0)  # noqa: SIM115
        self._at = self._good = 0

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            try:
                written = self._raw.write(view)
            except OSError:
                if self.full:
                    self._cut()
                    raise
                self.full = True
                self._reserve.unlink(missing_ok=True)
                continue
            self._at += written
            view = view[written:]
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing is buffered; what stands in the file now is whole."""
        self._good = self._at

    def _cut(self) -> None:
        self.broken = True
        self._raw.truncate(self._good)
        self._at = self._raw.seek(self._good)

    def close(self) -> None:
        self._raw.close()
        self._reserve.unlink(missing_ok=True)
