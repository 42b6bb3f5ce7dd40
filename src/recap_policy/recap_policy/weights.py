"""Weights of a checkpoint to a file and back, piece by piece: the peak of memory is the model.

safetensors' own reader maps the file, whose pages then count beside the model's; here a file is read once,
into memory that is allocated once, in the type that is wanted, and hashed on the way. Files are written from
the model's own memory (from a GPU tensor by tensor), byte for byte as safetensors writes them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recap_policy.description import CheckpointError

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

_PIECE_BYTES = 8 * 2**20
_TYPES = {  # in the order in which safetensors lays them out: the widest first, so that all are aligned
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_TYPES.values())}


def write(tensors: Mapping[str, Tensor], path: Path) -> Digest:
    """Write a safetensors file. → hash of it"""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _file(tensors):
            file.write(piece)
            digest.update(piece)
    return digest


def identify(tensors: Mapping[str, Tensor]) -> Digest:
    """The hash of the file that `write` would write: of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for piece in _file(tensors):
        digest.update(piece)
    return digest


def _file(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, tensor by tensor, none of them copied where it lies in one piece on the CPU."""
    ordered = sorted(tensors.items(), key=lambda item: (_RANKS[item[1].dtype], item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in ordered:
        yield _bytes(tensor.detach().cpu().contiguous().view(-1))


def _bytes(flat: Tensor) -> memoryview:
    """(n,) in one piece on the CPU → its memory."""
    return flat.view(torch.uint8).numpy().data


def fill(model: nn.Module, path: Path, dtype: torch.dtype | None = None) -> Digest:
    """Read the weights into the model, in the order of the file. → hash of the whole file

    dtype: of the parameters, converted on the way; None: the file's. Buffers, which are statistics, always
    have the file's. Only what is blank, or of another type, gets memory anew; nothing is read before all
    shapes fit. Raises CheckpointError on a file that cannot be read, is cut short, or holds other tensors.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            entries = _entries(path, file, digest)
            _allocate(model, path.parent, entries, dtype)
            filled, between = model.state_dict(), torch.empty(_PIECE_BYTES, dtype=torch.uint8)
            for name, (stored, _) in entries.items():
                _read_into(filled[name], between.view(stored), file, digest)
            digest.update(file.read())  # nothing, unless something was added
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return digest


def _allocate(
    model: nn.Module, folder: Path, entries: Mapping[str, tuple[torch.dtype, torch.Size]],
    dtype: torch.dtype | None,
) -> None:  # fmt: skip
    """Memory for what has none, or of another type. What it replaces is freed before anything is read."""
    wanted, parameters = model.state_dict(), dict(model.named_parameters())
    _check_shapes(folder, {name: shape for name, (_, shape) in entries.items()}, wanted)
    anew = {}
    for name, (stored, shape) in entries.items():
        converted = dtype is not None and name in parameters and stored.is_floating_point
        kind = dtype if converted else stored
        if wanted[name].is_meta or wanted[name].dtype != kind:
            anew[name] = torch.empty(shape, dtype=kind)
    model.load_state_dict(anew, strict=False, assign=True)


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


def _read_into(tensor: Tensor, between: Tensor, file: io.BufferedReader, digest: Digest) -> None:
    """between: (n,) of the type that is stored, for what is converted."""
    flat = tensor.detach().view(-1)
    for start in range(0, len(flat), len(between)):
        target = flat[start : start + len(between)]
        piece = target if target.dtype == between.dtype else between[: len(target)]
        view = _bytes(piece)
        if file.readinto(view) != len(view):
            raise OSError(errno.EIO, "ends too early")
        digest.update(view)
        if piece is not target:
            target.copy_(piece)


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
