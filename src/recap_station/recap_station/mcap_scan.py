"""Reading one MCAP file (format: mcap.dev/spec), whole, cut off or damaged, without copying what it skips.

Where the summary at the end is sound, it says where every chunk is; otherwise the file is walked record by
record, and after bytes that are no record the next believable one is searched for. A chunk counts when its
checksum agrees; one that does not is left out and noted. Inside a chunk every message is found from its
record's head, so neither the message indexes nor the bytes of images are read, except for the checksum.
Reads are by pread: a file that shrinks or a bad sector is an error, not the end of the process.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, ChunkIndex, Metadata, MetadataIndex, Schema, Statistics

from recap_station.bag_file import LARGEST_BLOCK, BagError, Found, Place, Troubles
from recap_station.mcap_records import HEADER, MAGIC, MESSAGE, ChunkHead, Record, Records

BUFFER_BYTES = 32 << 20  # chunks up to here are read as one piece
STEP_BYTES = 4 << 20  # longer ones in pieces of this
_FOOTER = struct.Struct("<QQI")  # summary start, summary offset start, CRC of the summary
_FOOTER_BYTES = HEADER.size + _FOOTER.size + len(MAGIC)
_UNREADABLE = (McapError, struct.error, UnicodeDecodeError, ValueError, OverflowError, MemoryError)

_OF_SUMMARY = frozenset(
    {Opcode.CHUNK_INDEX, Opcode.ATTACHMENT_INDEX, Opcode.STATISTICS}
    | {Opcode.METADATA_INDEX, Opcode.SUMMARY_OFFSET}
)

CHECKSUM = "checksum of a chunk does not agree"
BROKEN = "a chunk cannot be unpacked"
NO_RECORD = "bytes that are no record"
SUMMARY = "the summary is damaged"
UNREADABLE = "a record cannot be read"
UNKNOWN = "messages of an undeclared channel"
CUT = "the file ends inside a chunk"


class _Part(NamedTuple):
    """A stretch of the file that holds messages: a chunk, or records at top level where `chunk` is None."""

    start: int
    end: int
    chunk: ChunkHead | None


class Scan:
    """One MCAP file, as `recap_station.bag_file.BagFile` describes it.

    `check`: chunks' checksums are compared (about a third of a second for a gigabyte). Raises BagError where
    the file is no MCAP file, OSError where it cannot be opened.
    """

    def __init__(self, path: Path, check: bool = True):
        self.path = path
        self.topics: dict[str, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._records = Records(self._file.fileno())
        self._check = check
        self._checked: dict[int, bool] = {}
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, int]] = {}  # topic, schema
        self._unpacked: tuple[int, bytes] = (-1, b"")
        self._troubles = Troubles()
        self._lost = 0
        size = self._records.size
        footer = size - _FOOTER_BYTES
        tail = self._records.read(footer, _FOOTER_BYTES) if footer > 0 else b""
        self.whole = tail.endswith(MAGIC) and HEADER.unpack_from(tail) == (Opcode.FOOTER, _FOOTER.size)
        begins = self._records.read(0, len(MAGIC))
        if begins != MAGIC and size:
            if not tail.endswith(MAGIC) and self._records.resync(0, 64 << 20) is None:
                raise BagError(f"{path}: not an MCAP file")
            self._troubles.note("the beginning is damaged", 0)
        self._messages = -1  # how many the summary says there are
        self._parts: list[_Part] = []
        if not (self.whole and self._learn_from_summary(footer, tail)):
            self._learn_by_walking()
        for topic, schema in self._channels.values():
            self.topics[topic] = self._schemas.get(schema, "")

    @property
    def damage(self) -> list[str]:
        lines = self._troubles.lines("byte")
        if self._lost > 0:
            lines.append(f"{self._lost} of {self._messages} messages are lost")
        return lines

    def scan(self, topics: Collection[str]) -> Iterator[Found]:
        wanted = {number: topic for number, (topic, _) in self._channels.items() if topic in topics}
        buffer = _Buffer(self._file.fileno())
        seen = 0
        for part in self._parts:
            if part.chunk is None or (not part.chunk.compression and part.chunk.length > BUFFER_BYTES):
                start, end = part.start, part.end
                if part.chunk is not None:
                    if not self._sound(part.chunk, buffer):
                        continue
                    start, end = part.chunk.data, min(part.chunk.data + part.chunk.length, self._records.size)
                messages = self._far_messages(start, end, wanted)
            else:
                content = self._content(part.chunk, buffer)
                if content is None:
                    continue
                place = part.start if part.chunk.compression else -1
                base = 0 if part.chunk.compression else part.chunk.data
                messages = self._near_messages(content, wanted, place, base, part.start)
            seen += yield from messages
        if self._messages >= 0:
            self._lost = self._messages - seen

    def read(self, place: Place) -> bytes:
        if place.chunk < 0:
            data = self._records.read(place.offset, place.size)
        else:
            if self._unpacked[0] != place.chunk:
                chunk = self._records.chunk(place.chunk)
                content = None if chunk is None else self._content(chunk, _Buffer(self._file.fileno()))
                if content is None:
                    raise BagError(f"{self.path}: the chunk at byte {place.chunk} cannot be read")
                self._unpacked = (place.chunk, bytes(content))
            data = self._unpacked[1][place.offset : place.offset + place.size]
        if len(data) != place.size:
            raise BagError(f"{self.path}: no {place.size} bytes at byte {place.offset}")
        return data

    # --- where everything is ------------------------------------------------------------------------

    def _learn_from_summary(self, footer: int, tail: bytes) -> bool:
        """Topics and chunks by the summary → whether it is sound and lists everything."""
        start, _, crc = _FOOTER.unpack_from(tail, HEADER.size)
        if start == 0:
            return False
        chunks: list[ChunkIndex] = []
        pending: list[MetadataIndex] = []
        statistics: Statistics | None = None
        try:
            if not len(MAGIC) <= start < footer:
                raise ValueError
            text = self._records.read(start, footer - start)
            signed = text + tail[: HEADER.size + 16]
            if crc and zlib.crc32(signed) != crc:
                raise ValueError
            at = 0
            while at < len(text):
                opcode, length = HEADER.unpack_from(text, at)
                content = text[at + HEADER.size : at + HEADER.size + length]
                if len(content) != length:
                    raise ValueError
                at += HEADER.size + length
                if opcode == Opcode.CHUNK_INDEX:
                    chunks.append(ChunkIndex.read(_stream(content)))
                elif opcode == Opcode.METADATA_INDEX:
                    pending.append(MetadataIndex.read(_stream(content)))
                elif opcode == Opcode.STATISTICS:
                    statistics = Statistics.read(_stream(content))
                else:
                    self._note(opcode, content)
        except _UNREADABLE:
            self._troubles.note(SUMMARY, start)
            self._schemas.clear()
            self._channels.clear()
            return False
        if statistics is None:
            return False
        self._messages = statistics.message_count
        listed = statistics.chunk_count == len(chunks) and bool(chunks or not statistics.message_count)
        if not listed or (statistics.channel_count, statistics.metadata_count) != (
            len(self._channels),
            len(pending),
        ):
            return False
        for index in pending:
            self._note_at(index.offset)
        for entry in sorted(chunks, key=lambda entry: entry.chunk_start_offset):
            at = entry.chunk_start_offset
            chunk = self._records.chunk(at)
            if chunk is None or chunk.end - at != entry.chunk_length or chunk.end > self._records.size:
                self._troubles.note(BROKEN, at)
                continue
            self._parts.append(_Part(at, chunk.end, chunk))
        return True

    def _learn_by_walking(self) -> None:
        """Topics and chunks by going through the whole file."""
        records, buffer = self._records, _Buffer(self._file.fileno())
        at = len(MAGIC)
        plain: int | None = None  # start of the stretch of top-level messages under way
        data_ended = False
        while at + HEADER.size <= records.size:
            record = records.record(at)
            if record is not None and not self._fits(record, data_ended):
                record = None  # its length is wrong, or what comes next is
            if plain is not None and (record is None or record.opcode != Opcode.MESSAGE):
                self._parts.append(_Part(plain, at, None))
                plain = None
            if record is None:
                at = self._skip(at)
                continue
            if record.opcode == Opcode.CHUNK:
                at = self._learn_chunk(at, record.end, buffer)
                continue
            if record.opcode == Opcode.FOOTER:
                return
            if record.opcode == Opcode.MESSAGE:
                plain = at if plain is None else plain
            elif record.opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.METADATA):
                self._note_at(at)
            data_ended |= record.opcode == Opcode.DATA_END
            at = record.end
        if plain is not None:
            self._parts.append(_Part(plain, at, None))

    def _fits(self, record: Record, data_ended: bool) -> bool:
        """Whether a record can be meant where it stands. A chunk's head vouches for itself."""
        if record.opcode in _OF_SUMMARY and not data_ended:
            return False
        return record.opcode in (Opcode.CHUNK, Opcode.FOOTER) or self._records.believable(record.end)

    def _learn_chunk(self, at: int, end: int, buffer: _Buffer) -> int:
        """Take in the chunk at a byte → where to go on."""
        chunk = self._records.chunk(at)
        assert chunk is not None
        if end > self._records.size:
            following = self._records.resync(at + 1)
            if following is not None or self.whole:  # bytes are missing between here and there
                self._troubles.note(BROKEN, at)
                return self._records.size if following is None else following
            self._troubles.note(CUT, at)
            if not chunk.compression:
                self._learn_within(chunk, buffer)
                self._parts.append(_Part(chunk.data, self._records.size, None))
            return self._records.size
        goes_on = self._records.believable(end)
        if self._sound(chunk, buffer, always=not goes_on):
            self._records.chunked = True
            self._learn_within(chunk, buffer)
            self._parts.append(_Part(at, end, chunk))
        elif not goes_on:  # bytes are missing: the next chunk is within this one's span
            return self._skip(at)
        return end

    def _skip(self, at: int) -> int:
        """Past what is no record at `at` → the next believable one, or the end; noted unless it is the end
        of a file that was cut within a record."""
        following = self._records.resync(at + 1)
        if following is not None or self.whole or self._records.record(at) is None:
            self._troubles.note(NO_RECORD, at)
        return self._records.size if following is None else following

    def _learn_within(self, chunk: ChunkHead, buffer: _Buffer) -> None:
        """Schemas and channels declared inside a chunk; of a cut one, as far as it goes."""
        if not chunk.compression:
            end = min(chunk.data + chunk.length, self._records.size)
            for opcode, start, stop in self._records.within(chunk.data, end):
                if opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                    self._note(opcode, self._records.read(start, stop - start))
            return
        content = self._content(chunk, buffer)
        if content is None:
            return
        at = 0
        while at + HEADER.size <= len(content):
            opcode, length = HEADER.unpack_from(content, at)
            start = at + HEADER.size
            at = start + length
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL) and at <= len(content):
                self._note(opcode, bytes(content[start:at]))

    def _note_at(self, at: int) -> None:
        record = self._records.record(at)
        if record is None or record.end > self._records.size:
            self._troubles.note(UNREADABLE, at)
        else:
            self._note(record.opcode, self._records.read(record.start, record.end - record.start), at)

    def _note(self, opcode: int, content: bytes, at: int = 0) -> None:
        try:
            if opcode == Opcode.SCHEMA:
                schema = Schema.read(_stream(content))
                self._schemas.setdefault(schema.id, schema.name)  # the summary repeats them: the first counts
            elif opcode == Opcode.CHANNEL:
                channel = Channel.read(_stream(content))
                self._channels.setdefault(channel.id, (channel.topic, channel.schema_id))
            elif opcode == Opcode.METADATA:
                metadata = Metadata.read(_stream(content))
                self.metadata.setdefault(metadata.name, {}).update(metadata.metadata)
        except _UNREADABLE:
            self._troubles.note(UNREADABLE, at)

    # --- messages -----------------------------------------------------------------------------------

    def _near_messages(
        self, content: memoryview, wanted: Mapping[int, str], chunk: int, base: int, at_byte: int
    ) -> Generator[Found, None, int]:
        """Messages of a chunk's records in memory → how many there were, wanted or not."""
        at, end, count = 0, len(content), 0
        header, head, size = HEADER.unpack_from, MESSAGE.unpack_from, MESSAGE.size
        while at + 9 <= end:
            opcode, length = header(content, at)
            start = at + 9
            at = start + length
            if at > end:
                self._troubles.note(BROKEN, at_byte)
                break
            if opcode == 5 and length >= size:
                count += 1
                channel, _, time_ns, _ = head(content, start)
                topic = wanted.get(channel)
                if topic is not None:
                    start += size
                    yield Found(topic, time_ns, content[start:at], Place(chunk, base + start, at - start))
                elif channel not in self._channels:
                    self._troubles.note(UNKNOWN, at_byte)
        return count

    def _far_messages(self, at: int, end: int, wanted: Mapping[int, str]) -> Generator[Found, None, int]:
        """The same for records that are not in memory: heads are read, and what is wanted."""
        count = 0
        for opcode, start, stop in self._records.within(at, end):
            if opcode != Opcode.MESSAGE or stop - start < MESSAGE.size:
                continue
            count += 1
            channel, _, time_ns, _ = MESSAGE.unpack(self._records.read(start, MESSAGE.size))
            if channel in wanted:
                start += MESSAGE.size
                data = memoryview(self._records.read(start, stop - start))
                yield Found(wanted[channel], time_ns, data, Place(-1, start, stop - start))
            elif channel not in self._channels:
                self._troubles.note(UNKNOWN, start)
        return count

    def _sound(self, chunk: ChunkHead, buffer: _Buffer, always: bool = False) -> bool:
        """Whether a chunk's checksum agrees, where it has one; compared once. A chunk without one is sound
        when its records fill it exactly, if `always`."""
        if chunk.at in self._checked:
            return self._checked[chunk.at]
        if not (self._check or always):
            return True
        if chunk.compression:
            return self._content(chunk, buffer) is not None
        if not chunk.crc:
            if not always:
                return True
            ends = [end for _, _, end in self._records.within(chunk.data, chunk.end)]
            sound = (ends[-1] if ends else chunk.data) == chunk.end
        else:
            crc, at, end = 0, chunk.data, chunk.end
            while at < end:
                piece = buffer.fill(at, min(STEP_BYTES, end - at))
                if not len(piece):
                    break
                crc = zlib.crc32(piece, crc)
                at += len(piece)
            sound = crc == chunk.crc
        self._verdict(chunk, sound, CHECKSUM)
        return sound

    def _content(self, chunk: ChunkHead, buffer: _Buffer) -> memoryview | None:
        """A chunk's records, or None where it is damaged; valid until `buffer` is filled again."""
        if self._checked.get(chunk.at) is False:
            return None
        if not chunk.compression:
            content = buffer.fill(chunk.data, chunk.length)
            if len(content) != chunk.length:
                self._verdict(chunk, False, BROKEN)
                return None
            if self._check and chunk.crc and chunk.at not in self._checked:
                sound = zlib.crc32(content) == chunk.crc
                self._verdict(chunk, sound, CHECKSUM)
                return content if sound else None
            return content
        try:
            unpack = _UNPACK[chunk.compression]
            packed = self._records.read(chunk.data, chunk.length)
            unpacked = unpack(packed, chunk.unpacked) if chunk.unpacked <= LARGEST_BLOCK else b""
        except (KeyError, RuntimeError, EOFError, zstandard.ZstdError, *_UNREADABLE):
            unpacked = b""
        sound = len(unpacked) == chunk.unpacked
        if not sound:
            self._verdict(chunk, False, BROKEN)
        elif self._check and chunk.crc:
            sound = zlib.crc32(unpacked) == chunk.crc
            self._verdict(chunk, sound, CHECKSUM)
        return memoryview(unpacked) if sound else None

    def _verdict(self, chunk: ChunkHead, sound: bool, kind: str) -> None:
        self._checked[chunk.at] = sound
        if not sound:
            self._troubles.note(kind, chunk.at)


class _Buffer:
    """Bytes of a file, read into the same memory again and again: it stays in the processor's cache."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._memory = bytearray()

    def fill(self, at: int, length: int) -> memoryview:
        """`length` bytes from byte `at`, fewer where the file ends; valid until the next call."""
        if length > len(self._memory):
            self._memory = bytearray(length)
        view = memoryview(self._memory)[:length]
        filled = 0
        while filled < length:
            count = os.preadv(self._descriptor, [view[filled:]], at + filled)
            if not count:
                break
            filled += count
        return view[:filled]


def _stream(content: bytes) -> ReadDataStream:
    return ReadDataStream(BytesIO(content))


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    if zstandard.frame_content_size(packed) not in (-1, size):
        return b""
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)


def _unpack_lz4(packed: bytes, size: int) -> bytes:
    return lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size + 1)


_UNPACK: dict[str, Callable[[bytes, int], bytes]] = {"zstd": _unpack_zstd, "lz4": _unpack_lz4}
