"""Bags: one directory per attempt, MCAP inside, as rosbag2 on Jazzy writes them; readable after a crash.

`BagWriter` puts ready CDR bytes into `<bag>/<bag>_0.mcap`, then `_1.mcap` and so on where it splits, in
uncompressed chunks of at most a second, so that a killed process loses at most the last second;
metadata.yaml (version 9) is written on close. The same key-value metadata also stands inside each file from
the start, so a bag without metadata.yaml still says which attempt it was; its writer's successor goes on in
the next file of the same bag. `BagReader` of `recap_station.bag_reader` reads those bags and those of other
recorders. Message text is in `recap_station.cdr`.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from recap_station import storage
from recap_station.bag_file import ZSTD_MAGIC, BagError, BagFile
from recap_station.bag_metadata import (
    UNREADABLE_YAML,
    RecordedFile,
    RecordedTopic,
    from_yaml,
    information,
    offered_qos,
    to_yaml,
)
from recap_station.bag_reader import PACKED, BagReader, bag_files
from recap_station.cdr import compressed_image, definition, deserialize, joint_state, serialize, type_hash
from recap_station.files import replace_file
from recap_station.mcap_scan import Scan
from recap_station.reserved_file import ReservedFile
from recap_station.topics import LATCHED

FLUSH_S = 1.0  # what a SIGKILL may cost
FLUSH_BYTES = 1 << 20
__all__ = [
    "BagError", "BagReader", "BagWriter", "amend_metadata",
    "compressed_image", "deserialize", "joint_state", "serialize",
]  # fmt: skip


class BagWriter:
    """Writes one bag. Not thread-safe: one thread writes.

    `topics` maps names to types; a relative name is written under `/<namespace>/`. `latched` names get
    transient-local QoS, so that `ros2 bag play` latches them again. A file of more than `split_s` or
    `split_bytes` (0: no limit) is followed by another. With `resume` the bag exists, left by a writer that
    ended too early: this one goes on in its next file.

    Raises BagError where the folder exists (with `resume`: holds no bag), OSError when the disk is full;
    close() still works then and keeps what was written before.
    """

    def __init__(
        self,
        path: Path | str,
        topics: Mapping[str, str],
        latched: Collection[str] = frozenset(),
        namespace: str = "",
        *,
        split_s: float = 0.0,
        split_bytes: int = 0,
        resume: bool = False,
    ):
        self.path = Path(path)
        self.counts = dict.fromkeys(topics, 0)
        self._topics = dict(topics)
        self._latched = frozenset(latched)
        self._prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
        self._custom = {"recap.namespace": self._prefix}
        self._split_ns, self._split_bytes = round(split_s * 1e9), split_bytes
        self._file: ReservedFile
        self._mcap: McapWriter
        self._channels: dict[str, int]
        self._count = self._start_ns = self._end_ns = self._pending_bytes = 0  # of the file being written
        self._files: list[RecordedFile] = []  # those before the one being written
        self._earlier = _left_by_another(self.path) if resume else []
        self._surveys: list[tuple[dict[str, int], RecordedFile]] | None = None  # of the earlier ones
        self._number = len(self._earlier)
        if not resume:
            try:
                self.path.mkdir(parents=True)
            except FileExistsError:
                raise BagError(f"bag {self.path} exists already; a bag is never overwritten") from None
        try:
            self._open(ReservedFile(self._file_path()))
        except OSError:
            if not resume:
                self.path.rmdir()  # no bag can be written here: leave no empty one behind
            raise
        if resume:  # it names the earlier files only; what it says besides is in them, or comes after
            self._custom |= BagReader(self.path).metadata
            self.set_metadata(self._custom)
            (self.path / "metadata.yaml").unlink(missing_ok=True)

    def write(self, topic: str, time_ns: int, cdr: bytes) -> None:
        """Append one serialised message (CDR with its 4-byte header), received or made at `time_ns`."""
        if self._file.full:
            raise OSError(errno.ENOSPC, "no room for more messages", str(self.path))
        if topic not in self._topics:
            known = ", ".join(self._topics)
            raise BagError(f"topic {topic!r} is not in bag {self.path.name} (it has {known})") from None
        if self._is_due(time_ns):
            following = ReservedFile(self._file_path())  # where there is no room, this file still is open
            self._finish()
            self._open(following)
        self._mcap.add_message(self._channels[topic], log_time=time_ns, publish_time=time_ns, data=cdr)
        self.counts[topic] += 1
        self._count += 1
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
        self._finish(last=True)
        _write_described(self.path, self._information())

    def _file_path(self) -> Path:
        return self.path / f"{self.path.name}_{self._number}.mcap"

    def _is_due(self, time_ns: int) -> bool:
        if not self._count:
            return False
        long = self._split_ns and time_ns - self._start_ns >= self._split_ns
        return bool(
            long or (self._split_bytes and self._file.tell() + self._pending_bytes >= self._split_bytes)
        )

    def _open(self, file: ReservedFile) -> None:
        self._file = file
        self._number += 1
        self._start_ns, self._end_ns, self._count, self._pending_bytes = 2**63 - 1, 0, 0, 0
        # The chunk size is out of reach: a chunk ends where flush() says, so one cut short can be undone.
        self._mcap = McapWriter(file, chunk_size=1 << 62, compression=CompressionType.NONE)  # type: ignore[arg-type]
        self._mcap.start(profile="ros2", library="recap")
        self._channels = self._register()
        self._flushed = time.monotonic()
        self._mcap.add_metadata("recap", self._custom)
        self.flush()

    def _finish(self, last: bool = False) -> None:
        """End the file being written with its summary."""
        if not self._file.broken:  # else the file ends after its last whole chunk, without a summary
            with contextlib.suppress(OSError):
                if last:
                    text = to_yaml(self._information())
                    self._mcap.add_metadata("rosbag2", {"serialized_metadata": text})
                self._mcap.finish()
        self._file.close()
        self._files.append(self._written())

    def _written(self) -> RecordedFile:
        span = (self._start_ns, self._end_ns) if self._count else (0, 0)
        return RecordedFile(self._file.path.name, span, self._count)

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
        counts = dict(self.counts)
        files = [*self._files] if self._file.closed else [*self._files, self._written()]
        if self._surveys is None:
            self._surveys = [_survey(Scan(path), path.name)[:2] for path in self._earlier]
        for found, _ in self._surveys:
            for topic, count in found.items():
                relative = topic.removeprefix(self._prefix)
                counts[relative] = counts.get(relative, 0) + count
        files = [*(file for _, file in self._surveys), *files]
        recorded = [
            RecordedTopic(self._full(topic), kind, counts[topic], topic in self._latched)
            for topic, kind in self._topics.items()
        ]
        return information(files, recorded, self._custom)


def amend_metadata(path: Path | str, metadata: Mapping[str, str]) -> None:
    """Change key-value metadata of a bag that nobody writes, in metadata.yaml; the recording stays as it is.

    A bag whose recorder was killed has no metadata.yaml: it gets one, of what is there. Raises BagError.
    """
    folder = storage.path(path)
    if folder.is_file():
        raise BagError(
            f"{path} is a single file: only a bag's folder has metadata that can be changed "
            "(its episode's outcome: ./recap label set STORE EPISODE OUTCOME)"
        )
    described = folder / "metadata.yaml"
    if described.is_file() and bag_files(folder):
        try:
            information = from_yaml(described.read_text())["rosbag2_bagfile_information"]
            custom = {**(information.get("custom_data") or {}), **metadata}
        except (*UNREADABLE_YAML, KeyError, TypeError, AttributeError) as error:
            raise BagError(f"{described}: not a bag's metadata ({type(error).__name__})") from error
    else:
        with storage.borrowed(folder) as here:
            information = _surveyed(BagReader(here))
        custom = {**(information.get("custom_data") or {}), **metadata}
    _write_described(folder, {**information, "custom_data": custom})


def _left_by_another(folder: Path) -> list[Path]:
    files = bag_files(folder)
    if not files:
        raise BagError(f"no bag in {folder}: no .mcap file is there")
    for reserve in folder.glob(".*.reserve"):  # of a writer that was killed
        reserve.unlink(missing_ok=True)
    return files


def _write_described(folder: Path, information: Mapping[str, Any]) -> None:
    text = to_yaml({"rosbag2_bagfile_information": information})
    replace_file(folder / "metadata.yaml", lambda temporary: temporary.write_text(text))


def _survey(scan: BagFile, name: str) -> tuple[dict[str, int], RecordedFile, bool]:
    """What a file holds, by reading it: messages of each topic, named in full; and whether they are packed
    one by one."""
    counts = dict.fromkeys(scan.topics, 0)
    start, end, packed = 2**63 - 1, 0, False
    for found in scan.scan(scan.topics):
        counts[found.topic] += 1
        start, end = min(start, found.time_ns), max(end, found.time_ns)
        packed |= found.data[:4] == ZSTD_MAGIC
    total = sum(counts.values())
    return counts, RecordedFile(name, (start, end) if total else (0, 0), total), packed


def _surveyed(bag: BagReader) -> dict[str, Any]:
    """As the writer would have described the bag, had it come to close it."""
    counts: dict[str, int] = {}
    kinds: dict[str, str] = {}
    files = []
    packed = "FILE" if any(path.name.lower().endswith(PACKED) for path in bag.files) else ""
    for name, scan in bag.readable():
        found, file, by_message = _survey(scan, name)
        packed = packed or ("MESSAGE" if by_message else "")
        files.append(file)
        kinds |= scan.topics
        counts = {topic: counts.get(topic, 0) + found.get(topic, 0) for topic in kinds}
    prefix = bag.metadata.get("recap.namespace")  # of this stack's recorder, whose topics are known
    topics = [
        RecordedTopic(
            topic, kind, counts[topic], None if prefix is None else topic.removeprefix(prefix) in LATCHED
        )
        for topic, kind in kinds.items()
    ]
    return information(files, topics, bag.metadata, bag.storage, packed)
