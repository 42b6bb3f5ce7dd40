"""Where everything is in an MCAP file: its topics, its metadata, and the stretches that hold messages.

Where the summary at the end is sound, it says where every chunk is; otherwise the file is walked record by
record, and after bytes that are no record the next believable one is searched for.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import NamedTuple

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, ChunkIndex, Metadata, MetadataIndex, Schema, Statistics

from recap_station.bag_file import Troubles
from recap_station.mcap_chunks import BROKEN, UNREADABLE_ERRORS, Buffer, Chunks
from recap_station.mcap_records import HEADER, MAGIC, ChunkHead, Record, Records

FOOTER = struct.Struct("<QQI")  # summary start, summary offset start, CRC of the summary
FOOTER_BYTES = HEADER.size + FOOTER.size + len(MAGIC)
_OF_SUMMARY = frozenset(
    {Opcode.CHUNK_INDEX, Opcode.ATTACHMENT_INDEX, Opcode.STATISTICS}
    | {Opcode.METADATA_INDEX, Opcode.SUMMARY_OFFSET}
)

NO_RECORD = "bytes that are no record"
SUMMARY = "the summary is damaged"
UNREADABLE = "a record cannot be read"
CUT = "the file ends inside a chunk"
BEYOND = "bytes after the footer, which are left out"


class Part(NamedTuple):
    """A stretch of the file that holds messages: a chunk, or records at top level where `chunk` is None."""

    start: int
    end: int
    chunk: ChunkHead | None


class Layout:
    """What a file holds, and where.

    `ended`: it ends as an MCAP file does; `whole`: with a footer before that. `parts` in the order of the
    file; `channels`: number → (topic, number of its schema); `schemas`: number → name of the type;
    `metadata`: record → its text; `messages`: how many the summary says there are, −1 where it does not.
    """

    def __init__(self, records: Records, chunks: Chunks, troubles: Troubles):
        self.parts: list[Part] = []
        self.schemas: dict[int, str] = {}
        self.channels: dict[int, tuple[str, int]] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.messages = -1
        self._records, self._chunks, self._troubles = records, chunks, troubles
        footer = records.size - FOOTER_BYTES
        tail = records.read(footer, FOOTER_BYTES) if footer > 0 else b""
        self.whole = tail.endswith(MAGIC) and HEADER.unpack_from(tail) == (Opcode.FOOTER, FOOTER.size)
        self.ended = tail.endswith(MAGIC)
        self._footer, self._tail = footer, tail

    def learn(self) -> None:
        """Fill in the rest."""
        if not (self.whole and self._learn_from_summary(self._footer, self._tail)):
            self._learn_by_walking()

    def _learn_from_summary(self, footer: int, tail: bytes) -> bool:
        """Topics and chunks by the summary → whether it is sound and lists everything."""
        start, _, crc = FOOTER.unpack_from(tail, HEADER.size)
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
        except UNREADABLE_ERRORS:
            self._troubles.note(SUMMARY, start)
            self.schemas.clear()
            self.channels.clear()
            return False
        if statistics is None:
            return False
        self.messages = statistics.message_count
        listed = statistics.chunk_count == len(chunks) and bool(chunks or not statistics.message_count)
        if not listed or (statistics.channel_count, statistics.metadata_count) != (
            len(self.channels),
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
            self.parts.append(Part(at, chunk.end, chunk))
        return True

    def _learn_by_walking(self) -> None:
        """Topics and chunks by going through the whole file."""
        records, buffer = self._records, self._chunks.buffer()
        at = len(MAGIC)
        plain: int | None = None  # start of the stretch of top-level messages under way
        data_ended = False
        while at + HEADER.size <= records.size:
            record = records.record(at)
            if record is not None and not self._fits(record, data_ended):
                record = None  # its length is wrong, or what comes next is
            if plain is not None and (record is None or record.opcode != Opcode.MESSAGE):
                self.parts.append(Part(plain, at, None))
                plain = None
            if record is None:
                at = self._skip(at)
                continue
            if record.opcode == Opcode.CHUNK:
                at = self._learn_chunk(at, record.end, buffer)
                continue
            if record.opcode == Opcode.FOOTER:
                if record.end + len(MAGIC) < records.size:  # as of a file written behind another
                    self._troubles.note(BEYOND, record.end + len(MAGIC))
                return
            if record.opcode == Opcode.MESSAGE:
                plain = at if plain is None else plain
            elif record.opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.METADATA):
                self._note_at(at)
            data_ended |= record.opcode == Opcode.DATA_END
            at = record.end
        if plain is not None:
            self.parts.append(Part(plain, at, None))

    def _fits(self, record: Record, data_ended: bool) -> bool:
        """Whether a record can be meant where it stands. A chunk's head vouches for itself."""
        if record.opcode in _OF_SUMMARY and not data_ended:
            return False
        return record.opcode in (Opcode.CHUNK, Opcode.FOOTER) or self._records.believable(record.end)

    def _learn_chunk(self, at: int, end: int, buffer: Buffer) -> int:
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
                self.parts.append(Part(chunk.data, self._records.size, None))
            return self._records.size
        goes_on = self._records.believable(end)
        if self._chunks.sound(chunk, buffer, always=not goes_on):
            self._records.chunked = True
            self._learn_within(chunk, buffer)
            self.parts.append(Part(at, end, chunk))
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

    def _learn_within(self, chunk: ChunkHead, buffer: Buffer) -> None:
        """Schemas and channels declared inside a chunk; of a cut one, as far as it goes."""
        if not chunk.compression:
            end = min(chunk.data + chunk.length, self._records.size)
            for opcode, start, stop in self._records.within(chunk.data, end):
                if opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                    self._note(opcode, self._records.read(start, stop - start))
            return
        content = self._chunks.content(chunk, buffer)
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
                self.schemas.setdefault(schema.id, schema.name)  # the summary repeats them: the first counts
            elif opcode == Opcode.CHANNEL:
                channel = Channel.read(_stream(content))
                self.channels.setdefault(channel.id, (channel.topic, channel.schema_id))
            elif opcode == Opcode.METADATA:
                metadata = Metadata.read(_stream(content))
                self.metadata.setdefault(metadata.name, {}).update(metadata.metadata)
        except UNREADABLE_ERRORS:
            self._troubles.note(UNREADABLE, at)


def _stream(content: bytes) -> ReadDataStream:
    return ReadDataStream(BytesIO(content))
