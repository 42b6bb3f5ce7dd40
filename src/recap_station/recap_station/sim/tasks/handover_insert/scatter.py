"""Random plausible scenes of the task, to learn to see on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recap_station.sim.arms import OPENING_M, Unreachable
from recap_station.sim.scatter import LEFT_WORKS, RIGHT_WORKS, arms_state
from recap_station.sim.task import put_free_body
from recap_station.sim.tasks.handover_insert.scene import (
    GRASP,
    HOLE_DEPTH,
    HOLE_HALF,
    HOLE_Z,
    PEG_HALF,
    PEG_HALF_WIDTH,
)

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

# Corners (low, high) of where a held peg's centre may be.
_IN_LEFT = ([-0.18, -0.12, 0.02], [0.04, 0.04, 0.26])
_IN_RIGHT = ([-0.04, -0.06, 0.08], [0.12, 0.18, 0.24])


def scatter(cell: Cell, rng: np.random.Generator) -> None:
    """Peg on the table, in a hand or in the socket; hands on it, near it or elsewhere."""
    mouth = np.array([rng.uniform(-0.09, -0.04), rng.uniform(0.09, 0.18), HOLE_Z])
    cell.data.mocap_pos[0] = mouth
    where = rng.choice(["table", "left", "right", "both", "socket"], p=[0.4, 0.2, 0.15, 0.1, 0.15])
    while True:
        center, yaw, pitch = _peg(where, mouth, rng)
        tips = [_tip(k, where, center, yaw, mouth, rng) for k in range(2)]
        if np.linalg.norm(tips[0][0][:2] - tips[1][0][:2]) < 0.08:
            continue
        if any(_inside_socket(tip[0], mouth) for tip in tips):
            continue
        try:
            state = arms_state(cell, tips, rng)
        except Unreachable:
            continue
        break
    cell.layout.put(cell.data.qpos, state)
    put_free_body(cell.model, cell.data, "peg", center, yaw, pitch)


def _peg(where: str, mouth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Centre, yaw and pitch of the peg."""
    if where == "table":
        yaw = rng.normal(0.0, 0.25) if rng.random() < 0.7 else rng.uniform(-1.5, 1.5)
        return np.array([rng.uniform(-0.2, 0.12), rng.uniform(-0.17, 0.06), PEG_HALF_WIDTH]), yaw, 0.0
    if where == "socket":
        gap = rng.uniform(-0.05, 0.06)
        aside = 0.014 if gap < 0 else 0.025
        off = np.array([PEG_HALF + gap, rng.uniform(-aside, aside), rng.uniform(-aside, aside)])
        return mouth + off, rng.normal(0.0, 0.04), rng.normal(0.0, 0.03)
    return (
        rng.uniform(*(_IN_LEFT if where == "left" else _IN_RIGHT)),
        rng.normal(0.0, 0.15),
        rng.normal(0.0, 0.05),
    )


def _tip(
    arm: int, where: str, center: np.ndarray, yaw: float, mouth: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float, float]:
    """Position, heading and opening of a gripper: on the peg, near it, or anywhere it works."""
    side = -1.0 if arm == 0 else 1.0
    axis = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    if where == "both" or where == ("left", "right")[arm] or (where == "socket" and arm == 1):
        along = side * rng.uniform(GRASP - 0.015, GRASP + 0.02)
        return (
            center + along * axis + np.array([0, 0, rng.uniform(-0.006, 0.006)]),
            yaw,
            2 * PEG_HALF_WIDTH / OPENING_M,
        )
    opening = 1.0 if rng.random() < 0.7 else rng.uniform(0.0, 1.0)
    if rng.random() < 0.5 and where != "socket":
        spot = center + side * GRASP * axis + rng.normal(0.0, 0.025, 3)
        spot[2] = max(spot[2], 0.014) + rng.exponential(0.05)
        return spot, yaw + rng.normal(0.0, 0.15), opening
    return rng.uniform(*(LEFT_WORKS, RIGHT_WORKS)[arm]), rng.normal(0.0, 0.2), opening


def _inside_socket(tip: np.ndarray, mouth: np.ndarray) -> bool:
    off = tip - mouth + np.array([HOLE_DEPTH / 2, 0.0, 0.0])
    return abs(off[0]) < HOLE_DEPTH / 2 + 0.025 and abs(off[1]) < HOLE_HALF + 0.06 and tip[2] < 0.16
