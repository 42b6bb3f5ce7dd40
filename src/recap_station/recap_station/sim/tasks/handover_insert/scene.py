"""What a state of handover_insert means: the scene, and where a peg can still be picked up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recap_station.sim.arms import Arm, Unreachable, reach_down
from recap_station.sim.task import Scene

PEG_HALF = 0.10
PEG_HALF_WIDTH = 0.016
GRASP = 0.055  # from the peg's centre to where a gripper takes it
HOLE_Z = 0.09
HOLE_HALF = 0.032  # 16 mm of play on each side of the peg
HOLE_DEPTH = 0.065
DEEP_ENOUGH = 0.03
LIFTED_Z = 0.13


@dataclass(frozen=True)
class PegScene(Scene):
    """Positions (3,) in world metres; `held` is (left arm, right arm)."""

    center: np.ndarray
    axis: np.ndarray  # unit vector from the peg's left end to its right end
    mouth: np.ndarray  # centre of the socket's hole, at its face
    held: tuple[bool, bool]

    def points(self) -> tuple[np.ndarray, ...]:
        return self.center, self.left_end, self.right_end, self.mouth

    def facts(self) -> tuple[float, ...]:
        return float(self.held[0]), float(self.held[1])

    @property
    def left_end(self) -> np.ndarray:
        return self.center - PEG_HALF * self.axis

    @property
    def right_end(self) -> np.ndarray:
        return self.center + PEG_HALF * self.axis

    @property
    def yaw(self) -> float:
        return math.atan2(self.axis[1], self.axis[0])

    @property
    def depth(self) -> float:
        """How far the free end is inside the hole [m]; negative before the mouth, -1 beside it."""
        end = self.left_end
        aside = np.abs(end[1:] - self.mouth[1:]).max()
        return float(self.mouth[0] - end[0]) if aside < HOLE_HALF else -1.0


def left_grasp(scene: PegScene) -> np.ndarray:
    """Where the left gripper takes a peg that lies on the table."""
    return scene.center - GRASP * scene.axis


def can_pick(arm: Arm, scene: PegScene) -> bool:
    """Whether a peg that nobody holds lies where the left arm can take it."""
    if scene.center[2] < 0 or abs(scene.axis[2]) > 0.5:
        return False
    grasp = left_grasp(scene)
    near_socket = grasp - scene.mouth + np.array([HOLE_DEPTH / 2, 0.0, 0.0])
    beside = HOLE_HALF + PEG_HALF_WIDTH + 0.05
    if abs(near_socket[0]) < HOLE_DEPTH / 2 + 0.03 and abs(near_socket[1]) < beside:
        return False
    try:
        reach_down(arm, grasp + np.array([0.0, 0.0, 0.08]), scene.yaw, 0.0)
    except Unreachable:
        return False
    return grasp[0] < 0.12
