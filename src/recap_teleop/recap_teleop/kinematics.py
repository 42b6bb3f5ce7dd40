"""Where a station's tips are, and how they move with the joints: read from the station's YAML.

Frames as in a URDF: each joint has a place and a turn in the frame before it, then turns about its axis.
Metres, radians; the station's frame is that of the arms' `base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transforms3d.axangles import axangle2mat
from transforms3d.euler import euler2mat

from recap_station.contract import ContractError, Station, load_station, read_config

TIP = "tip"


@dataclass(frozen=True)
class Frame:
    """A pose in the frame before: rotation (3, 3), position (3,) [m]."""

    rotation: np.ndarray
    position: np.ndarray

    def then(self, other: Frame) -> Frame:
        return Frame(self.rotation @ other.rotation, self.position + self.rotation @ other.position)


@dataclass(frozen=True)
class Chain:
    """One arm of n joints. `index` (n,) are its joints' places in the station's vectors, `gripper` its
    gripper's, or None; `frames` (n) and `axes` (n, 3) go from base to tip."""

    arm: str
    index: np.ndarray
    gripper: int | None
    base: Frame
    frames: tuple[Frame, ...]
    axes: np.ndarray
    tip: Frame

    def forward(self, joints: np.ndarray) -> Frame:
        """(n,) [rad] → pose of the tip in the station's frame."""
        return self.jacobian(joints)[0]

    def jacobian(self, joints: np.ndarray) -> tuple[Frame, np.ndarray]:
        """(n,) [rad] → pose of the tip, and (6, n): its velocity [m/s] over its turning [rad/s], both in the
        station's frame, for one rad/s of each joint."""
        at, places, axes = self.base, [], []
        for frame, axis, angle in zip(self.frames, self.axes, joints, strict=True):
            at = at.then(frame)
            places.append(at.position)
            axes.append(at.rotation @ axis)
            at = Frame(at.rotation @ axangle2mat(axis, angle, is_normalized=True), at.position)
        at = at.then(self.tip)
        turning = np.array(axes)
        moving = np.cross(turning, at.position - np.array(places))
        return at, np.vstack([moving.T, turning.T])


def load_chains(name_or_path: str | Path) -> dict[str, Chain]:
    """Arm ("left" of the prefix "left_") → its chain, for all arms of a station.

    Raises ContractError where the station says nothing of an arm's kinematics, or something wrong.
    """
    station = load_station(name_or_path)
    data, source = read_config("stations", name_or_path)
    arms = {arm["prefix"]: arm for arm in data["arms"]}
    chains = {}
    for prefix, arm in arms.items():
        pattern = arms[arm["like"]] if "like" in arm else arm
        place = f"{source}: arm {prefix!r}"
        if "kinematics" not in pattern:
            raise ContractError(f"{place} has no kinematics, which driving its tip needs")
        chains[prefix.rstrip("_")] = _chain(place, prefix, arm, pattern, station)
    return chains


def _chain(place: str, prefix: str, arm: Any, pattern: Any, station: Station) -> Chain:
    names = [joint["name"] for joint in pattern["joints"]]
    rows = dict(pattern["kinematics"])
    if set(rows) != {*names, TIP}:
        wrong = sorted(set(rows) ^ {*names, TIP})[0]
        raise ContractError(f"{place}: kinematics names {', '.join(rows)}; {wrong} is missing or too much")
    axes = []
    for name in names:
        axis = _numbers(f"{place}: axis of {name}", rows[name].get("axis"))
        length = float(np.linalg.norm(axis))
        if length < 1e-6:
            raise ContractError(f"{place}: axis of {name} has no direction")
        axes.append(axis / length)
    gripper = pattern.get("gripper")
    order = list(station.joint_names)
    return Chain(
        prefix.rstrip("_"),
        np.array([order.index(prefix + name) for name in names]),
        order.index(prefix + gripper["name"]) if gripper else None,
        _frame(f"{place}: base", arm.get("base", {})),
        tuple(_frame(f"{place}: {name}", rows[name]) for name in names),
        np.array(axes),
        _frame(f"{place}: {TIP}", rows[TIP]),
    )


def _frame(place: str, row: Any) -> Frame:
    if not isinstance(row, dict) or not set(row) <= {"xyz", "rpy", "axis"}:
        raise ContractError(f"{place} is {row!r}, wanted xyz, rpy (missing: 0) and, for a joint, axis")
    roll, pitch, yaw = _numbers(f"{place}: rpy", row.get("rpy", (0.0, 0.0, 0.0)))
    return Frame(
        euler2mat(roll, pitch, yaw, "sxyz"), _numbers(f"{place}: xyz", row.get("xyz", (0.0, 0.0, 0.0)))
    )


def _numbers(place: str, values: Sequence[float] | None) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise ContractError(f"{place} is {values!r}, wanted three numbers")
    return numbers
