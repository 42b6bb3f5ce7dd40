"""Fields of often recorded messages, read straight from their CDR bytes without making message objects.

Offsets follow the OMG's CDR, version 1, in either byte order, as ROS 2's middlewares write it: a number
stands at a multiple of its size, counted from the fifth byte. Everything raises CdrError on bytes that are
not such a message, never anything else.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from recap_station.contract import ContractError

_STAMPED = struct.Struct("<iII")  # sec, nanosec, length of frame_id


class CdrError(ContractError):
    """Bytes that are not the message they are said to be. One readable line."""


class Cursor:
    """Reads fields one after another. Sequences of numbers come as raw bytes with their count."""

    def __init__(self, data: memoryview | bytes):
        self.data = memoryview(data)
        if len(self.data) < 4 or self.data[0] != 0 or self.data[1] > 1:
            raise CdrError(f"{len(self.data)} bytes that are not plain CDR")
        self.order = "<" if self.data[1] else ">"
        self.at = 4

    def number(self, code: str, size: int) -> int | float:
        start = self.at + (4 - self.at) % size
        try:
            (value,) = struct.unpack_from(self.order + code, self.data, start)
        except struct.error:
            raise self._short() from None
        self.at = start + size
        return value

    def u8(self) -> int:
        return int(self.number("B", 1))

    def u32(self) -> int:
        return int(self.number("I", 4))

    def time_ns(self) -> int:
        """builtin_interfaces Time or Duration."""
        return int(self.number("i", 4)) * 1_000_000_000 + self.u32()

    def text(self) -> str:
        length = self.u32()
        end = self.at + length
        if end > len(self.data):
            raise self._short()
        raw = bytes(self.data[self.at : max(end - 1, self.at)])
        self.at = end
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise CdrError(f"text that is not UTF-8 before byte {end}") from None

    def texts(self) -> tuple[str, ...]:
        count = self.u32()
        if count > len(self.data) // 4:
            raise self._short()
        return tuple(self.text() for _ in range(count))

    def header(self) -> tuple[int, str]:
        """(stamp in ns, frame_id) of a std_msgs/Header."""
        return self.time_ns(), self.text()

    def sequence(self, size: int) -> tuple[int, int]:
        """(offset, count) of a sequence of numbers of `size` bytes, which is passed over."""
        count = self.u32()
        start = self.at + (4 - self.at) % size if count else self.at
        if start + count * size > len(self.data):
            raise self._short()
        self.at = start + count * size
        return start, count

    def floats(self) -> bytes:
        """A sequence of float64 in this machine's order."""
        start, count = self.sequence(8)
        return self.reals(start, count)

    def reals(self, start: int, count: int) -> bytes:
        raw = bytes(self.data[start : start + 8 * count])
        return raw if self.order == "<" else struct.pack(f"<{count}d", *struct.unpack(f">{count}d", raw))

    def _short(self) -> CdrError:
        return CdrError(f"a message of {len(self.data)} bytes ends within a field at byte {self.at}")


class Joints(NamedTuple):
    """Names and numbers of one message; `values` are float64, one a name. No names: in an order agreed on."""

    stamp_ns: int  # 0 where the message has no header
    label: str  # header.frame_id
    names: tuple[str, ...]
    values: bytes


class JointStates:
    """Reads sensor_msgs/JointState. All but the stamp and the numbers is the same in nearly every message:
    it is compared with the last of that length, and parsed only where it differs."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[bytes, int, str, tuple[str, ...]]] = {}

    def read(self, data: memoryview) -> Joints:
        """Raises CdrError."""
        known = self._seen.get(len(data))
        if known is not None:
            prefix, offset, label, names = known
            if bytes(data[12:offset]) == prefix and data[0] == 0 and data[1] == 1:
                sec, nanosec, _ = _STAMPED.unpack_from(data, 4)
                values = bytes(data[offset : offset + 8 * len(names)])
                return Joints(sec * 1_000_000_000 + nanosec, label, names, values)
        cursor = Cursor(data)
        stamp, label = cursor.header()
        names = cursor.texts()
        offset, count = cursor.sequence(8)
        if count != len(names):
            raise CdrError(f"{len(names)} joint names with {count} positions")
        if cursor.order == "<" and offset > 12:
            self._seen[len(data)] = (bytes(data[12:offset]), offset, label, names)
        return Joints(stamp, label, names, cursor.reals(offset, count))


def float_array(data: memoryview) -> Joints:
    """std_msgs/Float64MultiArray: numbers without names or header."""
    cursor = Cursor(data)
    for _ in range(cursor.u32()):  # layout.dim
        cursor.text()
        cursor.u32()
        cursor.u32()
    cursor.u32()  # layout.data_offset
    return Joints(0, "", (), cursor.floats())


def joint_trajectory(data: memoryview) -> tuple[int, list[Joints]]:
    """trajectory_msgs/JointTrajectory → (header's stamp in ns, points). A point's stamp_ns counts from the
    trajectory's begin: from then on it is the command, when the one before it is to have been reached."""
    cursor = Cursor(data)
    stamp, label = cursor.header()
    names = cursor.texts()
    points: list[Joints] = []
    since = 0
    count = cursor.u32()
    if count > len(data) // 28:
        raise CdrError(f"{count} points in a trajectory of {len(data)} bytes")
    for _ in range(count):
        values = cursor.floats()
        for _ in range(3):  # velocities, accelerations, effort
            cursor.sequence(8)
        if len(values) != 8 * len(names):
            raise CdrError(f"{len(names)} joint names with {len(values) // 8} positions")
        points.append(Joints(since, label, names, values))
        since = cursor.time_ns()
    return stamp, points


class Picture(NamedTuple):
    """An image within its message: `offset` and `size` of its bytes. Raw ones have height, width, step."""

    stamp_ns: int
    encoding: str  # "rgb8", "bgr8", "mono8", ...; of a compressed one its format, such as "jpeg"
    offset: int
    size: int
    height: int = -1
    width: int = -1
    step: int = 0


def compressed_image(data: memoryview) -> Picture:
    """sensor_msgs/CompressedImage."""
    cursor = Cursor(data)
    stamp, _ = cursor.header()
    encoding = cursor.text()
    offset, size = cursor.sequence(1)
    return Picture(stamp, encoding, offset, size)


def raw_image(data: memoryview) -> Picture:
    """sensor_msgs/Image."""
    cursor = Cursor(data)
    stamp, _ = cursor.header()
    height, width = cursor.u32(), cursor.u32()
    encoding = cursor.text()
    cursor.u8()  # is_bigendian
    step = cursor.u32()
    offset, size = cursor.sequence(1)
    return Picture(stamp, encoding, offset, size, height, width, step)


class EpisodeEvent(NamedTuple):
    """recap_interfaces/Episode, as far as attempts are cut by it."""

    stamp_ns: int
    id: str
    state: int
    outcome: int
    task: str
    prompt: str
    checkpoint: str
    seed: int
    reason: str
    stage: str = ""  # as marked by a person; older recordings have none


def episode_event(data: memoryview) -> EpisodeEvent:
    cursor = Cursor(data)
    stamp, _ = cursor.header()
    name = cursor.text()
    state, outcome = cursor.u8(), cursor.u8()
    task, prompt, checkpoint = cursor.text(), cursor.text(), cursor.text()
    seed = int(cursor.number("q", 8))
    reason = cursor.text()
    cursor.number("d", 8), cursor.number("d", 8)  # elapsed_s, time_limit_s
    stage = cursor.text() if cursor.at < len(data) else ""
    return EpisodeEvent(stamp, name, state, outcome, task, prompt, checkpoint, seed, reason, stage)


def control_mode(data: memoryview) -> tuple[int, int, str]:
    """recap_interfaces/ControlMode → (stamp in ns, mode, source)."""
    cursor = Cursor(data)
    stamp, _ = cursor.header()
    return stamp, cursor.u8(), cursor.text()


def stage(data: memoryview) -> tuple[int, str]:
    """recap_interfaces/SimTruth → (stamp in ns, stage)."""
    cursor = Cursor(data)
    stamp, _ = cursor.header()
    return stamp, cursor.text()
