"""What a checkpoint says of itself in its `config.json`: read without torch and without its weights.

Kind, identity, the station (whose fingerprint must agree with the robot), the prompts seen in training and
where the weights came from. `checkpoint` writes it, and reads the weights that go with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recap_station.contract import ContractError, Station

FORMAT = 1
WEIGHTS, CONFIG = "weights.safetensors", "config.json"


class CheckpointError(ContractError):
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


def read(folder: str | Path) -> Checkpoint:
    """What is known of a checkpoint, without its weights. Raises CheckpointError."""
    config, path = read_config(folder), Path(folder) / CONFIG
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
        raise CheckpointError(f"{path}: entry missing or wrong: {error}") from error


def observation_of(folder: str | Path) -> str:
    """What the policy in a folder sees beside the joints: "images", or "state", places of things. Raises
    CheckpointError."""
    return "state" if "features" in (read_config(folder)["model"].get("vision") or {}) else "images"


def check(folder: str | Path, kind: str, station: Station | None = None) -> Checkpoint:
    """As `read`, and refuses with CheckpointError what is not a `kind` ("policy", "value" or "vision"), is
    made for another robot than `station`, or has no weights. The weights themselves are not looked at."""
    found = read(folder)
    if found.kind != kind:
        raise CheckpointError(f"{folder}: checkpoint of a {found.kind}, wanted a {kind}")
    if station and found.station and found.station.fingerprint != station.fingerprint:
        raise CheckpointError(f"{folder}: checkpoint of another robot: {_difference(found.station, station)}")
    if not (Path(folder) / WEIGHTS).is_file():
        raise CheckpointError(f"{Path(folder) / WEIGHTS}: cannot be read: No such file")
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """All of config.json. Raises CheckpointError where it is missing, damaged or of another format."""
    path = Path(folder) / CONFIG
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
