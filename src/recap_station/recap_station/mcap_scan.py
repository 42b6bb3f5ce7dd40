"""Reading one MCAP file (format: mcap.dev/spec), whole, cut off or damaged, without copying what it skips.

`recap_station.mcap_layout` says where the chunks are. A chunk counts when its checksum agrees; one that does
not is left out and noted. Inside a chunk every message is found from its record's head, so neither the
message indexes nor the bytes of images are read, except for the checksum. Reads are by pread: a file that
shrinks or a bad sector is an error, not the end of the process.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from pathlib import Path

from mcap.opcode import Opcode

from recap_station.bag_file import BagError, Found, Place, Troubles
from recap_station.mcap_chunks import BROKEN, Chunks
from recap_station.mcap_layout import Layout
from recap_station.mcap_records import HEADER, MAGIC, MESSAGE, Records

BUFFER_BYTES = 32 << 20  # chunks up to here are read as one piece
UNKNOWN = "messages of an undeclared channel"


class Scan:
    """One MCAP file, as `recap_station.bag_file.BagFile` describes it.

    `check`: chunks' checksums are compared (about a third of a second for a gigabyte). Raises BagError where
    the file is no MCAP file, OSError where it cannot be opened.
    """

    def __init__(self, path: Path, check: bool = True):
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._records = Records(self._file.fileno())
        self._troubles = Troubles()
        self._chunks = Chunks(self._records, self._file.fileno(), check, self._troubles)
        self._unpacked: tuple[int, bytes] = (-1, b"")
        self._lost = 0
        self.unchecked = False
        layout = Layout(self._records, self._chunks, self._troubles)
        begins = self._records.read(0, len(MAGIC))
        if begins != MAGIC and self._records.size:
            if not layout.ended and self._records.resync(0, 64 << 20) is None:
                raise BagError(f"{path}: not an MCAP file")
            self._troubles.note("the beginning is damaged", 0)
        layout.learn()
        self._layout = layout
        self.whole, self.metadata = layout.whole, layout.metadata
        self.topics = {topic: layout.schemas.get(schema, "") for topic, schema in layout.channels.values()}

    @property
    def damage(self) -> list[str]:
        lines = self._troubles.lines("byte")
        if self._lost > 0:
            lines.append(f"{self._lost} of {self._layout.messages} messages are lost")
        return lines

    def scan(self, topics: Collection[str]) -> Iterator[Found]:
        wanted = {number: topic for number, (topic, _) in self._layout.channels.items() if topic in topics}
        buffer = self._chunks.buffer()
        seen = 0
        for part in self._layout.parts:
            if part.chunk is None or (not part.chunk.compression and part.chunk.length > BUFFER_BYTES):
                start, end = part.start, part.end
                if part.chunk is not None:
                    if not self._chunks.sound(part.chunk, buffer):
                        continue
                    start, end = part.chunk.data, min(part.chunk.data + part.chunk.length, self._records.size)
                messages = self._far_messages(start, end, wanted)
            else:
                content = self._chunks.content(part.chunk, buffer)
                if content is None:
                    continue
                place = part.start if part.chunk.compression else -1
                base = 0 if part.chunk.compression else part.chunk.data
                messages = self._near_messages(content, wanted, place, base, part.start)
            count = yield from messages
            self.unchecked |= bool(count) and (part.chunk is None or not part.chunk.crc)
            seen += count
        if self._layout.messages >= 0:
            self._lost = self._layout.messages - seen

    def read(self, place: Place) -> bytes:
        if place.chunk < 0:
            data = self._records.read(place.offset, place.size)
        else:
            if self._unpacked[0] != place.chunk:
                chunk = self._records.chunk(place.chunk)
                content = None if chunk is None else self._chunks.content(chunk, self._chunks.buffer())
                if content is None:
                    raise BagError(f"{self.path}: the chunk at byte {place.chunk} cannot be read")
                self._unpacked = (place.chunk, bytes(content))
            data = self._unpacked[1][place.offset : place.offset + place.size]
        if len(data) != place.size:
            raise BagError(f"{self.path}: no {place.size} bytes at byte {place.offset}")
        return data

    def _near_messages(
        self, content: memoryview, wanted: Mapping[int, str], chunk: int, base: int, at_byte: int
    ) -> Generator[Found, None, int]:
        """Messages of a chunk's records in memory → how many there were, wanted or not."""
        at, end, count = 0, len(content), 0
        channels = self._layout.channels
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
                elif channel not in channels:
                    self._troubles.note(UNKNOWN, at_byte)
        return count

    def _far_messages(self, at: int, end: int, wanted: Mapping[int, str]) -> Generator[Found, None, int]:
        """The same for records that are not in memory: heads are read, and what is wanted."""
        count, channels = 0, self._layout.channels
        for opcode, start, stop in self._records.within(at, end):
            if opcode != Opcode.MESSAGE or stop - start < MESSAGE.size:
                continue
            count += 1
            channel, _, time_ns, _ = MESSAGE.unpack(self._records.read(start, MESSAGE.size))
            if channel in wanted:
                start += MESSAGE.size
                data = memoryview(self._records.read(start, stop - start))
                yield Found(wanted[channel], time_ns, data, Place(-1, start, stop - start))
            elif channel not in channels:
                self._troubles.note(UNKNOWN, start)
        return count
