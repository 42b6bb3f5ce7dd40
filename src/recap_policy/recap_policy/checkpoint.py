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

from recap_policy.config import ConfigError, to_dict, value_from_dict, vla_from_dict
from recap_policy.tokens import Tokenizer
from recap_policy.value import ValueModel
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

    kind: str  # "policy" or "value"
    identity: str
    station: Station
    prompts: tuple[str, ...] = ()
    lineage: Mapping[str, Any] = field(default_factory=dict)
    tower: str = ""  # identity of the image tower whose tokens the model takes


def save_policy(
    folder: str | Path,
    model: VLA,
    station: Station,
    prompts: Sequence[str] = (),
    lineage: Mapping[str, Any] | None = None,
) -> str:
    """Write a policy; the folder appears, or replaces an older one, only when it is complete. → identity"""
    return _save(Path(folder), "policy", model, station, prompts, lineage or {}, tower_identity(model))


def save_value(
    folder: str | Path,
    model: ValueModel,
    station: Station,
    tower: str,
    prompts: Sequence[str] = (),
    lineage: Mapping[str, Any] | None = None,
) -> str:
    """Write a value function. tower: `tower_identity` of the policy whose image tokens it was trained on. → identity"""
    return _save(Path(folder), "value", model, station, prompts, lineage or {}, tower)


def load_policy(folder: str | Path, station: Station | None = None) -> tuple[VLA, Checkpoint]:
    """Read a policy, in eval mode, on the CPU. station: the robot it is for, checked when given.

    Raises CheckpointError on anything missing, damaged, misshapen or meant for another robot.
    """
    return _load(Path(folder), "policy", station, lambda config, words: VLA(vla_from_dict(config), words))


def load_value(
    folder: str | Path, station: Station | None = None, tower: str | None = None
) -> tuple[ValueModel, Checkpoint]:
    """Read a value function, as `load_policy`. tower: the policy's, which must be the one it was trained on."""
    model, checkpoint = _load(
        Path(folder), "value", station, lambda config, words: ValueModel(value_from_dict(config), words)
    )
    if tower is not None and checkpoint.tower != tower:
        raise CheckpointError(
            f"{folder}: value function for image tower {checkpoint.tower}, wanted the policy's {tower}"
        )
    return model, checkpoint


def read(folder: str | Path) -> Checkpoint:
    """What is known of a checkpoint, without its weights. Raises CheckpointError."""
    return _describe(_config(Path(folder)), Path(folder))


def tower_identity(model: VLA) -> str:
    """Identity of a policy's image tower: what cached image tokens and value functions depend on."""
    return _hash(safetensors.torch.save(_tensors(model.vision)))


def _save(
    folder: Path, kind: str, model: VLA | ValueModel, station: Station, prompts: Sequence[str],
    lineage: Mapping[str, Any], tower: str,
) -> str:  # fmt: skip
    weights = safetensors.torch.save(_tensors(model))
    config = {
        "format": FORMAT,
        "kind": kind,
        "model": to_dict(model.config),
        "words": list(model.tokenizer.words),
        "station": station.to_dict(),
        "fingerprint": station.fingerprint,
        "prompts": list(prompts),
        "lineage": dict(lineage),
        "tower": tower,
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
    folder: Path, kind: str, station: Station | None, build: Callable[[dict[str, Any], Tokenizer], Model]
) -> tuple[Model, Checkpoint]:
    config = _config(folder)
    checkpoint = _describe(config, folder)
    if checkpoint.kind != kind:
        raise CheckpointError(f"{folder}: checkpoint of a {checkpoint.kind}, wanted a {kind}")
    if station is not None and checkpoint.station.fingerprint != station.fingerprint:
        raise CheckpointError(f"{folder}: checkpoint of another robot: {_difference(checkpoint.station, station)}")
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read: {error.strerror}") from error
    found = _identity(weights, config)
    if found != checkpoint.identity:
        raise CheckpointError(f"{folder}: damaged: contents hash to {found}, wanted {checkpoint.identity}")
    try:
        tensors = safetensors.torch.load(weights)
        model = build(config["model"], Tokenizer(config["words"]))
    except (ConfigError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a {kind} checkpoint: {error}") from error
    _check_shapes(folder, tensors, _tensors(model))
    model.load_state_dict(tensors)
    return model.eval(), checkpoint


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
            station=Station.from_dict(config["station"]),
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
    for one, other in zip(found.cameras, wanted.cameras, strict=False):
        if (one.name, one.width, one.height) != (other.name, other.width, other.height):
            return (
                f"found camera {one.name} of {one.width}x{one.height}, "
                f"wanted {other.name} of {other.width}x{other.height}"
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
