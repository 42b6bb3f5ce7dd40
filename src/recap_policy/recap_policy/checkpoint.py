"""Checkpoints: a folder of `weights.safetensors` and `config.json`; nothing in it is ever unpickled.

The JSON holds kind, model configuration, vocabulary, the station (whose fingerprint must agree with the
robot), the prompts seen in training and where the weights came from. Statistics of states and actions are
tensors among the weights. The identity is a hash of weights and JSON, and is verified on loading.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from recap_policy.tokens import Tokenizer
from recap_policy.value import ValueModel
from recap_policy.vision import VisionTower
from recap_policy.vla import VLA
from recap_station.contract import Station

FORMAT = 1
WEIGHTS, CONFIG = "weights.safetensors", "config.json"
Model = TypeVar("Model", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or for something else. One line with what was found and wanted."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint beside its weights."""

    kind: str  # "policy", "value" or "vision"
    identity: str
    tower: str  # identity of the image tower whose tokens the model takes or gives
    station: Station | None  # None for a tower: it belongs to no robot
    prompts: tuple[str, ...] = ()
    lineage: Mapping[str, Any] = field(default_factory=dict)


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


def read(folder: str | Path) -> Checkpoint:
    """What is known of a checkpoint, without its weights. Raises CheckpointError."""
    return _describe(_config(Path(folder)), Path(folder))


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
    config = _config(folder)
    checkpoint = _describe(config, folder)
    if checkpoint.kind != kind:
        raise CheckpointError(f"{folder}: checkpoint of a {checkpoint.kind}, wanted a {kind}")
    if station and checkpoint.station and checkpoint.station.fingerprint != station.fingerprint:
        raise CheckpointError(
            f"{folder}: checkpoint of another robot: {_difference(checkpoint.station, station)}"
        )
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


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint there: wanted {CONFIG} and {WEIGHTS}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path}: format {found!r}, wanted {FORMAT}")
    return config


def _describe(config: dict[str, Any], folder: Path) -> Checkpoint:
    try:
        return Checkpoint(
            kind=config["kind"],
            identity=config["identity"],
            station=Station.from_dict(config["station"]) if config["station"] else None,
            prompts=tuple(config["prompts"]),
            lineage=config["lineage"],
            tower=config["tower"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: entry missing or wrong: {error}") from error


def _difference(found: Station, wanted: Station) -> str:
    """The first thing in which two stations differ, in words."""
    for one, other in zip(found.joint_names, wanted.joint_names, strict=False):
        if one != other:
            return f"found joint {one!r}, wanted {other!r}"
    if found.dof != wanted.dof:
        return f"found {found.dof} joints, wanted {wanted.dof}"
    for has, wants in zip(found.cameras, wanted.cameras, strict=False):
        if (has.name, has.width, has.height) != (wants.name, wants.width, wants.height):
            return (
                f"found camera {has.name} of {has.width}x{has.height}, "
                f"wanted {wants.name} of {wants.width}x{wants.height}"
            )
    return f"found {len(found.cameras)} cameras, wanted {len(wanted.cameras)}"


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
