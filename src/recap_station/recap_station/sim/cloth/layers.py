"""Which parts of a cloth lie on which, for a cloth that does not touch itself."""

from __future__ import annotations

import numpy as np

from recap_station.sim.cloth.mesh import LAYER, TRIANGLES, N, facing

KEPT = 1.5  # layers: by how much the order that was there before outweighs present heights
INWARD = 0.6  # of the way to the mean of its neighbours what is below a vertex is looked for, or edges and
# creases that lie on each other would miss
_TOUCHING = (TRIANGLES[None] == np.arange(N * N)[:, None, None]).any(axis=2)


class Layers:
    """Remembers how many layers were below each vertex and which side was up, so that a stack that is lifted
    keeps its order: heights that differ by less than a layer do not tell."""

    def __init__(self) -> None:
        self._order = np.zeros(N * N)  # negative where the cloth's lower side is up

    def below(self, vertices: np.ndarray) -> np.ndarray:
        """(N, N, 3) [m] → (N * N,): how many layers lie under each vertex. Once a control tick."""
        points = vertices.reshape(-1, 3).copy()
        if np.ptp(points[:, 2]) < 0.25 * LAYER:
            self._order[:] = 0.0
            return np.zeros(N * N, dtype=int)
        faces = facing(vertices)
        points[:, 2] += KEPT * LAYER * self._order * faces
        layers = _count(points)
        flat = np.abs(faces) > 0.5
        self._order[flat] = layers[flat] * np.sign(faces[flat])
        return layers


def _neighbours() -> np.ndarray:
    """(N * N, N * N): takes the mean of each vertex's neighbours along rows and columns."""
    at = np.indices((N, N)).reshape(2, -1)
    beside = (np.abs(at[:, :, None] - at[:, None]).sum(axis=0) == 1).astype(float)
    return np.asarray(beside / beside.sum(axis=1, keepdims=True))


_NEAR = _neighbours()


def _count(points: np.ndarray) -> np.ndarray:
    """(N * N, 3) [m] → (N * N,): how many layers of triangles are below each."""
    layers = np.zeros(N * N, dtype=int)
    high = np.flatnonzero(points[:, 2] > points[:, 2].min() + 0.25 * LAYER)  # nothing is below the others
    a, b, c = (points[TRIANGLES[:, k]] for k in range(3))
    ab, ac = b - a, c - a
    det = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    safe = np.where(np.abs(det) > 1e-9, det, np.inf)  # seen on edge a triangle covers nothing
    probes = points[high] + INWARD * (_NEAR @ points - points)[high]
    px, py = probes[:, None, 0] - a[:, 0], probes[:, None, 1] - a[:, 1]
    u = (px * ac[:, 1] - py * ac[:, 0]) / safe
    v = (py * ab[:, 0] - px * ab[:, 1]) / safe
    inside = (u > -1e-6) & (v > -1e-6) & (u + v < 1 + 1e-6) & np.isfinite(safe)
    z = a[:, 2] + u * ab[:, 2] + v * ac[:, 2]
    under = inside & ~_TOUCHING[high] & (z < points[high, None, 2] - 0.25 * LAYER)
    # neighbouring triangles of one layer count once
    ordered = np.sort(np.where(under, np.round(z / (0.5 * LAYER)), np.nan), axis=1)  # NaN last
    steps = np.diff(ordered, axis=1) > 1.5
    layers[high] = np.isfinite(ordered[:, 0]).astype(int) + steps.sum(axis=1)
    return layers
