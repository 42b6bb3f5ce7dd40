"""Messages to CDR bytes and back without a ROS installation, by the `rosbags` typestore of ROS 2 Jazzy.

The project's own interfaces are read from their .msg files: installed shares first, then this checkout.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from recap_station.contract import ContractError
from recap_station.topics import IMAGE_TYPE, JOINT_STATE_TYPE

_EMPTY_TEXT = bytes((1, 0, 0, 0, 0, 0, 0, 0))  # its length with the closing zero, that, and padding
_ZERO: dict[str, Any] = {"bool": False, "string": "", "float32": 0.0, "float64": 0.0}


@cache
def typestore() -> Typestore:
    """The typestore of Jazzy with recap_interfaces registered. Takes 0.2 s the first time."""
    store = get_typestore(Stores.ROS2_JAZZY)
    folder = interfaces_folder()
    for file in sorted(folder.glob("*.msg")):
        store.register(get_types_from_msg(file.read_text(), f"recap_interfaces/msg/{file.stem}"))
    return store


def interfaces_folder() -> Path:
    """Folder of recap_interfaces' .msg files. Raises ContractError where there is none."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [prefix / "share" / "recap_interfaces" / "msg" for prefix in prefixes]
    folders += [p / "ros2_ws" / "src" / "recap_interfaces" / "msg" for p in Path(__file__).resolve().parents]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ContractError("no recap_interfaces/msg found on AMENT_PREFIX_PATH or above this checkout")


@cache
def definition(kind: str) -> str:
    """Text of a message type with all it contains, as bags carry it."""
    return typestore().generate_msgdef(_known(kind), ros_version=2)[0]


@cache
def type_hash(kind: str) -> str:
    """RIHS01 hash of a message type."""
    return typestore().hash_rihs01(_known(kind))


def serialize(kind: str, *, stamp_ns: int | None = None, frame_id: str = "", **fields: Any) -> bytes:
    """CDR bytes of a message. Fields left out are zero or empty; sequences and arrays are converted.

    `stamp_ns` and `frame_id` fill a `header`. Raises ContractError on an unknown field or type.
    """
    if stamp_ns is not None:
        fields["header"] = header(stamp_ns, frame_id)
    return bytes(typestore().serialize_cdr(_build(_known(kind), fields), kind))


def deserialize(cdr: bytes, kind: str) -> Any:
    """Message object from CDR bytes; sequences of numbers are numpy arrays.

    One of the project's own messages from before texts were added at its end has those empty.
    """
    try:
        return typestore().deserialize_cdr(cdr, _known(kind))
    except SerdeError:
        if not kind.startswith("recap_interfaces/"):
            raise
        old = bytes(cdr) + bytes(-len(cdr) % 4)
        for added in range(1, 5):
            with suppress(SerdeError):
                return typestore().deserialize_cdr(old + _EMPTY_TEXT * added, kind)
        raise


def header(stamp_ns: int, frame_id: str = "") -> Any:
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](
        sec=int(stamp_ns // 1_000_000_000), nanosec=int(stamp_ns % 1_000_000_000)
    )
    return types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def stamp_ns(message: Any) -> int:
    """Header stamp of a deserialised message in ns."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def joint_state(stamp_ns: int, names: Sequence[str], positions: Sequence[float], frame_id: str = "") -> bytes:
    """CDR of a sensor_msgs/JointState with positions only (rad; grippers 0..1)."""
    return serialize(
        JOINT_STATE_TYPE, stamp_ns=stamp_ns, frame_id=frame_id, name=list(names), position=positions
    )


def compressed_image(stamp_ns: int, jpeg: bytes, frame_id: str = "") -> bytes:
    """CDR of a sensor_msgs/CompressedImage holding a JPEG."""
    data = np.frombuffer(jpeg, dtype=np.uint8)
    return serialize(IMAGE_TYPE, stamp_ns=stamp_ns, frame_id=frame_id, format="jpeg", data=data)


def _known(kind: str) -> str:
    if kind not in typestore().fielddefs:
        raise ContractError(f"unknown message type {kind!r}")
    return kind


@cache
def _fields(kind: str) -> dict[str, tuple[Nodetype, Any]]:
    return dict(typestore().fielddefs[kind][1])


def _build(kind: str, fields: dict[str, Any]) -> Any:
    definitions = _fields(kind)
    for name in fields:
        if name not in definitions:
            raise ContractError(f"{kind} has no field {name!r} (it has {', '.join(definitions)})")
    values = {
        name: _convert(node, detail, fields[name]) if name in fields else _empty(node, detail)
        for name, (node, detail) in definitions.items()
    }
    return typestore().types[kind](**values)


def _convert(node: Nodetype, detail: Any, value: Any) -> Any:
    if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        element = detail[0]
        if element[0] == Nodetype.BASE and element[1][0] != "string":
            return np.ascontiguousarray(value, dtype=element[1][0]).reshape(-1)
        return list(value)
    if node == Nodetype.BASE and detail[0] != "string" and isinstance(value, np.generic):
        return value.item()
    return value


def _empty(node: Nodetype, detail: Any) -> Any:
    if node == Nodetype.BASE:
        return _ZERO.get(detail[0], 0)
    if node == Nodetype.NAME:
        return _build(detail, {})
    element, count = detail
    count = count if node == Nodetype.ARRAY else 0
    if element[0] == Nodetype.BASE and element[1][0] != "string":
        return np.zeros(count, dtype=element[1][0])
    return [_empty(*element) for _ in range(count)]
