"""Where each image of an episode lies: file, offset and length, so that one is read by one pread.

Images that stand uncompressed in an MCAP file are read there, at the places that the episode's ticks know: a
store is opened without a look through its bags. Those that cannot be (compressed chunks, other containers,
raw images, episodes whose bag was written anew) are copied once into a pack beside the store: the bytes as
recorded where the bag has JPEG or PNG, lossless PNG otherwise.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mcap.opcode import Opcode

from recap_learner.data.bag_images import recorded_images
from recap_learner.data.episodes import ConversionError, Episode
from recap_station import cdr_scan
from recap_station.cdr_scan import CdrError
from recap_station.files import replace_file
from recap_station.mcap_scan import HEADER, MESSAGE

_LOOKED_AT = 8  # images of each camera whose place is checked
_STAMP_TOLERANCE_S = 1e-3  # ages are float32 seconds


@dataclass(frozen=True)
class ImageTable:
    """The M images of one camera of one episode, as `Episode.image` numbers them. file (M,) int32 index into
    `files`; offset and length (M,) int64 [bytes] of the picture, or of the message that it is in; length −1
    of an image that no tick has. `PictureReader` reads them."""

    files: tuple[Path, ...]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)


def locate_images(episode: Episode, store: Path) -> dict[str, ImageTable]:
    """Camera → its images. Raises ConversionError where images that the episode needs are missing."""
    bag = episode.info.bag_in(store)
    files = tuple(bag if bag.is_file() else bag / name for name in episode.info.files)
    here = bool(files) and all(file.suffix == ".mcap" and file.is_file() for file in files)
    tables = {}
    for camera in episode.image:
        table = _in_place(episode, camera, files) if here else None
        tables[camera] = table or _packed(episode, bag, camera, store / "images")
    return tables


class PictureReader:
    """Reads pictures out of many files, with at most `most` of them open."""

    def __init__(self, files: Sequence[Path], most: int = 128):
        self.files, self.most = files, most
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, file: int, offset: int, length: int) -> bytes | memoryview:
        """JPEG or PNG bytes of a place that an ImageTable has. Raises ConversionError where the file is
        shorter than it was, or holds no image there."""
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
        if data[:1] != b"\0":  # of a pack; a message begins with its encapsulation
            return data
        try:
            return _picture(memoryview(data))
        except CdrError as error:
            raise ConversionError(f"{self.files[file]}: no image at byte {offset}: {error}") from error

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _in_place(episode: Episode, camera: str, files: tuple[Path, ...]) -> ImageTable | None:
    """Images where the bag has them; None where any is out of reach, or the bag is not as it was."""
    places = episode.image_at.get(camera)
    if places is None:
        return None
    number, tick = np.unique(episode.image[camera], return_index=True)
    number, tick = number[number >= 0], tick[number >= 0]
    place = np.full((int(number.max(initial=-1)) + 1, 4), -1, np.int64)
    place[number] = places[tick]
    file, chunk, offset, length = place.T
    if (file[number] < 0).any() or (file >= len(files)).any() or (chunk >= 0).any():
        return None
    some = np.unique(np.linspace(0, len(number) - 1, min(_LOOKED_AT, len(number))).astype(np.int64))
    stamps = [_stamps(files[file[n]], int(offset[n]), int(length[n])) for n in number[some]]
    if not _agree(episode, camera, tick[some], stamps):
        return None
    return ImageTable(files, file.astype(np.int32), offset, length)


def _stamps(file: Path, offset: int, length: int) -> tuple[int, int] | None:
    """(header stamp, log time) in ns of the image whose CDR stands there; None if none does."""
    head = HEADER.size + MESSAGE.size  # of its record (MCAP specification, "Message")
    with open(file, "rb") as opened:
        data = os.pread(opened.fileno(), head + length, offset - head)
    if len(data) != head + length or data[0] != Opcode.MESSAGE:
        return None
    try:
        message = memoryview(data)[head:]
        _picture(message)
        return cdr_scan.compressed_image(message).stamp_ns, MESSAGE.unpack_from(data, HEADER.size)[2]
    except CdrError:
        return None


def _agree(
    episode: Episode, camera: str, ticks: np.ndarray, stamps: Sequence[tuple[int, int] | None]
) -> bool:
    """Whether images have the stamps, of either clock, that the episode's ticks were aligned by."""
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) != len(stamps):
        return False
    age_s = episode.image_age[camera][ticks].astype(np.float64)
    expected = episode.time_ns[ticks] - age_s * 1e9
    off_s = np.abs(np.array(known, np.int64).reshape(-1, 2) - expected[:, None]) * 1e-9
    return bool(np.any(np.all(off_s <= (_STAMP_TOLERANCE_S + 1e-6 * age_s)[:, None], axis=0)))


def _picture(message: memoryview) -> memoryview:
    """The picture in the CDR of a CompressedImage. Raises CdrError."""
    found = cdr_scan.compressed_image(message)
    picture = message[found.offset : found.offset + found.size]
    if picture[:2] not in (b"\xff\xd8", b"\x89P"):
        raise CdrError("neither JPEG nor PNG")
    return picture


def _packed(episode: Episode, bag: Path, camera: str, folder: Path) -> ImageTable:
    """Copy a camera's images into a pack in `folder`, once for a given state of the bag."""
    base = folder / f"{episode.info.id}.{camera}"
    pack, places = base.with_name(base.name + ".pack"), base.with_name(base.name + ".npy")
    count = int(episode.image[camera].max(initial=-1)) + 1
    inside = [bag] if bag.is_file() else [f for f in bag.rglob("*") if f.is_file()]
    newest = max((f.stat().st_mtime_ns for f in inside), default=0)
    if not (places.exists() and pack.exists() and places.stat().st_mtime_ns >= newest):
        lengths: list[int] = []
        about = episode.info

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                for picture in recorded_images(bag, camera, count, about.streams, about.files):
                    file.write(picture)
                    lengths.append(len(picture))

        replace_file(pack, write)
        replace_file(places, lambda temporary: _save(temporary, np.array(lengths, dtype=np.int64)))
    length = np.load(places)
    if len(length) < count:
        raise ConversionError(f"{bag}: {len(length)} images of {camera}, wanted {count}")
    return ImageTable((pack,), np.zeros(len(length), np.int32), np.cumsum(length) - length, length)


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, values)
