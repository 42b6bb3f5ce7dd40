"""Reading a bag: a rosbag2 directory (one file or several, metadata.yaml or none) or a single file.

MCAP and sqlite3, Humble's to Kilted's, chunks, messages or whole files compressed by zstd or lz4. What is
damaged is left out and said in `damage`; the rest is read.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import zstandard
from mcap.reader import SeekingReader

from recap_station import storage
from recap_station.bag_file import LARGEST_BLOCK, ZSTD_MAGIC, BagError, BagFile, Found, Place, Troubles
from recap_station.bag_metadata import UNREADABLE_YAML, from_yaml
from recap_station.mcap_scan import Scan
from recap_station.sqlite_scan import MAGIC as SQLITE_MAGIC
from recap_station.sqlite_scan import SqliteScan

KINDS = (".mcap", ".db3")
PACKED = (".zstd", ".zst")  # whole files compressed by rosbag2_compression
BAD_PACKING = "a message that cannot be decompressed"
BAD_TIME = "a time of receipt that cannot be"
_SPARE_BYTES = 1 << 30  # left free on the disk that a compressed file is unpacked to


class FilePlace(NamedTuple):
    """Where a message stands in a bag: `file` counts the bag's files in order; see `bag_file.Place`."""

    file: int
    chunk: int
    offset: int
    size: int


def bag_files(folder: Path) -> list[Path]:
    """The files of a bag's folder that hold messages, in the order written: bag_2 before bag_10."""
    with contextlib.suppress(OSError):
        return sorted((file for file in folder.iterdir() if is_bag_file(file) and file.is_file()), key=_order)
    return []


def is_bag_file(path: Path) -> bool:
    """Whether the name is that of a file with messages, compressed or not."""
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name.endswith(KINDS) and not path.name.startswith(".")


class BagReader:
    """Reads one bag.

    `topics` (name → type) and `messages()` use names relative to the namespace that the bag was recorded
    under. `metadata` is the key-value text; `closed_cleanly` is False after a crash, and then everything
    up to the last whole message is still there. `damage` says what was lost, a line each, and is complete
    once the messages have been gone through. `check`: checksums and structure are compared. Raises BagError
    where there is no bag, or nothing of it can be read.
    """

    def __init__(self, path: Path | str, check: bool = True):
        self.path = Path(storage.path(path))  # of this machine: fetched where it is elsewhere
        self.metadata: dict[str, str] = {}
        self.topics: dict[str, str] = {}
        self._damage: list[str] = []
        self._troubles = Troubles()
        described = self.path / "metadata.yaml"
        listed = self._described(described) if described.is_file() else None
        self.closed_cleanly = listed is not None or self.path.is_file()
        self.files = [self.path] if self.path.is_file() else self._choose(listed)
        self._scans: list[BagFile | None] = []
        problems = []
        for file in self.files:
            try:
                self._scans.append(_open(file, check))
            except (BagError, OSError) as error:
                self._scans.append(None)
                problems.append(_told(file, error))
        scans = [scan for scan in self._scans if scan is not None]
        if not scans:
            raise BagError(problems[0])
        self._damage += problems
        inside: dict[str, str] = {}
        for scan in scans:
            self.closed_cleanly &= scan.whole
            inside |= scan.metadata.get("recap", {})  # of a bag that was gone on with, the later file knows
        self.metadata = {**inside, **self.metadata}
        self._prefix = self.metadata.get("recap.namespace", "/")
        for scan in scans:
            self.topics.update({self._relative(topic): kind for topic, kind in scan.topics.items()})

    @property
    def damage(self) -> list[str]:
        lines = [*self._damage, *self._troubles.lines("byte or row")]
        for file, scan in zip(self.files, self._scans, strict=True):
            if scan is not None:
                lines += [f"{file.name}: {line}" for line in scan.damage]
                if not scan.whole:
                    lines.append(f"{file.name}: it was not closed by its recorder")
        return lines

    @property
    def unchecked(self) -> bool:
        """Whether some message that was gone through has no checksum: there damage can be silent."""
        return any(scan.unchecked for scan in self._scans if scan is not None)

    @property
    def storage(self) -> str:
        """As rosbag2 calls the kind of its files."""
        kinds = [file.name.lower().removesuffix(end) for file in self.files for end in PACKED]
        return "sqlite3" if any(name.endswith(".db3") for name in kinds) else "mcap"

    def readable(self) -> Iterator[tuple[str, BagFile]]:
        """Each of its files that can be read, by name: as it is, packed messages and namespace too."""
        pairs = zip(self.files, self._scans, strict=True)
        return ((file.name, scan) for file, scan in pairs if scan is not None)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
        """(topic, receive time in ns, CDR bytes), in the order written; only of `topics` where given."""
        for topic, time_ns, data, _ in self.scan(topics):
            yield topic, time_ns, bytes(data)

    def scan(self, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, memoryview, FilePlace]]:
        """The same without a copy, and where each stands: the data holds until the next is asked for."""
        for number, scan in enumerate(self._scans):
            if scan is None:
                continue
            names = {topic: self._relative(topic) for topic in scan.topics}
            wanted = {topic: name for topic, name in names.items() if topics is None or name in topics}
            found: Found
            for found in scan.scan(wanted):
                data = found.data
                if found.time_ns >= 1 << 63:
                    self._troubles.note(BAD_TIME, found.place.offset)
                    continue
                if len(data) > 4 and data[0] == ZSTD_MAGIC[0]:  # CDR begins with 0
                    try:
                        data = memoryview(_unpacked(data))
                    except zstandard.ZstdError:
                        self._troubles.note(BAD_PACKING, found.place.offset)
                        continue
                yield wanted[found.topic], found.time_ns, data, FilePlace(number, *found.place)

    def read(self, place: FilePlace) -> bytes:
        """CDR of the message at a place that scan() gave. Raises BagError where it is no longer there."""
        scan = self._scans[place.file] if 0 <= place.file < len(self._scans) else None
        if scan is None:
            raise BagError(f"{self.path}: there is no readable file {place.file}")
        data = scan.read(Place(place.chunk, place.offset, place.size))
        try:
            return _unpacked(data) if data.startswith(ZSTD_MAGIC) else data
        except zstandard.ZstdError as error:
            raise BagError(f"{self.path}: {BAD_PACKING} at {place.offset}") from error

    def _relative(self, topic: str) -> str:
        return topic.removeprefix(self._prefix) if topic.startswith(self._prefix) else topic

    def _described(self, file: Path) -> list[str] | None:
        """Take in metadata.yaml → the files it lists, or None where it cannot be read."""
        try:
            information = from_yaml(file.read_text())["rosbag2_bagfile_information"]
            custom = dict(information.get("custom_data") or {})
            listed = information["relative_file_paths"]
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise TypeError("relative_file_paths")
        except (OSError, *UNREADABLE_YAML, KeyError, TypeError, AttributeError) as error:
            self._damage.append(f"{file.name} is not a bag's metadata ({type(error).__name__})")
            return None
        for key, value in custom.items():
            if isinstance(value, (list, dict, set)):
                self._damage.append(f"{file.name}: {str(key)[:80]} is no text and left out")
            else:
                self.metadata[str(key)] = str(value)
        return listed

    def _choose(self, listed: list[str] | None) -> list[Path]:
        """The files to read: those listed that are there, else all that are in the folder."""
        present = bag_files(self.path)
        if not listed:
            if not present:
                raise BagError(f"no bag in {self.path}: no .mcap or .db3 file is there")
            return present
        files = []
        for name in listed:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise BagError(f"{self.path / 'metadata.yaml'}: {name!r} is outside the bag's folder")
            # Recorders before Foxy listed the folder too; compressed files may be listed without ending.
            choices = [self.path / name, self.path / Path(name).name]
            choices += [choice.with_name(choice.name + ending) for choice in choices for ending in PACKED]
            file = next((choice for choice in choices if _is_there(choice)), None)
            if file is None:
                self._damage.append(f"{name[:255]} is missing")
            else:
                files.append(file)
        left = [file.name for file in present if file not in files]
        if not files:
            missing = f"{self.path / listed[0][:255]} is missing"
            raise BagError(f"no bag in {self.path}: {missing}")
        if left:
            self._damage.append(f"not listed in metadata.yaml and left out: {', '.join(left)}")
        return files


def span_ns(file: Path) -> tuple[int, int] | None:
    """Times of receipt of a file's first and last message, by its summary or its table, without reading
    further; None where they do not say."""
    with contextlib.suppress(Exception):  # somebody else's file: it is read in earnest later
        with open(file, "rb") as opened:
            if opened.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
                opened.seek(0)
                summary = SeekingReader(opened).get_summary()
                if summary is None or summary.statistics is None or not summary.statistics.message_count:
                    return None
                return summary.statistics.message_start_time, summary.statistics.message_end_time
        address = f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            first, last = database.execute("SELECT min(timestamp), max(timestamp) FROM messages").fetchone()
            return int(first), int(last)
    return None


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _unpacked(data: memoryview | bytes) -> bytes:
    """A message as it was before rosbag2_compression packed it. Raises zstandard.ZstdError."""
    if zstandard.frame_content_size(data) > LARGEST_BLOCK:
        raise zstandard.ZstdError("too large")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=LARGEST_BLOCK)


def _open(file: Path, check: bool) -> BagFile:
    if file.name.lower().endswith(PACKED):
        return _open_packed(file, check)
    with open(file, "rb") as opened:
        begins = opened.read(len(SQLITE_MAGIC))
    if begins == SQLITE_MAGIC or (file.suffix.lower() == ".db3" and not begins.startswith(b"\x89MCAP")):
        return SqliteScan(file, check)
    return Scan(file, check)


def _open_packed(file: Path, check: bool) -> BagFile:
    """A file compressed as a whole is unpacked to a temporary one, which goes when the reader does."""
    folder = tempfile.TemporaryDirectory(prefix="recap-bag-")
    target = Path(folder.name) / file.stem
    damage = ""
    with open(file, "rb") as packed, open(target, "wb") as unpacked:
        try:
            for piece in zstandard.ZstdDecompressor().read_to_iter(packed, read_size=1 << 20):
                if shutil.disk_usage(folder.name).free < _SPARE_BYTES:
                    raise BagError(f"{file}: no room in {folder.name} to unpack it")
                unpacked.write(piece)
        except zstandard.ZstdError:
            damage = "its compression is damaged: read up to there"
    scan: Any = _open(target, check)
    weakref.finalize(scan, folder.cleanup)
    return _Unpacked(scan, damage) if damage else scan


class _Unpacked:
    """A file of which a part could be unpacked."""

    def __init__(self, scan: BagFile, damage: str):
        self._scan, self._line = scan, damage
        self.path, self.topics, self.metadata, self.whole = scan.path, scan.topics, scan.metadata, False

    @property
    def damage(self) -> list[str]:
        return [self._line, *self._scan.damage]

    @property
    def unchecked(self) -> bool:
        return self._scan.unchecked

    def scan(self, topics: Collection[str]) -> Iterator[Found]:
        return self._scan.scan(topics)

    def read(self, place: Place) -> bytes:
        return self._scan.read(place)


def _order(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Numbers within names count as numbers."""
    pieces = [piece for piece in re.split(r"(\d+)", file.name) if piece]
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], file.name


def _told(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file}: {error.strerror or error}"
    return str(error)
