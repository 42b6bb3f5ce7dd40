"""Checkpoints: a folder of `weights.safetensors` and `config.json`; nothing in it is ever unpickled.

Policies with Gemma's vocabulary have its `tokenizer.json` beside them, those with FAST its `fast.json`. The
JSON (see `description`) also holds the model's configuration, `tiny`'s words and the hash of each of these
files. Statistics of states and actions are tensors among the weights. The identity is a hash of weights and
JSON, verified on loading. Weights are written and read in pieces: the peak of memory is the model.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from recap_policy.config import (
    ConfigError,
    ValueConfig,
    VLAConfig,
    to_dict,
    value_from_dict,
    vla_from_dict,
)
from recap_policy.description import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    check,
    read,
    read_config,
)
from recap_policy.fast import FILE as FAST
from recap_policy.fast import Fast
from recap_policy.text import FILE as TOKENIZER
from recap_policy.text import GemmaTokenizer, TextTokenizer, TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vision import VisionTower
from recap_policy.vla import VLA
from recap_station.contract import Station

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

Model = TypeVar("Model", bound=nn.Module)
_PIECE_BYTES = 32 * 2**20
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
__all__ = [
    "Checkpoint", "CheckpointError", "load_policy", "load_value", "load_vision", "read",
    "save_policy", "save_value", "save_vision", "tower_identity", "vision_identity",
]  # fmt: skip


def save_policy(
    model: VLA,
    folder: str | Path,
    lineage: Mapping[str, Any],
    *,
    station: Station,
    prompts: Sequence[str] = (),
) -> str:
    """Write a policy; the folder appears, or replaces an older one, only when it is complete. → identity

    Raises CheckpointError on a model without a tokenizer, which nobody could use.
    """
    tower = tower_identity(model.vision)
    return _save(Path(folder), "policy", model, _shape(model), tower, station, prompts, lineage)


def save_value(
    model: ValueModel,
    folder: str | Path,
    lineage: Mapping[str, Any],
    *,
    station: Station,
    tower: str,
    prompts: Sequence[str] = (),
) -> str:
    """Write a value function. tower: identity of the tower on whose tokens it was trained. → identity"""
    return _save(Path(folder), "value", model, _shape(model), tower, station, prompts, lineage)


def save_vision(tower: VisionTower, config: VLAConfig, folder: str | Path, lineage: Mapping[str, Any]) -> str:
    """Write an image tower alone, before there is a policy. config: of the policies it is for. → identity"""
    return _save(
        Path(folder), "vision", tower, {"model": to_dict(config)}, tower_identity(tower), None, (), lineage
    )


def load_policy(folder: str | Path, station: Station | None = None) -> VLA:
    """Read a policy, in eval mode, on the CPU. station: the robot it is for, checked when given.

    Raises CheckpointError on anything missing, damaged, misshapen or meant for another robot.
    """
    path = Path(folder)

    def build(config: dict[str, Any]) -> VLA:
        shape = vla_from_dict(config["model"])
        fast = Fast.load(path) if FAST in config.get("files", {}) else None
        return VLA(shape, _tokenizer(path, config, shape), fast, blank=_is_large(shape))

    return _load(path, "policy", station, build)


def load_value(folder: str | Path, station: Station | None = None, tower: str | None = None) -> ValueModel:
    """Read a value function, as `load_policy`. tower: the policy's, which must be the one it learnt on."""
    path = Path(folder)
    found = read(path).tower
    if tower is not None and found != tower:
        raise CheckpointError(
            f"{folder}: value function for image tower {found}, wanted the policy's {tower}"
        )

    def build(config: dict[str, Any]) -> ValueModel:
        shape = value_from_dict(config["model"])
        return ValueModel(shape, _tokenizer(path, config, shape), blank=_is_large(shape))

    return _load(path, "value", station, build)


def load_vision(folder: str | Path) -> VisionTower:
    """Read an image tower. Raises CheckpointError."""
    return _load(Path(folder), "vision", None, lambda c: VisionTower(vla_from_dict(c["model"]).vision))


def vision_identity(folder: str | Path) -> str:
    """Identity of the image tower in a checkpoint of any kind: the key of cached image tokens."""
    return read(folder).tower


def tower_identity(tower: VisionTower) -> str:
    return _short(hashlib.sha256(safetensors.torch.save(_tensors(tower))))


def _shape(model: VLA | ValueModel) -> dict[str, Any]:
    tokenizer = model.tokenizer
    if isinstance(tokenizer, TinyTokenizer):
        return {"model": to_dict(model.config), "words": list(tokenizer.words)}
    if not isinstance(tokenizer, GemmaTokenizer):
        raise CheckpointError(f"{model.config.name} has no tokenizer, wanted one to save with it")
    return {"model": to_dict(model.config), "action_codes": tokenizer.action_codes, "skip": tokenizer.skip}


def _tokenizer(folder: Path, config: Mapping[str, Any], shape: VLAConfig | ValueConfig) -> TextTokenizer:
    """Inverse of `_shape`."""
    if shape.backbone.vocabulary is None:
        return TinyTokenizer(config["words"], shape.prefix.word_slots, shape.prefix.action_codes)
    return GemmaTokenizer(folder / TOKENIZER, config["action_codes"], config["skip"])


def _is_large(shape: VLAConfig | ValueConfig) -> bool:
    """Whether to build it without memory first. For `tiny` that would cost more than it saves: PyTorch then
    imports some hundred modules, which takes seconds."""
    return shape.backbone.vocabulary is not None


def _save(
    folder: Path, kind: str, model: nn.Module, shape: dict[str, Any], tower: str, station: Station | None,
    prompts: Sequence[str], lineage: Mapping[str, Any],
) -> str:  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        safetensors.torch.save_file(_tensors(model), fresh / WEIGHTS)
        digest = _digest(fresh / WEIGHTS)
        files = {WEIGHTS: _short(digest)}
        tokenizer, fast = getattr(model, "tokenizer", None), getattr(model, "fast", None)
        if isinstance(tokenizer, GemmaTokenizer):
            tokenizer.save(fresh)
            files[TOKENIZER] = _short(_digest(fresh / TOKENIZER))
        if fast is not None:
            fast.save(fresh)
            files[FAST] = _short(_digest(fresh / FAST))
        config = {
            "format": FORMAT,
            "kind": kind,
            **shape,
            "files": files,
            "tower": tower,
            "station": station.to_dict() if station else None,
            "fingerprint": station.fingerprint if station else None,
            "prompts": list(prompts),
            "lineage": dict(lineage),
        }
        config = json.loads(json.dumps(config))
        config["identity"] = _identity(digest, config)
        (fresh / CONFIG).write_bytes(json.dumps(config, indent=1).encode())
        for name in (*files, CONFIG):
            _settle(fresh / name)
        fresh.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            os.replace(folder, old)  # onto an empty folder
            os.replace(fresh, folder)
            shutil.rmtree(old)
        else:
            os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return config["identity"]


def _load(
    folder: Path, kind: str, station: Station | None, build: Callable[[dict[str, Any]], Model]
) -> Model:
    config, checkpoint = read_config(folder), check(folder, kind, station)
    files: Mapping[str, str] = config.get("files", {})
    for name in files.keys() - {WEIGHTS}:
        _compare(folder / name, _short(_digest(folder / name)), files[name])
    try:
        model = build(config)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a {kind} checkpoint: {error}") from error
    digest = _fill(model, folder)
    if WEIGHTS in files:
        _compare(folder / WEIGHTS, _short(digest), files[WEIGHTS])
    found = _identity(digest, config)
    if found != checkpoint.identity:
        raise CheckpointError(f"{folder}: damaged: contents hash to {found}, wanted {checkpoint.identity}")
    return model.eval()


def _fill(model: nn.Module, folder: Path) -> Digest:
    """Read the weights into the model, in the order and the types of the file. → hash of the whole file

    Only what is blank, or stored in another type, gets memory anew; nothing is read before all shapes fit.
    """
    path, digest, wanted = folder / WEIGHTS, hashlib.sha256(), model.state_dict()
    try:
        with path.open("rb") as file:
            entries = _entries(path, file, digest)
            _check_shapes(folder, {name: shape for name, (_, shape) in entries.items()}, wanted)
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


def _compare(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise CheckpointError(f"{path}: damaged: contents hash to {found}, wanted {wanted}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _identity(weights: Digest, config: Mapping[str, Any]) -> str:
    """weights: the hash of their file, which is left as it is."""
    rest = {key: value for key, value in config.items() if key != "identity"}
    digest = weights.copy()
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return _short(digest)


def _digest(path: Path) -> Digest:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _short(digest: Digest) -> str:
    return digest.hexdigest()[:12]


def _settle(path: Path) -> None:
    """Have it on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
