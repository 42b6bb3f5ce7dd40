"""The grippers as read from a model: where they are, how wide, whether a bar is between their pads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from recap_station.contract import Station
from recap_station.sim.arms import OPENING_M, arms_of


@dataclass(frozen=True)
class Grips:
    """Pairs are (left arm, right arm)."""

    tips: tuple[np.ndarray, np.ndarray]
    frames: tuple[np.ndarray, np.ndarray]  # (3, 3): columns along fingers, finger to finger, the rest
    yaws: tuple[float, float]  # heading of a bar that the gripper would hold
    gaps: tuple[float, float]  # between the pads, m

    def hold_bar(
        self, arm: int, center: np.ndarray, axis: np.ndarray, half_length: float, half_width: float
    ) -> bool:
        """Whether the pads are closed on a bar: it passes between them, and the gap is its width."""
        tip, frame = self.tips[arm], self.frames[arm]
        if self.gaps[arm] > min(2 * half_width + 0.007, 0.9 * OPENING_M) or abs(axis @ frame[:, 1]) > 0.5:
            return False
        along = float((tip - center) @ axis)
        if abs(along) > half_length + 0.005:
            return False
        off = center + along * axis - tip
        return bool(abs(off @ frame[:, 1]) < 0.012 and abs(off @ frame[:, 0]) < 0.024)


class GripReader:
    """Reads Grips after kinematics."""

    def __init__(self, station: Station, model: mujoco.MjModel) -> None:
        self.arms = arms_of(station)
        self._sites = [model.site(arm.tip_site).id for arm in self.arms]
        self._fingers = [[model.joint(n).qposadr[0] for n in arm.finger_joints] for arm in self.arms]

    def read(self, data: mujoco.MjData) -> Grips:
        tips, frames, yaws, gaps = [], [], [], []
        for site, fingers in zip(self._sites, self._fingers, strict=True):
            frame = data.site_xmat[site].reshape(3, 3).copy()
            tips.append(data.site_xpos[site].copy())
            frames.append(frame)
            yaws.append(math.atan2(-frame[0, 1], frame[1, 1]))
            gaps.append(float(data.qpos[fingers[0]] + data.qpos[fingers[1]]))
        return Grips(
            (tips[0], tips[1]), (frames[0], frames[1]), (yaws[0], yaws[1]), (gaps[0], gaps[1])
        )  # fmt: skip
