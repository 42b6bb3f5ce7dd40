"""What a scene of a folding task tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recap_station.sim.cloth.sheet import N
from recap_station.sim.task import Scene

MID = N // 2
MAT = np.array(
    [0.16, 0.20, 0.0]
)  # where the folded cloth belongs: as far to the top right as both hands reach
MAT_HALF = (0.13, 0.045)
NEAT = 0.025  # what belongs together lies no farther apart in a neat fold, m
ON_MAT = 0.035  # of the cloth's middle from the mat's, m

# By columns along the cloth's x and rows along its y, as it lies before it is folded.
CORNERS = {"near_left": (0, 0), "near_right": (-1, 0), "far_left": (0, -1), "far_right": (-1, -1)}
MIDDLES = {"near": (MID, 0), "left": (0, MID), "right": (-1, MID), "far": (MID, -1), "middle": (MID, MID)}


@dataclass(frozen=True)
class ClothScene(Scene):
    """vertices: (N, N, 3) [m]; holds: whether each hand holds cloth."""

    vertices: np.ndarray
    holds: tuple[bool, bool]

    def points(self) -> tuple[np.ndarray, ...]:
        return tuple(self.vertices[at] for at in (*CORNERS.values(), *MIDDLES.values()))

    def facts(self) -> tuple[float, ...]:
        return float(self.holds[0]), float(self.holds[1])

    def corner(self, name: str) -> np.ndarray:
        return self.vertices[CORNERS[name]]

    @property
    def middle(self) -> np.ndarray:
        """Mean of all vertices (3,)."""
        return self.vertices.reshape(-1, 3).mean(axis=0)

    @property
    def flat(self) -> bool:
        return bool(self.vertices[..., 2].max() < 0.03)

    @property
    def half_errors(self) -> np.ndarray:
        """How far the near corners, left and right, are from the far ones (2,) [m]."""
        return _far(self.vertices[[0, -1], 0], self.vertices[[0, -1], -1])

    @property
    def halved(self) -> bool:
        """Folded once, neatly: the near edge lies on the far one."""
        v = self.vertices
        return bool(self.half_errors.max() < NEAT and _far(v[:, 0], v[:, -1]).max() < 1.5 * NEAT)

    @property
    def again_errors(self) -> np.ndarray:
        """How far the ends of the middle, left and right, are from the far corners (2,) [m]."""
        return _far(self.vertices[[0, -1], MID], self.vertices[[0, -1], -1])

    @property
    def over(self) -> bool:
        """Whether the middle lies at the far edge, neatly or not."""
        v = self.vertices
        return bool(_far(v[:, MID], v[:, -1]).mean() < 0.06)

    @property
    def quartered(self) -> bool:
        """Folded a second time, neatly: the middle lies on the far edge."""
        v = self.vertices
        return bool(self.again_errors.max() < NEAT and _far(v[:, MID], v[:, -1]).max() < 1.5 * NEAT)

    @property
    def on_mat(self) -> bool:
        return bool(_far(self.middle, MAT) < ON_MAT and not any(self.holds))


def _far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Horizontal distances [m]."""
    return np.linalg.norm((a - b)[..., :2], axis=-1)
