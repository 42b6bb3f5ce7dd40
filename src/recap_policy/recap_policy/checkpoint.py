"""Checkpoints: a folder of `weights.safetensors` and `config.json`; nothing in it is ever unpickled.

The JSON (see `description`) also holds the model's configuration and vocabulary. Statistics of states and
actions are tensors among the weights. The identity is a hash of weights and JSON, verified on loading.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor, nn

from recap_policy.config import (
    ConfigError,
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
from recap_policy.tokens import Tokenizer
from recap_policy.value import ValueModel
from recap_policy.vision import VisionTower
from recap_policy.vla import VLA
from recap_station.contract import Station

Model = TypeVar("Model", bound=nn.Module)
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
    """Write a policy; the folder appears, or replaces an older one, only when it is complete. → identity"""
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
    return _load(
        Path(folder), "policy", station, lambda c: VLA(vla_from_dict(c["model"]), Tokenizer(c["words"]))
    )


def load_value(folder: str | Path, station: Station | None = None, tower: str | None = None) -> ValueModel:
    """Read a value function, as `load_policy`. tower: the policy's, which must be the one it learnt on."""
    path = Path(folder)
    found = read(path).tower
    if tower is not None and found != tower:
        raise CheckpointError(
            f"{folder}: value function for image tower {found}, wanted the policy's {tower}"
        )
    return _load(
        path, "value", station, lambda c: ValueModel(value_from_dict(c["model"]), Tokenizer(c["words"]))
    )


def load_vision(folder: str | Path) -> VisionTower:
    """Read an image tower. Raises CheckpointError."""
    return _load(Path(folder), "vision", None, lambda c: VisionTower(vla_from_dict(c["model"]).vision))


def vision_identity(folder: str | Path) -> str:
    """Identity of the image tower in a checkpoint of any kind: the key of cached image tokens."""
    return read(folder).tower


def tower_identity(tower: VisionTower) -> str:
    return _hash(safetensors.torch.save(_tensors(tower)))


def _shape(model: VLA | ValueModel) -> dict[str, Any]:
    return {"model": to_dict(model.config), "words": list(model.tokenizer.words)}


def _save(
    folder: Path, kind: str, model: nn.Module, shape: dict[str, Any], tower: str, station: Station | None,
    prompts: Sequence[str], lineage: Mapping[str, Any],
) -> str:  # fmt: skip
    weights = safetensors.torch.save(_tensors(model))
    config = {
        "format": FORMAT,
        "kind": kind,
        **shape,
        "tower": tower,
        "station": station.to_dict() if station else None,
        "fingerprint": station.fingerprint if station else None,
        "prompts": list(prompts),
        "lineage": dict(lineage),
    }
    config = json.loads(json.dumps(config))
    config["identity"] = _identity(weights, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(fresh / WEIGHTS, weights)
        _write(fresh / CONFIG, json.dumps(config, indent=1).encode())
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
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read: {error.strerror}") from error
    found = _identity(weights, config)
    if found != checkpoint.identity:
        raise CheckpointError(f"{folder}: damaged: contents hash to {found}, wanted {checkpoint.identity}")
    try:
        tensors = safetensors.torch.load(weights)
        model = build(config)
    except (ConfigError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a {kind} checkpoint: {error}") from error
    _check_shapes(folder, tensors, _tensors(model))
    model.load_state_dict(tensors)
    return model.eval()


def _check_shapes(folder: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        if name not in found:
            raise CheckpointError(f"{folder}: tensor {name} is missing")
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: tensor {name} is {tuple(found[name].shape)}, wanted {tuple(tensor.shape)}"
            )
    if extra := set(found) - set(wanted):
        raise CheckpointError(f"{folder}: tensor {min(extra)} is not the model's")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _identity(weights: bytes, config: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in config.items() if key != "identity"}
    return _hash(weights, json.dumps(rest, sort_keys=True).encode())


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
