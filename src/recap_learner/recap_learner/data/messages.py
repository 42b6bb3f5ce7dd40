"""What is kept of one message of each type, and which messages cannot be meant.

A reader takes a message's CDR bytes and when it was received, and gives (own stamp in ns, or 0 where it has
none; what is kept of it) of each of its parts. No image is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recap_station import cdr_scan
from recap_station.cdr_scan import JointStates
from recap_station.contract import ContractError
from recap_station.streams import FLOAT_ARRAY_TYPE, RAW_IMAGE_TYPE, TRAJECTORY_TYPE, Stream

PIXELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}  # raw encodings that are read → bytes of a pixel
_DEPTH = ("16UC1", "32FC1")  # how the format of a compressed image of depth begins
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_TAIL = 64  # bytes looked at for an image's end: some cameras pad it

Read = Callable[[memoryview, int], list[tuple[int, Any]]]


class Unusable(ContractError):
    """A message that is read, and cannot be used. One readable line."""


def joint_reader(stream: Stream) -> Read:
    if stream.type == FLOAT_ARRAY_TYPE:
        return lambda data, received_ns: [(0, cdr_scan.float_array(data))]
    if stream.type == TRAJECTORY_TYPE:
        return _trajectory_reader(stream)
    states = JointStates()

    def read(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
        joints = states.read(data)
        return [(joints.stamp_ns, joints)]

    return read


def _trajectory_reader(stream: Stream) -> Read:
    def read(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
        stamp, points = cdr_scan.joint_trajectory(data)
        if not points:
            raise Unusable("a trajectory without points")
        begin = received_ns if stamp == 0 or stream.time == "receive" else stamp
        return [(begin + point.stamp_ns, point) for point in points]

    return read


def known_reader(stream: Stream, kind: str, read: Read) -> Read:
    """`read`, or where the topic is of another type than `kind` a reader that passes all messages over."""

    def pass_over(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
        raise Unusable(f"a {stream.type} (wanted {kind}), which is passed over,")

    return read if stream.type in ("", kind) else pass_over


def image_reader(kind: str) -> Read:
    """Judges messages of an image type, of which the frame_id is kept: raises CdrError or Unusable on one
    that no tick can have."""
    return _read_raw if kind == RAW_IMAGE_TYPE else _read_compressed


def _read_compressed(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
    picture = cdr_scan.compressed_image(data)
    end = picture.offset + picture.size
    start = bytes(data[picture.offset : picture.offset + len(_PNG)])
    tail = bytes(data[max(picture.offset, end - _TAIL) : end])
    if picture.encoding.startswith(_DEPTH):
        raise Unusable(f"an image encoded as {picture.encoding[:5]!r}, which is skipped")
    if not picture.size:
        raise Unusable("an image without bytes")
    if start.startswith(_JPEG):
        whole = _JPEG_END in tail
    elif start == _PNG:
        whole = _PNG_END in tail
    else:
        raise Unusable("an image that is neither JPEG nor PNG")
    if not whole:
        raise Unusable("an image that ends too early")
    return [(picture.stamp_ns, cdr_scan.Cursor(data).header()[1])]


def _read_raw(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
    picture = cdr_scan.raw_image(data)
    if picture.encoding not in PIXELS:
        raise Unusable(f"an image encoded as {picture.encoding[:20]!r}, which is skipped")
    row = picture.width * PIXELS[picture.encoding]
    if not picture.width or not picture.height:
        raise Unusable("an image of no size")
    if picture.step < row or picture.size < picture.step * picture.height:
        raise Unusable("an image that ends too early")
    return [(picture.stamp_ns, cdr_scan.Cursor(data).header()[1])]


def read_mode(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
    stamp, mode, source = cdr_scan.control_mode(data)
    return [(stamp, (mode, source))]


def read_stage(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
    return [cdr_scan.stage(data)]


def read_event(data: memoryview, received_ns: int) -> list[tuple[int, Any]]:
    event = cdr_scan.episode_event(data)
    return [(event.stamp_ns, event)]
