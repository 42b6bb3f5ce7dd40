"""What a camera of the simulated cell should see: keypoints, and random scenes to learn them on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from recap_station.sim.arms import ARM_DOF, OPENING_M, Unreachable, reach_down
from recap_station.sim.tasks.handover_insert import (
    GRASP,
    HOLE_DEPTH,
    HOLE_HALF,
    HOLE_Z,
    PEG_HALF,
    PEG_HALF_WIDTH,
)

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

KEYPOINTS = ("peg_center", "peg_left_end", "peg_right_end", "socket_mouth", "left_tip", "right_tip")
Keypoint = tuple[np.ndarray, tuple[float, float], bool]

# A surface this much nearer than the point hides it: so the peg does not hide itself, nor fingers their tip.
_HIDDEN_M = 0.025
_TIP_HIDDEN_M = 0.045

# Corners (low, high) of where a held peg's centre and a free gripper may be.
_IN_LEFT = ([-0.18, -0.12, 0.02], [0.04, 0.04, 0.26])
_IN_RIGHT = ([-0.04, -0.06, 0.08], [0.12, 0.18, 0.24])
_LEFT_WORKS = ([-0.28, -0.16, 0.02], [-0.02, 0.06, 0.28])
_RIGHT_WORKS = ([0.02, -0.12, 0.06], [0.26, 0.20, 0.28])


def keypoints(cell: Cell, camera: str) -> dict[str, Keypoint]:
    """Name → (xyz (3,) [m] in the camera's optical frame: x right, y down, z ahead; (u, v) 0..1 from the top
    left; whether it is in the picture and nothing stands before it). Raises ContractError on the camera."""
    size = cell.station.camera(camera)
    scene = cell.scene()
    points = (
        scene.center, scene.left_end, scene.right_end, scene.mouth, scene.tips[0], scene.tips[1],
    )  # fmt: skip
    index = cell.model.camera(camera).id
    eye = cell.data.cam_xpos[index]
    frame = cell.data.cam_xmat[index].reshape(3, 3)
    half_v = math.tan(math.radians(float(cell.model.cam_fovy[index])) / 2)
    half_u = half_v * size.width / size.height
    found: dict[str, Keypoint] = {}
    for name, point in zip(KEYPOINTS, points, strict=True):
        tolerance = _TIP_HIDDEN_M if name.endswith("tip") else _HIDDEN_M
        x, y, z = frame.T @ (point - eye)
        ahead = max(-z, 1e-6)
        u, v = 0.5 + 0.5 * x / (ahead * half_u), 0.5 - 0.5 * y / (ahead * half_v)
        seen = -z > 0 and 0 <= u <= 1 and 0 <= v <= 1 and not _hidden(cell, eye, point, tolerance)
        found[name] = (np.array([x, -y, -z]), (float(u), float(v)), bool(seen))
    return found


def _hidden(cell: Cell, eye: np.ndarray, point: np.ndarray, tolerance: float) -> bool:
    ray = point - eye
    far = float(np.linalg.norm(ray))
    geom = np.zeros(1, dtype=np.int32)
    hit = mujoco.mj_ray(cell.model, cell.data, eye, ray / far, None, 1, -1, geom)
    return 0 <= hit < far - tolerance


def randomize(cell: Cell, rng: np.random.Generator) -> None:
    """Put the cell in a random but plausible scene: for rendering, not for stepping on (reset first)."""
    mujoco.mj_resetData(cell.model, cell.data)
    mouth = np.array([rng.uniform(-0.09, -0.04), rng.uniform(0.09, 0.18), HOLE_Z])
    cell.props.put_socket(cell.data, mouth[0], mouth[1])
    where = rng.choice(["table", "left", "right", "both", "socket"], p=[0.4, 0.2, 0.15, 0.1, 0.15])
    while True:
        center, yaw, pitch = _peg(where, mouth, rng)
        tips = [_tip(k, where, center, yaw, mouth, rng) for k in range(2)]
        if np.linalg.norm(tips[0][0][:2] - tips[1][0][:2]) < 0.08:
            continue
        if any(_inside_socket(tip[0], mouth) for tip in tips):
            continue
        try:
            state = _state(cell, tips, rng)
        except Unreachable:
            continue
        break
    cell.layout.put(cell.data.qpos, state)
    cell.props.put_peg(cell.model, cell.data, center, yaw, pitch)
    mujoco.mj_forward(cell.model, cell.data)


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
    return rng.uniform(*(_LEFT_WORKS, _RIGHT_WORKS)[arm]), rng.normal(0.0, 0.2), opening


def _inside_socket(tip: np.ndarray, mouth: np.ndarray) -> bool:
    off = tip - mouth + np.array([HOLE_DEPTH / 2, 0.0, 0.0])
    return abs(off[0]) < HOLE_DEPTH / 2 + 0.025 and abs(off[1]) < HOLE_HALF + 0.06 and tip[2] < 0.16


def _state(cell: Cell, tips: list[tuple[np.ndarray, float, float]], rng: np.random.Generator) -> np.ndarray:
    parts = []
    for arm, (tip, yaw, opening) in zip(cell.layout.arms, tips, strict=True):
        tip = np.array([tip[0], tip[1], max(tip[2], 0.013)])
        parts.append(reach_down(arm, tip, yaw, 0.0) + rng.normal(0.0, 0.008, ARM_DOF))
        parts.append(np.array([opening]))
    return np.clip(np.concatenate(parts), cell.station.lower, cell.station.upper)
