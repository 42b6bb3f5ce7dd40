"""Records of an MCAP file by their place: what stands at a byte, whether it can be meant, and where the next
believable record is after bytes that are none."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mcap.opcode import Opcode

MAGIC = b"\x89MCAP0\r\n"
HEADER = struct.Struct("<BQ")  # opcode, length of the content
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK = struct.Struct("<QQQII")  # start, end, uncompressed size, CRC, length of the compression's name
_LONGEST_NAME = 32
_WINDOW = 4 << 20
_CHUNKS_WITHIN = 256 << 20  # of damage, in a file with chunks
_PEEK = HEADER.size + _CHUNK.size + _LONGEST_NAME + 8

# A record's opcode, then a length below 2^40.
_ANY = re.compile(rb"[\x03-\x0f](?=[\s\S]{5}\x00{3})")
_OUTSIDE_CHUNKS = re.compile(rb"[\x06\x07\x09\x0c\x0f](?=[\s\S]{5}\x00{3})")
_CHUNKS = re.compile(rb"\x06(?=[\s\S]{5}\x00{3})")
_FIXED = {Opcode.DATA_END: 4, Opcode.FOOTER: 20, Opcode.SUMMARY_OFFSET: 17}
_LEAST = {Opcode.HEADER: 8, Opcode.SCHEMA: 14, Opcode.CHANNEL: 16, Opcode.CHUNK_INDEX: 60}
_LEAST |= {Opcode.METADATA: 8, Opcode.ATTACHMENT: 40, Opcode.STATISTICS: 42, Opcode.METADATA_INDEX: 20}
_LEAST |= {Opcode.ATTACHMENT_INDEX: 48, Opcode.MESSAGE: MESSAGE.size}


class Record(NamedTuple):
    """`start` and `end` are those of the content; `end` may lie beyond a file that was cut."""

    opcode: int
    start: int
    end: int


class ChunkHead(NamedTuple):
    """A chunk's head: its record starts at `at` and ends at `end`; `length` bytes of records from `data` on,
    `unpacked` once decompressed; `crc` of those, 0 where the writer made none."""

    at: int
    end: int
    data: int
    length: int
    unpacked: int
    crc: int
    compression: str


class Records:
    """Records of the file open at `descriptor`."""

    def __init__(self, descriptor: int):
        self.size = os.fstat(descriptor).st_size
        self.chunked = False  # whether a sound chunk has been seen: then messages stand in chunks
        self._without_chunks = 0  # looked through up to here, and none found
        self._descriptor = descriptor

    def read(self, at: int, length: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        if at < 0 or at >= self.size:
            return b""
        length = min(length, self.size - at)
        data = os.pread(self._descriptor, length, at)
        if len(data) == length or not data:
            return data
        pieces = [data]
        while (missing := length - sum(map(len, pieces))) > 0:  # one read stops short of 2 GiB
            piece = os.pread(self._descriptor, missing, at + length - missing)
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)

    def record(self, at: int) -> Record | None:
        """The record at a byte, or None where nothing that can be meant stands there."""
        peek = self.read(at, _PEEK)
        if len(peek) < HEADER.size:
            return None
        opcode, length = HEADER.unpack_from(peek)
        start = at + HEADER.size
        if opcode == Opcode.CHUNK:
            chunk = _chunk_head(at, length, peek)
            return None if chunk is None else Record(opcode, start, chunk.end)
        if opcode == Opcode.MESSAGE_INDEX:
            if length < 6 or len(peek) < HEADER.size + 6:
                return None
            (entries,) = struct.unpack_from("<I", peek, HEADER.size + 2)
            return Record(opcode, start, start + length) if entries + 6 == length else None
        if opcode == Opcode.ATTACHMENT and peek[HEADER.size + 18 : HEADER.size + 20] != b"\0\0":
            return None  # its name would be longer than 64 KiB
        known = opcode in _FIXED or opcode in _LEAST
        if not known or length != _FIXED.get(opcode, length) or length < _LEAST.get(opcode, 0):
            return None
        return Record(opcode, start, start + length)

    def chunk(self, at: int) -> ChunkHead | None:
        """The head of the chunk at a byte, or None where its sizes do not agree with each other."""
        peek = self.read(at, _PEEK)
        if len(peek) < HEADER.size or peek[0] != Opcode.CHUNK:
            return None
        return _chunk_head(at, HEADER.unpack_from(peek)[1], peek)

    def within(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(opcode, start, end of content) of whole records between two bytes, without judging them."""
        while at + HEADER.size <= end:
            head = self.read(at, HEADER.size)
            if len(head) < HEADER.size:
                return
            opcode, length = HEADER.unpack(head)
            start = at + HEADER.size
            at = start + length
            if at > end:
                return
            yield opcode, start, at

    def believable(self, at: int) -> bool:
        """Whether a record stands at a byte: a chunk whose sizes agree, another with a record after it, or
        the end of the file."""
        if at == self.size or (at + len(MAGIC) == self.size and self.read(at, len(MAGIC)) == MAGIC):
            return True
        record = self.record(at)
        if record is None:
            return False
        if record.opcode == Opcode.CHUNK:
            return True
        if record.end > self.size:
            return False
        at_end = record.end == self.size or self.read(record.end, len(MAGIC)) == MAGIC
        return at_end or self.record(record.end) is not None

    def resync(self, at: int, at_most: int = 1 << 62) -> int | None:
        """The next believable record from a byte on, within so many bytes; None where there is none.

        Holes of a sparse file cost nothing. In a file with chunks, what looks like a record within one
        that is damaged is passed over: nothing vouches for it.
        """
        end = min(self.size, at + at_most)
        reach = min(end, at + _CHUNKS_WITHIN)
        if not self.chunked and reach > self._without_chunks:
            self.chunked = self._search(_CHUNKS, max(at, self._without_chunks), reach) is not None
            self._without_chunks = reach
        return self._search(_OUTSIDE_CHUNKS if self.chunked else _ANY, at, end)

    def _search(self, pattern: re.Pattern[bytes], at: int, end: int) -> int | None:
        for low, high in self._extents(at, end):
            while low < high:
                block = self.read(low, min(_WINDOW, high - low) + HEADER.size)
                for match in pattern.finditer(block):
                    if match.start() < _WINDOW and self.believable(low + match.start()):
                        return low + match.start()
                low += _WINDOW
        return None

    def _extents(self, at: int, end: int) -> Iterator[tuple[int, int]]:
        """Stretches of the file that are on the disk."""
        while at < end:
            try:
                low = os.lseek(self._descriptor, at, os.SEEK_DATA)
                high = os.lseek(self._descriptor, low, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # not "no data from here on": a file system that cannot tell
                    yield at, end
                return
            yield low, min(high, end)
            at = high


def _chunk_head(at: int, length: int, peek: bytes) -> ChunkHead | None:
    if len(peek) < HEADER.size + _CHUNK.size:
        return None
    _, _, unpacked, crc, name_length = _CHUNK.unpack_from(peek, HEADER.size)
    fixed = _CHUNK.size + name_length + 8
    if name_length > _LONGEST_NAME or len(peek) < HEADER.size + fixed:
        return None
    name = peek[HEADER.size + _CHUNK.size : HEADER.size + _CHUNK.size + name_length]
    (packed,) = struct.unpack_from("<Q", peek, HEADER.size + fixed - 8)
    if packed + fixed != length or (not name and packed != unpacked) or not name.isascii():
        return None
    data = at + HEADER.size + fixed
    return ChunkHead(at, data + packed, data, packed, unpacked, crc, name.decode())
