"""Arms in random poses, for the random scenes of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recap_station.sim.arms import ARM_DOF, reach_down

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

Tip = tuple[np.ndarray, float, float]  # position (3,) [m], heading of a bar in it [rad], opening 0..1

# Corners (low, high) of where a free gripper may be.
LEFT_WORKS = ([-0.28, -0.16, 0.02], [-0.02, 0.06, 0.28])
RIGHT_WORKS = ([0.02, -0.12, 0.06], [0.26, 0.20, 0.28])


def arms_state(cell: Cell, tips: list[Tip], rng: np.random.Generator) -> np.ndarray:
    """State (dof,) with the tips there, fingers nearly straight down. Raises Unreachable."""
    parts = []
    for arm, (tip, yaw, opening) in zip(cell.layout.arms, tips, strict=True):
        tip = np.array([tip[0], tip[1], max(tip[2], 0.013)])
        parts.append(reach_down(arm, tip, yaw, 0.0) + rng.normal(0.0, 0.008, ARM_DOF))
        parts.append(np.array([opening]))
    return np.clip(np.concatenate(parts), cell.station.lower, cell.station.upper)
