"""The contract of a cell: its joints, cameras and tasks, read from YAML into frozen dataclasses.

The only place that knows a joint name or a camera name. Simulator, drivers, recorder, converter,
policy and console all read it from here. Order of the numbers in every state and action vector is
the order of `Station.joints`. Units: radians and seconds; grippers 0 closed .. 1 open.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_MOST_HZ = 1000.0  # of the control rate
FULL_SPEED_S = 0.1


class ContractError(ValueError):
    """A contract file, or something that should agree with it, is wrong. One readable line."""


@dataclass(frozen=True)
class Joint:
    """One commanded joint. Limits in rad, rad/s, rad/s²; for a gripper in its 0..1 unit.

    A YAML without `max_acceleration` gets what reaches `max_velocity` from rest in FULL_SPEED_S.
    """

    name: str
    lower: float
    upper: float
    max_velocity: float
    max_acceleration: float
    home: float
    is_gripper: bool = False

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Joint:
        for name in ("lower", "upper", "max_velocity", "max_acceleration", "home"):
            if not isinstance(value := data.get(name, 0.0), (int, float)):
                raise ContractError(f"{name} of {data.get('name')} is {value!r}, wanted a number")
        return Joint(**{"max_acceleration": data["max_velocity"] / FULL_SPEED_S, **data})


@dataclass(frozen=True)
class Camera:
    name: str
    width: int
    height: int
    rate_hz: float


@dataclass(frozen=True)
class Station:
    """A robot cell. `joints` in the order of every 14-number vector of the default cell."""

    name: str
    joints: tuple[Joint, ...]
    cameras: tuple[Camera, ...]
    control_rate_hz: float = 50.0

    @property
    def dof(self) -> int:
        return len(self.joints)

    @property
    def step_s(self) -> float:
        return 1.0 / self.control_rate_hz

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    @property
    def home(self) -> np.ndarray:
        return np.array([joint.home for joint in self.joints])

    @property
    def lower(self) -> np.ndarray:
        return np.array([joint.lower for joint in self.joints])

    @property
    def upper(self) -> np.ndarray:
        return np.array([joint.upper for joint in self.joints])

    @property
    def max_velocity(self) -> np.ndarray:
        return np.array([joint.max_velocity for joint in self.joints])

    @property
    def max_acceleration(self) -> np.ndarray:
        return np.array([joint.max_acceleration for joint in self.joints])

    @property
    def is_gripper(self) -> np.ndarray:
        return np.array([joint.is_gripper for joint in self.joints])

    @property
    def fingerprint(self) -> str:
        """Identity of what a policy depends on: joint names in order, cameras and their sizes."""
        text = json.dumps([self.joint_names, [(c.name, c.width, c.height) for c in self.cameras]])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def camera(self, name: str) -> Camera:
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise ContractError(f"unknown camera {name!r}{_nearest(name, self.camera_names)}")

    def column(self, name: str) -> int:
        """Where a joint stands in every vector. Raises ContractError with the nearest name."""
        if name not in self.joint_names:
            raise ContractError(
                f"unknown joint {name!r}{_nearest(name, self.joint_names)}; "
                f"station {self.name!r} has {', '.join(self.joint_names)}"
            )
        return self.joint_names.index(name)

    def vector(self, names: Sequence[str], values: Sequence[float]) -> np.ndarray:
        """Values in any joint order → (dof,) float64 in the station's order.

        Raises ContractError on an unknown, repeated or missing joint, and on a length mismatch.
        """
        if len(names) != len(values):
            raise ContractError(f"{len(names)} joint names with {len(values)} values")
        given = dict(zip(names, values, strict=True))
        for name in names:
            self.column(name)
        missing = [name for name in self.joint_names if name not in given]
        if missing:
            raise ContractError(f"joint {missing[0]!r} is missing ({len(missing)} in all)")
        if len(given) != len(names):
            raise ContractError(f"a joint is named twice in {list(names)}")
        return np.array([given[name] for name in self.joint_names], dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Station:
        return Station(
            data["name"],
            tuple(Joint.from_dict(joint) for joint in data["joints"]),
            tuple(Camera(**camera) for camera in data["cameras"]),
            data["control_rate_hz"],
        )


@dataclass(frozen=True)
class Task:
    """What is to be done, how long it may take and who judges it."""

    name: str
    prompt: str
    time_limit_s: float
    max_episode_s: float
    stages: tuple[str, ...]
    judge: str = "simulator"
    sim: dict[str, Any] = field(default_factory=dict)  # start ranges and dials of the simulated task
    rubric: dict[str, Any] = field(default_factory=dict)  # what a person is asked of an attempt

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Task:
        return Task(**{**data, "stages": tuple(data["stages"])})


def config_folders() -> list[Path]:
    """Where configuration is looked for: $RECAP_CONFIG_PATH, installed shares, this checkout."""
    folders = [Path(p) for p in os.environ.get("RECAP_CONFIG_PATH", "").split(os.pathsep) if p]
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    folders += [Path(p) / "share" / "recap" / "config" for p in prefixes if p]
    for parent in Path(__file__).resolve().parents:
        folders.append(parent / "ros2_ws" / "src" / "recap" / "config")
    return [folder for folder in folders if folder.is_dir()]


def load_station(name_or_path: str | Path) -> Station:
    """Read a station by name ("aloha") or by path. Raises ContractError with the nearest name."""
    data, source = read_config("stations", name_or_path)
    try:
        joints: list[Joint] = []
        arms = {arm["prefix"]: arm for arm in data["arms"]}
        for arm in data["arms"]:
            pattern = arms[arm["like"]] if "like" in arm else arm
            for joint in pattern["joints"]:
                joints.append(Joint.from_dict({**joint, "name": arm["prefix"] + joint["name"]}))
            if gripper := pattern.get("gripper"):
                gripper = {**gripper, "name": arm["prefix"] + gripper["name"]}
                joints.append(Joint.from_dict({"lower": 0.0, "upper": 1.0, "is_gripper": True, **gripper}))
        cameras = tuple(Camera(**camera) for camera in data["cameras"])
        station = Station(data["name"], tuple(joints), cameras, float(data["control_rate_hz"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{source}: not a station: {error}") from error
    if not 1 <= station.control_rate_hz <= _MOST_HZ:
        raise ContractError(
            f"{source}: control_rate_hz is {station.control_rate_hz:g}, wanted 1 .. {_MOST_HZ:g}"
        )
    for joint in station.joints:
        if not joint.lower <= joint.home <= joint.upper:
            raise ContractError(
                f"{source}: home of {joint.name} is {joint.home}, outside {joint.lower} .. {joint.upper}"
            )
        for limit in ("max_velocity", "max_acceleration"):
            if not 0.0 < (value := getattr(joint, limit)) < float("inf"):
                raise ContractError(f"{source}: {limit} of {joint.name} is {value}, wanted more than 0")
    if len(set(station.joint_names)) != station.dof:
        raise ContractError(f"{source}: a joint name stands twice")
    return station


def load_task(name_or_path: str | Path) -> Task:
    """Read a task by name or by path. Raises ContractError with the nearest name."""
    data, source = read_config("tasks", name_or_path)
    try:
        task = Task.from_dict(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{source}: not a task: {error}") from error
    if task.judge not in ("simulator", "person"):
        raise ContractError(f"{source}: judge is {task.judge!r}, wanted 'simulator' or 'person'")
    if not 0 < task.time_limit_s <= task.max_episode_s:
        raise ContractError(
            f"{source}: wanted 0 < time_limit_s <= max_episode_s, "
            f"found {task.time_limit_s} and {task.max_episode_s}"
        )
    return task


def read_config(kind: str, name_or_path: str | Path) -> tuple[dict[str, Any], Path]:
    """The mapping in config/<kind>/<name>.yaml, or in the YAML at a path, and where it was found.

    Raises ContractError with the nearest name.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = {p.stem: p for folder in reversed(config_folders()) for p in (folder / kind).glob("*.yaml")}
        if str(name_or_path) not in known:
            have = ", ".join(sorted(known)) or "none"
            hint = _nearest(str(name_or_path), known)
            raise ContractError(f"no {kind[:-1]} {str(name_or_path)!r}{hint} (there are: {have})")
        path = known[str(name_or_path)]
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ContractError(f"{path}: no such file") from error
    except (yaml.YAMLError, ValueError) as error:  # or no text at all
        raise ContractError(f"{path}: not YAML: {error}".replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise ContractError(f"{path}: wanted a mapping, found {type(data).__name__}")
    return data, path


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
