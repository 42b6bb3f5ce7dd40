"""Where each image of an episode lies: file, offset and length, so that one is read by one pread.

JPEG bytes that stand uncompressed in an MCAP file are read where they are. Those that cannot be (compressed
chunks, other containers, raw images) are copied once into a pack beside the store: the bytes as recorded
where the bag has JPEG or PNG, lossless PNG otherwise.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from recap_learner.episodes import ConversionError, Episode, read_images
from recap_station import topics
from recap_station.bags import BagReader, deserialize
from recap_station.contract import ContractError
from recap_station.files import replace_file

_MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")  # opcode, length of the content (MCAP specification, "Records")
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK_HEAD = 8 + 8 + 8 + 4  # start, end, uncompressed size, CRC; then the compression's name
_CHANNEL, _MESSAGE_OP, _CHUNK_OP, _FOOTER = 0x04, 0x05, 0x06, 0x02
_STAMP_TOLERANCE_S = 1e-3  # ages are float32 seconds


@dataclass(frozen=True)
class ImageTable:
    """The M images of one camera of one episode. file (M,) int32 index into `files`; offset and length (M,)
    int64 [bytes]."""

    files: tuple[Path, ...]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)


def locate_images(episode: Episode, store: Path) -> dict[str, ImageTable]:
    """Camera → its images, numbered as `Episode.image` numbers them.

    An image counts only if its stamp is the one that the episode was made with; where any is not, that
    camera's images are packed as `read_images` numbers and decodes them. Raises ConversionError where images
    that the episode needs are missing.
    """
    bag = episode.info.bag_in(store)
    topic_of = {camera: _topic(episode, camera) for camera in episode.image}
    in_place = _in_place(bag, topic_of)
    tables = {}
    for camera, index in episode.image.items():
        count = int(index.max(initial=-1)) + 1
        found = in_place.get(camera)
        if found and _agrees(episode, camera, found[1]):
            tables[camera] = found[0]
        else:
            base = store / "images" / f"{episode.info.id}.{camera}"
            tables[camera] = _packed(episode, bag, camera, count, base)
    return tables


class ByteReader:
    """Reads pieces of many files, with at most `most` of them open."""

    def __init__(self, files: Sequence[Path], most: int = 128):
        self.files, self.most = files, most
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Raises ConversionError where the file is shorter than it was."""
        descriptor = self._open.pop(file, None)
        if descriptor is None:
            descriptor = os.open(self.files[file], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) >= self.most:
                os.close(self._open.popitem(last=False)[1])
        self._open[file] = descriptor
        data = os.pread(descriptor, length, offset)
        if len(data) != length:
            raise ConversionError(
                f"{self.files[file]}: wanted {length} bytes at {offset}, found {len(data)}: it was cut since"
            )
        return data

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _topic(episode: Episode, camera: str) -> str:
    streams = episode.info.streams
    return streams.image(camera).topic if streams else topics.image_topic(camera)


def _in_place(bag: Path, topic_of: Mapping[str, str]) -> dict[str, tuple[ImageTable, np.ndarray]]:
    """Camera → (table, stamps (M, 2) int64 ns: header and log time); no entry where any is unreachable."""
    try:
        reader = BagReader(bag)
    except (ContractError, OSError):
        return {}
    camera_of = {topic: camera for camera, topic in topic_of.items()}
    if any(file.suffix != ".mcap" for file in reader.files):
        return {}
    prefix = reader.metadata.get("recap.namespace", "/")
    rows: dict[str, list[tuple[int, int, int, int, int]]] = {camera: [] for camera in topic_of}
    for number, file in enumerate(reader.files):
        with open(file, "rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                continue
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                names: dict[int, str] = {}
                for channel, log_time, start, end in _messages(data, names):
                    if channel < 0:  # a chunk that is compressed: its images cannot be reached by offset
                        return {}
                    camera = camera_of.get(names.get(channel, "").removeprefix(prefix))
                    if camera is None:
                        continue
                    place = _jpeg_in(data, start, end)
                    if place is None:
                        return {}
                    stamp, offset, length = place
                    rows[camera].append((number, offset, length, stamp, log_time))
    files = tuple(reader.files)
    found = {}
    for camera, places in rows.items():
        table = np.array(places, dtype=np.int64).reshape(-1, 5)
        located = ImageTable(files, table[:, 0].astype(np.int32), table[:, 1].copy(), table[:, 2].copy())
        found[camera] = (located, table[:, 3:])
    return found


def _messages(data: mmap.mmap, names: dict[int, str]) -> Iterator[tuple[int, int, int, int]]:
    """(channel, log time, start, end of the CDR) of every message; (−1, …) for a compressed chunk.

    names: filled with channel → topic. Ends at the last whole record.
    """
    stack = [(len(_MAGIC), len(data))]
    while stack:
        at, end = stack.pop()
        while at + _RECORD.size <= end:
            opcode, length = _RECORD.unpack_from(data, at)
            start = at + _RECORD.size
            at = start + length
            if opcode == _FOOTER or (at > end and opcode != _CHUNK_OP):
                break
            if opcode == _MESSAGE_OP:
                channel, _, log_time, _ = _MESSAGE.unpack_from(data, start)
                yield channel, log_time, start + _MESSAGE.size, at
            elif opcode == _CHANNEL:
                number, _, size = struct.unpack_from("<HHI", data, start)
                names[number] = bytes(data[start + 8 : start + 8 + size]).decode(errors="replace")
            elif opcode == _CHUNK_OP:
                (size,) = struct.unpack_from("<I", data, start + _CHUNK_HEAD)
                if size:
                    yield -1, 0, start, start
                    continue
                stack.append((min(at, end), end))
                at, end = start + _CHUNK_HEAD + 4 + 8, min(at, end)


def _jpeg_in(data: mmap.mmap, start: int, end: int) -> tuple[int, int, int] | None:
    """(header stamp in ns, offset, length) of the bytes in a CompressedImage's CDR; None if it is not one."""
    if end - start < 24 or data[start + 1] != 1:  # little-endian CDR
        return None
    body = start + 4  # alignment counts from after the encapsulation header
    seconds, nanoseconds = struct.unpack_from("<iI", data, body)
    at = body + 8
    for _ in range(2):  # frame_id, format
        (size,) = struct.unpack_from("<I", data, at)
        at += 4 + size
        at += (body - at) % 4
        if at + 8 > end:
            return None
    (length,) = struct.unpack_from("<I", data, at)
    if at + 4 + length > end or data[at + 4 : at + 6] not in (b"\xff\xd8", b"\x89P"):
        return None
    return seconds * 1_000_000_000 + nanoseconds, at + 4, length


def _agrees(episode: Episode, camera: str, stamps: np.ndarray) -> bool:
    """Whether every image that the episode uses has the stamp, of either clock, that it was aligned by."""
    index = episode.image[camera]
    used = index >= 0
    if int(index.max(initial=-1)) >= len(stamps):
        return False
    expected = episode.time_ns[used] - (episode.image_age[camera][used].astype(np.float64) * 1e9)
    off = np.abs(stamps[index[used]] - expected[:, None]) * 1e-9
    tolerance = _STAMP_TOLERANCE_S + 1e-6 * episode.image_age[camera][used]
    return bool(np.any(np.all(off <= tolerance[:, None], axis=0)))


def _packed(episode: Episode, bag: Path, camera: str, count: int, base: Path) -> ImageTable:
    """Copy a camera's first `count` images into `<base>.pack`, once for a given state of the bag."""
    pack, places = base.with_name(base.name + ".pack"), base.with_name(base.name + ".npy")
    newest = max((f.stat().st_mtime_ns for f in bag.rglob("*") if f.is_file()), default=0)
    if not (places.exists() and pack.exists() and places.stat().st_mtime_ns >= newest):
        lengths: list[int] = []

        def write(temporary: Path) -> None:
            stamps = _stamps(bag, _topic(episode, camera))
            recorded = stamps is not None and _agrees(episode, camera, stamps)
            with open(temporary, "wb") as file:
                for data in (_as_recorded if recorded else _as_png)(episode, bag, camera, count):
                    file.write(data)
                    lengths.append(len(data))

        replace_file(pack, write)
        replace_file(places, lambda temporary: _save(temporary, np.array(lengths, dtype=np.int64)))
    length = np.load(places)
    if len(length) < count:
        raise ConversionError(f"{bag}: {len(length)} images of {camera}, wanted {count}")
    return ImageTable((pack,), np.zeros(len(length), np.int32), np.cumsum(length) - length, length)


def _stamps(bag: Path, topic: str) -> np.ndarray | None:
    """(M, 2) int64 ns, header and receive time, of a topic of CompressedImage; None if it is none."""
    reader = BagReader(bag)
    if reader.topics.get(topic) != topics.IMAGE_TYPE:
        return None
    stamps = []
    for _, received, cdr in reader.messages([topic]):
        stamp = deserialize(cdr, topics.IMAGE_TYPE).header.stamp
        stamps.append((stamp.sec * 1_000_000_000 + stamp.nanosec, received))
    return np.array(stamps, dtype=np.int64).reshape(-1, 2)


def _as_recorded(episode: Episode, bag: Path, camera: str, count: int) -> Iterator[bytes]:
    for number, (_, _, cdr) in enumerate(BagReader(bag).messages([_topic(episode, camera)])):
        if number == count:
            return
        yield np.asarray(deserialize(cdr, topics.IMAGE_TYPE).data, dtype=np.uint8).tobytes()


def _as_png(episode: Episode, bag: Path, camera: str, count: int) -> Iterator[bytes]:
    for image in read_images(bag, camera, range(count), episode.info.streams):
        yield cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, values)
