"""Shape and triangles of the cloth."""

from __future__ import annotations

import numpy as np

N = 9  # vertices along a side
SIZE = 0.22  # m
RADIUS = 0.003  # of a vertex: it rests so high above the table, m
LAYER = 0.004  # m


def flat(size_x: float = SIZE, size_y: float = SIZE, taper: float = 0.0) -> np.ndarray:
    """Vertices (N, N, 3) of a cloth spread round the origin: first index along x, second along y.

    `taper`: by how much of its width the near edge is narrower and the far edge wider, a trapezium."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, N), np.linspace(-0.5, 0.5, N), indexing="ij")
    return np.stack([x * (1.0 + 2.0 * taper * y) * size_x, y * size_y, np.full((N, N), RADIUS)], axis=-1)


def _triangles() -> np.ndarray:
    """(2 (N-1)^2, 3): squares cut along alternating diagonals, counter-clockwise."""
    found = []
    for i in range(N - 1):
        for j in range(N - 1):
            a, b, c, d = i * N + j, (i + 1) * N + j, (i + 1) * N + j + 1, i * N + j + 1
            found += [(a, b, c), (a, c, d)] if (i + j) % 2 else [(a, b, d), (b, c, d)]
    return np.array(found)


TRIANGLES = _triangles()


def facing(vertices: np.ndarray) -> np.ndarray:
    """(N, N, 3) → (N * N,): height of the upper side's normal at each vertex, -1 … 1."""
    across, along = np.gradient(vertices, axis=0), np.gradient(vertices, axis=1)
    normal = np.cross(across, along)
    return np.array(normal[..., 2] / (np.linalg.norm(normal, axis=-1) + 1e-12)).ravel()
