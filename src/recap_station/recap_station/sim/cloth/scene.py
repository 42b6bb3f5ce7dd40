"""What a scene of a folding task tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recap_station.sim.cloth.mesh import N
from recap_station.sim.task import Scene

MID = N // 2
MAT = np.array(
    [0.16, 0.20, 0.0]
)  # where the folded cloth belongs: as far to the top right as both hands reach
MAT_HALF = (0.13, 0.045)
NEAT = 0.030  # what belongs together lies no farther apart in a neat fold, m
ON_MAT = 0.035  # of the cloth's middle from the mat's, m

# By columns along the cloth's x and rows along its y, as it lies before it is folded.
CORNERS = {"near_left": (0, 0), "near_right": (-1, 0), "far_left": (0, -1), "far_right": (-1, -1)}
MIDDLES = {"near": (MID, 0), "left": (0, MID), "right": (-1, MID), "far": (MID, -1), "middle": (MID, MID)}


@dataclass(frozen=True)
class ClothScene(Scene):
    """vertices, shape: (N, N, 3) [m], now and spread round the origin; holds: whether each hand holds cloth;
    print_row: the row that has to be seen on top in the end, if one has."""

    vertices: np.ndarray
    shape: np.ndarray
    holds: tuple[bool, bool]
    print_row: int | None = None

    def points(self) -> tuple[np.ndarray, ...]:
        return tuple(self.vertices[at] for at in (*CORNERS.values(), *MIDDLES.values()))

    def facts(self) -> tuple[float, ...]:
        return float(self.holds[0]), float(self.holds[1])

    @property
    def middle(self) -> np.ndarray:
        """Mean of all vertices (3,)."""
        return self.vertices.reshape(-1, 3).mean(axis=0)

    @property
    def flat(self) -> bool:
        return bool(self.vertices[..., 2].max() < 0.04)

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
    def faces_up(self) -> np.ndarray:
        """For each row of squares (N - 1,), how much of the cloth's upper side faces up: -1 … 1."""
        v = self.vertices
        across, along = v[1:, :-1] - v[:-1, :-1], v[:-1, 1:] - v[:-1, :-1]
        normal = np.cross(across, along)
        return np.array((normal[..., 2] / (np.linalg.norm(normal, axis=-1) + 1e-12)).mean(axis=0))

    @property
    def near_on_top(self) -> bool:
        """Of a cloth folded once: whether the near half lies on the far one, and not the far one on it."""
        faces = self.faces_up
        return bool(faces[:MID].mean() < faces[MID:].mean())

    @property
    def right_way(self) -> bool:
        """Whether the folds so far bring the print to the outside and top; true of a cloth without one."""
        if self.print_row is None or not (self.halved or self.over):
            return True
        printed = self.faces_up[[self.print_row - 1, self.print_row]].mean()
        return bool(printed > 0 if self.over else printed < 0)

    @property
    def places(self) -> np.ndarray:
        """Where the vertices of the cloth would lie (N, N, 3), were it spread as most of it lies."""
        return _fitted(self.shape, self.vertices)

    @property
    def spread_errors(self) -> np.ndarray:
        """How far the corners are from their places (4,) [m], in the order of `CORNERS`."""
        places = self.places
        return np.array([_far(self.vertices[at], places[at]) for at in CORNERS.values()])

    @property
    def on_mat(self) -> bool:
        return bool(_far(self.middle, MAT) < ON_MAT and not any(self.holds))


def _far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Horizontal distances [m]."""
    return np.linalg.norm((a - b)[..., :2], axis=-1)


def _fitted(shape: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """`shape` turned and moved in the plane onto most of `vertices`: a least-squares fit that comes to leave
    out what is far off."""
    a, b = shape[..., :2].reshape(-1, 2), vertices[..., :2].reshape(-1, 2)
    weight = np.ones(len(a))
    moved = a
    for _ in range(8):
        mean_a, mean_b = (np.average(points, axis=0, weights=weight) for points in (a, b))
        c = (weight[:, None] * (a - mean_a)).T @ (b - mean_b)
        angle = np.arctan2(c[0, 1] - c[1, 0], c[0, 0] + c[1, 1])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        moved = (a - mean_a) @ turn + mean_b
        weight = 1.0 / (1.0 + (np.linalg.norm(moved - b, axis=1) / 0.015) ** 2)
    return np.concatenate([moved.reshape(*shape.shape[:2], 2), shape[..., 2:]], axis=-1)
