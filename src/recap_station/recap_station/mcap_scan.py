"""Reading one MCAP file front to back, whole or cut off, faster than record by record through a library."""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path

from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Metadata, MetadataIndex, Schema
from mcap.stream_reader import get_chunk_data_stream

from recap_station.contract import ContractError

MAGIC = b"\x89MCAP0\r\n"
_HEADER = struct.Struct("<BQ")  # opcode, length of the content
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK = struct.Struct("<QQQII")  # start, end, uncompressed size, CRC, length of the compression's name
_FOOTER_SIZE = _HEADER.size + 20 + len(MAGIC)


class Scan:
    """One file. `topics` (name → type), `metadata` (record name → its text, later records win).

    `whole` is False where the footer is missing: the writer was killed or the file was cut. Then
    `messages()` ends after the last whole message. Raises ContractError where the file is not MCAP or a
    chunk's checksum does not agree.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            self._data: mmap.mmap | bytes = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            )
        if self._data[: len(MAGIC)] not in (MAGIC, b""):
            raise ContractError(f"{path}: not an MCAP file")
        self.topics: dict[str, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, str] = {}
        footer = size - _FOOTER_SIZE
        self.whole = (
            footer > 0
            and self._data[-len(MAGIC) :] == MAGIC
            and _HEADER.unpack_from(self._data, footer) == (Opcode.FOOTER, 20)
        )
        summary = struct.unpack_from("<Q", self._data, footer + _HEADER.size)[0] if self.whole else 0
        try:
            self._learn(self._walk(summary or len(MAGIC)))
        except (McapError, struct.error, UnicodeDecodeError) as error:
            raise ContractError(f"{path}: damaged MCAP file: {error!r}") from error

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """(topic, log time in ns, data) in the order of the file, of `topics` only."""
        wanted = {number: topic for number, topic in self._channels.items() if topic in topics}
        for opcode, start, end in self._walk(len(MAGIC)):
            if opcode == Opcode.MESSAGE:
                yield from _messages(self._data, start - _HEADER.size, end, wanted)
            elif opcode == Opcode.CHUNK:
                records, first, last = self._open_chunk(start, end)
                yield from _messages(records, first, last, wanted)

    def _walk(self, at: int) -> Iterator[tuple[int, int, int]]:
        """(opcode, start, end of content) of each record on the top level; the last may be a cut chunk."""
        size = len(self._data)
        while at + _HEADER.size <= size:
            opcode, length = _HEADER.unpack_from(self._data, at)
            start = at + _HEADER.size
            at = start + length
            if at > size:
                if opcode == Opcode.CHUNK:
                    yield opcode, start, size
                return
            yield opcode, start, at
            if opcode == Opcode.FOOTER:
                return

    def _learn(self, records: Iterator[tuple[int, int, int]]) -> None:
        for opcode, start, end in records:
            if opcode == Opcode.CHUNK:
                data, first, last = self._open_chunk(start, end)
                for inner, inner_start, inner_end in _records(data, first, last):
                    self._note(inner, data, inner_start, inner_end)
            elif opcode == Opcode.METADATA_INDEX:
                index = MetadataIndex.read(ReadDataStream(BytesIO(self._data[start:end])))
                at = index.offset + _HEADER.size
                self._note(Opcode.METADATA, self._data, at, index.offset + index.length)
            else:
                self._note(opcode, self._data, start, end)

    def _note(self, opcode: int, data: mmap.mmap | bytes, start: int, end: int) -> None:
        if opcode == Opcode.SCHEMA:
            schema = Schema.read(ReadDataStream(BytesIO(data[start:end])))
            self._schemas[schema.id] = schema.name
        elif opcode == Opcode.CHANNEL:
            channel = Channel.read(ReadDataStream(BytesIO(data[start:end])))
            self._channels[channel.id] = channel.topic
            self.topics[channel.topic] = self._schemas.get(channel.schema_id, "")
        elif opcode == Opcode.METADATA:
            metadata = Metadata.read(ReadDataStream(BytesIO(data[start:end])))
            self.metadata.setdefault(metadata.name, {}).update(metadata.metadata)

    def _open_chunk(self, start: int, end: int) -> tuple[mmap.mmap | bytes, int, int]:
        """Records of a chunk: (buffer, start, end). What is there of an uncompressed one that was cut."""
        try:
            _, _, uncompressed, crc, name_length = _CHUNK.unpack_from(self._data, start)
            at = start + _CHUNK.size
            compression = self._data[at : at + name_length].decode()
            at += name_length
            (length,) = struct.unpack_from("<Q", self._data, at)
            at += 8
        except struct.error:
            return b"", 0, 0  # cut within the chunk's head
        if at + length > end:
            return self._data, at, (end if not compression else at)
        if compression:
            chunk = Chunk.read(ReadDataStream(BytesIO(self._data[start:end])))
            stream, size = get_chunk_data_stream(chunk, validate_crc=True)
            return stream.read(size), 0, uncompressed
        if crc and zlib.crc32(memoryview(self._data)[at : at + length]) != crc:
            raise ContractError(f"{self.path}: checksum of the chunk at byte {start} does not agree")
        return self._data, at, at + length


def _records(data: mmap.mmap | bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    while at + _HEADER.size <= end:
        opcode, length = _HEADER.unpack_from(data, at)
        start = at + _HEADER.size
        at = start + length
        if at <= end:
            yield opcode, start, at


def _messages(
    data: mmap.mmap | bytes, at: int, end: int, wanted: Mapping[int, str]
) -> Iterator[tuple[str, int, bytes]]:
    for opcode, start, stop in _records(data, at, end):
        if opcode == Opcode.MESSAGE:
            channel, _, time_ns, _ = _MESSAGE.unpack_from(data, start)
            if channel in wanted:
                yield wanted[channel], time_ns, data[start + _MESSAGE.size : stop]
