"""Messages between a policy and its robot, as openpi writes them: msgpack, with numpy arrays as mappings.

An array travels as {b"__ndarray__": true, b"data", b"dtype", b"shape"}, a numpy scalar as
{b"__npgeneric__": true, b"data", b"dtype"}. Only numbers and text are taken: objects, which would have to be
unpickled, and structures are refused when written and when read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from recap_station.contract import ContractError

MAX_BYTES = 64 * 2**20  # of a message: four raw images of 1920x1080 are 25 million bytes
_NUMBERS_OR_TEXT = re.compile(r"[<>|=]?([biuf][1248]|U\d{1,5})")


class WireError(ContractError):
    """What came, or should go, is no message of this protocol. One line with found and wanted."""


def pack(message: Mapping[Any, Any]) -> bytes:
    """Raises WireError on a value that does not travel."""
    try:
        packed = msgpack.packb(message, default=_to_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"message cannot be written: {error}") from error
    assert packed is not None  # with bytes and a default of its own it never is
    return packed


def unpack(data: bytes) -> dict[Any, Any]:
    """Arrays in it are read-only views of the message. Raises WireError on anything but a whole mapping."""
    try:
        message = msgpack.unpackb(data, object_hook=_from_plain)
    except WireError:
        raise
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise WireError(f"{len(data)} bytes that are no message: {error or type(error).__name__}") from error
    if not isinstance(message, dict):
        raise WireError(f"message is a {type(message).__name__}, wanted a mapping")
    return message


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        kind = value.dtype.str
        _check(kind)
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": kind, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": kind}
    raise TypeError(f"{type(value).__name__} does not travel")


def _from_plain(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        kind, data, shape = _check(value.get(b"dtype")), value.get(b"data"), value.get(b"shape")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise WireError(f"array of shape {shape!r}, wanted a list of lengths")
        if not isinstance(data, bytes):
            raise WireError(f"array's data is a {type(data).__name__}, wanted bytes")
        wanted = math.prod(shape) * kind.itemsize
        if len(data) != wanted:
            raise WireError(f"array {kind} of shape {tuple(shape)} in {len(data)} bytes, wanted {wanted}")
        return np.frombuffer(data, kind).reshape(shape) if wanted else np.zeros(shape, kind)
    if b"__npgeneric__" in value:
        return _check(value.get(b"dtype")).type(value.get(b"data"))
    return value


def _check(kind: Any) -> np.dtype:
    if not isinstance(kind, str) or not _NUMBERS_OR_TEXT.fullmatch(kind):
        raise WireError(f"array of type {kind!r}, wanted numbers or text")
    try:
        return np.dtype(kind)
    except TypeError as error:
        raise WireError(f"array of type {kind!r}, wanted numbers or text") from error
