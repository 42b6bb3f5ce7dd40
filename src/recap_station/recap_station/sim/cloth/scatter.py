"""Random plausible scenes of the folding tasks, to learn to see on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recap_station.sim.arms import Unreachable
from recap_station.sim.cloth.mesh import LAYER, RADIUS
from recap_station.sim.cloth.scene import MAT, MID
from recap_station.sim.scatter import LEFT_WORKS, RIGHT_WORKS, Tip, arms_state
from recap_station.sim.script import up

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell


def scatter(cell: Cell, rng: np.random.Generator) -> None:
    """The cloth spread, being folded, folded once or twice, on the table or the mat; hands on it, near it
    or elsewhere."""
    props, model, data = cell.props, cell.model, cell.data
    props.place(model, data, rng)
    while True:
        vertices, ends = _cloth(props.shape, rng)  # type: ignore[attr-defined]
        tips = [
            _hand(rng, vertices[end], works)
            for end, works in zip(ends, (LEFT_WORKS, RIGHT_WORKS), strict=True)
        ]
        if np.linalg.norm((tips[0][0] - tips[1][0])[:2]) < 0.08:
            continue
        try:
            state = arms_state(cell, tips, rng)
        except Unreachable:
            continue
        break
    cell.layout.put(data.qpos, state)
    props.sheet.put(model, data, vertices)  # type: ignore[attr-defined]
    props.memory = np.zeros_like(props.memory)


def _cloth(shape: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Vertices (N, N, 3), and the indices of the ones that the hands would work."""
    how = rng.choice(["spread", "folding", "half", "again", "strip"], p=[0.25, 0.25, 0.15, 0.15, 0.2])
    first = {"spread": 0.0, "folding": rng.uniform(0.2, 0.95) * math.pi}.get(how, math.pi)
    second = {"again": rng.uniform(0.2, 0.95) * math.pi, "strip": math.pi}.get(how, 0.0)
    row = 0 if how in ("spread", "folding") else MID
    points = shape + _waves(shape, rng)
    far = float(shape[0, -1, 1])
    points = _turned_over(points, 0.0, first, LAYER)
    points = _turned_over(points, 0.5 * far, second, 2 * LAYER)
    points[..., 2] = np.maximum(points[..., 2], RADIUS)
    points = points - (0.0, points[..., 1].mean(), 0.0)
    yaw = rng.normal(0.0, 0.25)
    place = np.array([rng.uniform(-0.05, 0.06), rng.uniform(-0.08, 0.10), 0.0])
    if how == "strip" and rng.random() < 0.5:
        place, yaw = MAT + rng.normal(0.0, 0.02, 3) * (1, 1, 0), rng.normal(0.0, 0.1)
    c, s = math.cos(yaw), math.sin(yaw)
    turned = points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return turned + place, ((0, row), (-1, row))


def _turned_over(points: np.ndarray, crease: float, angle: float, layer: float) -> np.ndarray:
    """What lies nearer than y = `crease` [m], turned about it by `angle`."""
    points = points.copy()
    near = points[..., 1] < crease - 1e-9
    off, z = points[near][:, 1] - crease, points[near][:, 2]
    points[near] = np.stack(
        [
            points[near][:, 0],
            crease + math.cos(angle) * off,
            np.abs(math.cos(angle)) * z - math.sin(angle) * off + layer * angle / math.pi,
        ],
        axis=1,
    )
    return points


def _waves(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, N, 3) [m]: what makes a cloth look handled."""
    waves = np.zeros_like(shape)
    strength = rng.exponential(0.004)
    for axis in range(3):
        k, phase = rng.uniform(-25.0, 25.0, 2), rng.uniform(0.0, 2 * math.pi)
        waves[..., axis] = strength * np.sin(shape[..., :2] @ k + phase)
    waves[..., 2] += strength
    return waves


def _hand(rng: np.random.Generator, spot: np.ndarray, works: tuple[list[float], list[float]]) -> Tip:
    """A gripper on `spot`, near it, or anywhere it works."""
    how = rng.random()
    if how < 0.35:
        return spot + up(rng.uniform(0.008, 0.014)), rng.normal(0.0, 0.05), 0.0
    opening = 1.0 if rng.random() < 0.7 else rng.uniform(0.0, 1.0)
    if how < 0.65:
        return (
            spot + rng.normal(0.0, 0.02, 3) + up(0.02 + rng.exponential(0.05)),
            rng.normal(0.0, 0.1),
            opening,
        )
    return rng.uniform(*works), rng.normal(0.0, 0.3), opening
