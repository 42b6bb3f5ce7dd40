"""Chunks of an MCAP file: whether one is sound, by its checksum, and its records once unpacked."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable

import lz4.frame
import zstandard
from mcap.exceptions import McapError

from recap_station.bag_file import LARGEST_BLOCK, Troubles
from recap_station.mcap_records import ChunkHead, Records

STEP_BYTES = 4 << 20  # a checksum is made in pieces of this
UNREADABLE_ERRORS = (McapError, struct.error, UnicodeDecodeError, ValueError, OverflowError, MemoryError)

CHECKSUM = "checksum of a chunk does not agree"
BROKEN = "a chunk cannot be unpacked"


class Chunks:
    """Chunks of the file that `records` reads, open at `descriptor`. `check`: checksums are compared, once a
    chunk; what does not agree is noted in `troubles`."""

    def __init__(self, records: Records, descriptor: int, check: bool, troubles: Troubles):
        self._records, self._descriptor = records, descriptor
        self._check, self._troubles = check, troubles
        self._checked: dict[int, bool] = {}

    def buffer(self) -> Buffer:
        return Buffer(self._descriptor)

    def sound(self, chunk: ChunkHead, buffer: Buffer, always: bool = False) -> bool:
        """Whether a chunk's checksum agrees, where it has one; compared once. A chunk without one is sound
        when its records fill it exactly, if `always`."""
        if chunk.at in self._checked:
            return self._checked[chunk.at]
        if not (self._check or always):
            return True
        if chunk.compression:
            return self.content(chunk, buffer) is not None
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

    def content(self, chunk: ChunkHead, buffer: Buffer) -> memoryview | None:
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
        except (KeyError, RuntimeError, EOFError, zstandard.ZstdError, *UNREADABLE_ERRORS):
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


class Buffer:
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


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    if zstandard.frame_content_size(packed) not in (-1, size):
        return b""
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)


def _unpack_lz4(packed: bytes, size: int) -> bytes:
    return lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size + 1)


_UNPACK: dict[str, Callable[[bytes, int], bytes]] = {"zstd": _unpack_zstd, "lz4": _unpack_lz4}
