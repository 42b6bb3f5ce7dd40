"""What a camera of the simulated cell should see: where the task's keypoints are in its picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mujoco
import numpy as np

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

TIPS = ("left_tip", "right_tip")
Keypoint = tuple[np.ndarray, tuple[float, float], bool]

# A surface this much nearer than the point hides it: so the peg does not hide itself, nor fingers their tip.
_HIDDEN_M = 0.025
_TIP_HIDDEN_M = 0.045


def keypoints(cell: Cell, camera: str) -> dict[str, Keypoint]:
    """Name → (xyz (3,) [m] in the camera's optical frame: x right, y down, z ahead; (u, v) 0..1 from the top
    left; whether it is in the picture and nothing stands before it). Raises ContractError on the camera."""
    size = cell.station.camera(camera)
    scene = cell.scene()
    names, points = cell.props.KEYPOINTS + TIPS, scene.points() + scene.tips
    index = cell.model.camera(camera).id
    eye = cell.data.cam_xpos[index]
    frame = cell.data.cam_xmat[index].reshape(3, 3)
    half_v = math.tan(math.radians(float(cell.model.cam_fovy[index])) / 2)
    half_u = half_v * size.width / size.height
    found: dict[str, Keypoint] = {}
    for name, point in zip(names, points, strict=True):
        tolerance = _TIP_HIDDEN_M if name in TIPS else _HIDDEN_M
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
