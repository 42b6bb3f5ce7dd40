"""Weights of a checkpoint into a model, piece by piece: the peak of memory is the model.

safetensors' own reader maps the file, whose pages then count beside the model's; here a file is read once,
into memory that is allocated once, and hashed on the way.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recap_policy.description import CheckpointError

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

_PIECE_BYTES = 32 * 2**20
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def fill(model: nn.Module, path: Path) -> Digest:
    """Read the weights into the model, in the order and the types of the file. → hash of the whole file

    Only what is blank, or stored in another type, gets memory anew; nothing is read before all shapes fit.
    Raises CheckpointError on a file that cannot be read, is cut short, or holds other tensors.
    """
    digest, wanted = hashlib.sha256(), model.state_dict()
    try:
        with path.open("rb") as file:
            entries = _entries(path, file, digest)
            _check_shapes(path.parent, {name: shape for name, (_, shape) in entries.items()}, wanted)
            anew = {
                name: torch.empty(shape, dtype=dtype)
                for name, (dtype, shape) in entries.items()
                if wanted[name].is_meta or wanted[name].dtype != dtype
            }
            model.load_state_dict(anew, strict=False, assign=True)
            filled = model.state_dict()
            for name in entries:
                _read_into(filled[name], file, digest)
            digest.update(file.read())  # nothing, unless something was added
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return digest


def _entries(
    path: Path, file: io.BufferedReader, digest: Digest
) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Name → type and shape of the tensors in a safetensors file, as they follow each other.

    The file is left where the first begins. Raises CheckpointError where it is cut short or no such file.
    """
    size, start = path.stat().st_size, file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8:
        raise CheckpointError(f"{path}: damaged: header of {length} bytes in a file of {size}")
    text = file.read(length)
    digest.update(start + text)
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        found, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = _TYPES[entry["dtype"]], torch.Size(entry["shape"])
            found[name] = dtype, shape
            begin, stop = entry["data_offsets"]
            if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} lies at {begin} .. {stop}")
            end = stop
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: no header of safetensors: {error}") from error
    if end != size - 8 - length:
        raise CheckpointError(f"{path}: damaged: {size - 8 - length} bytes of tensors, wanted {end}")
    return found


def _read_into(tensor: Tensor, file: io.BufferedReader, digest: Digest) -> None:
    view: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(view), _PIECE_BYTES):
        piece = view[start : start + _PIECE_BYTES]
        if file.readinto(piece) != len(piece):
            raise OSError(errno.EIO, "ends too early")
        digest.update(piece)


def _check_shapes(folder: Path, found: Mapping[str, torch.Size], wanted: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        if name not in found:
            raise CheckpointError(f"{folder}: tensor {name} is missing")
        if found[name] != tensor.shape:
            raise CheckpointError(
                f"{folder}: tensor {name} is {tuple(found[name])}, wanted {tuple(tensor.shape)}"
            )
    if extra := set(found) - set(wanted):
        raise CheckpointError(f"{folder}: tensor {min(extra)} is not the model's")


def digest(path: Path) -> Digest:
    """Raises CheckpointError where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def short(digest: Digest) -> str:
    return digest.hexdigest()[:12]
