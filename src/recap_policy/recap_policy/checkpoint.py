"""Checkpoints: a folder of `weights.safetensors` and `config.json`; nothing in it is ever unpickled.

Policies with Gemma's vocabulary have its `tokenizer.json` beside them, those with FAST its `fast.json`. The
JSON (see `description`) also holds the model's configuration, `tiny`'s words and the hash of each of these
files. Statistics of states and actions are tensors among the weights. The identity is a hash of weights and
JSON, verified on loading. Weights are written and read in pieces (weights.py): the peak of memory is the
model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from recap_policy import weights
from recap_policy.config import ConfigError, ValueConfig, VLAConfig, to_dict, value_from_dict, vla_from_dict
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
from recap_policy.objects import ObjectTower, make_tower
from recap_policy.text import FILE as TOKENIZER
from recap_policy.text import GemmaTokenizer, TextTokenizer, TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vision import VisionTower
from recap_policy.vla import VLA
from recap_station.contract import Station

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

Model = TypeVar("Model", bound=nn.Module)
Tower = VisionTower | ObjectTower
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


def save_vision(tower: Tower, config: VLAConfig, folder: str | Path, lineage: Mapping[str, Any]) -> str:
    """Write an image tower alone, before there is a policy. config: of the policies it is for. → identity"""
    return _save(
        Path(folder), "vision", tower, {"model": to_dict(config)}, tower_identity(tower), None, (), lineage
    )


def load_policy(folder: str | Path, station: Station | None = None, dtype: torch.dtype | None = None) -> VLA:
    """Read a policy, in eval mode, on the CPU. station: the robot it is for, checked when given. dtype: of
    its parameters, converted as they are read; None: as stored. Statistics keep their type.

    Raises CheckpointError on anything missing, damaged, misshapen or meant for another robot.
    """
    path = Path(folder)

    def build(config: dict[str, Any]) -> VLA:
        shape = vla_from_dict(config["model"])
        fast = Fast.load(path) if FAST in config.get("files", {}) else None
        large = _is_large(shape)
        return VLA(shape, _tokenizer(path, config, shape), fast, blank=large, blank_expert=large)

    return _load(path, "policy", station, build, dtype)


def load_value(
    folder: str | Path,
    station: Station | None = None,
    tower: str | None = None,
    dtype: torch.dtype | None = None,
) -> ValueModel:
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

    return _load(path, "value", station, build, dtype)


def load_vision(folder: str | Path) -> Tower:
    """Read an image tower, or what stands in for one. Raises CheckpointError."""
    return _load(Path(folder), "vision", None, lambda c: make_tower(vla_from_dict(c["model"]).vision))


def vision_identity(folder: str | Path) -> str:
    """Identity of the image tower in a checkpoint of any kind: the key of cached image tokens."""
    return read(folder).tower


def tower_identity(tower: Tower) -> str:
    """Hash of the tower's names, types, shapes and bytes; wherever it lies, no copy of it is made."""
    return weights.short(weights.identify(tower.state_dict()))


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
        digest = weights.write(model.state_dict(), fresh / WEIGHTS)
        files = {WEIGHTS: weights.short(digest)}
        tokenizer, fast = getattr(model, "tokenizer", None), getattr(model, "fast", None)
        if isinstance(tokenizer, GemmaTokenizer):
            tokenizer.save(fresh)
            files[TOKENIZER] = weights.short(weights.digest(fresh / TOKENIZER))
        if fast is not None:
            fast.save(fresh)
            files[FAST] = weights.short(weights.digest(fresh / FAST))
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
    folder: Path, kind: str, station: Station | None, build: Callable[[dict[str, Any]], Model],
    dtype: torch.dtype | None = None,
) -> Model:  # fmt: skip
    config, checkpoint = read_config(folder), check(folder, kind, station)
    files: Mapping[str, str] = config.get("files", {})
    for name in files.keys() - {WEIGHTS}:
        _compare(folder / name, weights.short(weights.digest(folder / name)), files[name])
    try:
        model = build(config)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a {kind} checkpoint: {error}") from error
    digest = weights.fill(model, folder / WEIGHTS, dtype)
    if WEIGHTS in files:
        _compare(folder / WEIGHTS, weights.short(digest), files[WEIGHTS])
    found = _identity(digest, config)
    if found != checkpoint.identity:
        raise CheckpointError(f"{folder}: damaged: contents hash to {found}, wanted {checkpoint.identity}")
    return model.eval()


def _compare(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise CheckpointError(f"{path}: damaged: contents hash to {found}, wanted {wanted}")


def _identity(read: Digest, config: Mapping[str, Any]) -> str:
    """read: the hash of the weights' file, which is left as it is."""
    rest = {key: value for key, value in config.items() if key != "identity"}
    digest = read.copy()
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return weights.short(digest)


def _settle(path: Path) -> None:
    """Have it on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
