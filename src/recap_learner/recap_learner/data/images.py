"""Recorded bytes → small pictures, and the memory that keeps them."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import cv2
import numpy as np

from recap_learner.data.bag_images import undecodable
from recap_learner.data.episodes import ConversionError

# Scale → flag. OpenCV names only those that give BGR.
_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
}


def decode(data: bytes | memoryview, size: tuple[int, int], out: np.ndarray) -> None:
    """JPEG or PNG → `out` (height, width, 3) uint8 RGB, averaged over areas. Raises ConversionError.

    A JPEG is decoded at a scale at which it is still no smaller than `size`, which a JPEG decoder does in the
    frequency domain: about as far from decoding it whole as two common filters are from each other, one or
    two grey levels in the mean (tests/learner/test_loader.py).
    """
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, _flag(data, size)) if len(buffer) else None
    except cv2.error as error:
        raise ConversionError(undecodable(data, error)) from error
    if image is None:
        raise ConversionError(f"{len(data)} bytes that are not a JPEG or PNG image")
    finer = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    if image.shape[:2] == size:
        out[...] = image
    else:
        cv2.resize(image, size[::-1], dst=out, interpolation=cv2.INTER_AREA if finer else cv2.INTER_LINEAR)


def _flag(data: bytes | memoryview, size: tuple[int, int]) -> int:
    height, width = jpeg_size(data)
    for factor, flag in _REDUCED.items():
        if height // factor >= size[0] and width // factor >= size[1]:
            return flag
    return cv2.IMREAD_COLOR_RGB


def jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """(height, width) from a JPEG's frame header (ITU-T T.81, B.2.2); (0, 0) if it is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return 0, 0


class ImageCache:
    """Decoded images, shared by all workers. Which images may be in it is drawn once: where every image is
    wanted once an epoch, in a new order each time, nothing that evicts finds more.

    An image has one slot and a slot one image, so that writers cannot disagree; a checksum tells a reader
    that another has not finished.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self._slot_of = np.load(folder / "slot.npy", mmap_mode="r")
        count = int(self._slot_of.max(initial=-1)) + 1
        shape = (count, *size, 3)
        if count:
            self._pixels = np.memmap(folder / "pixels", np.uint8, "r+", shape=shape)
            self._sums = np.memmap(folder / "sums", np.uint32, "r+", shape=(count,))

    @staticmethod
    def make(folder: Path, slots: int, images: int, size: tuple[int, int], seed: int) -> None:
        slot_of = np.full(images, -1, np.int64)
        slot_of[np.random.default_rng(seed).permutation(images)[:slots]] = np.arange(slots)
        np.save(folder / "slot.npy", slot_of)
        for name, room in (("pixels", slots * size[0] * size[1] * 3), ("sums", slots * 4)):
            with open(folder / name, "wb") as file:
                if room:  # set aside now: where there is no room, an error here and not a signal later
                    os.posix_fallocate(file.fileno(), 0, room)

    def take(self, image: int, out: np.ndarray) -> bool:
        slot = self._slot_of[image]
        if slot < 0 or not (wanted := self._sums[slot]):
            return False
        out[...] = self._pixels[slot]
        return bool(_checksum(out) == wanted)

    def put(self, image: int, pixels: np.ndarray) -> None:
        slot = self._slot_of[image]
        if slot >= 0:
            self._pixels[slot] = pixels
            self._sums[slot] = _checksum(pixels)


def _checksum(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.data) or 1  # 0 marks an empty slot
