"""Cloths of several sizes, shapes and stiffnesses that start with corners turned in: spread, then folded.

How far a cloth differs from the plain square, and how many of its corners are turned in, grows with its
hardness, 0 to 1, drawn for each attempt; what counts is the hardest (`hardness: [1, 1]` in the YAML's section
`sim`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recap_station.contract import Station
from recap_station.sim.cloth.judge import ClothJudge, ClothSigns
from recap_station.sim.cloth.mesh import LAYER, RADIUS
from recap_station.sim.cloth.scene import CORNERS, ClothScene
from recap_station.sim.cloth.script import ClothScript, Moves, fixed
from recap_station.sim.cloth.task import ClothTask
from recap_station.sim.cloth.task import Dials as ClothDials
from recap_station.sim.judge import Judge
from recap_station.sim.script import Script
from recap_station.sim.task import Signs

SPREAD_M = 0.03  # a corner no farther from its place is spread
BEYOND_M = 0.008  # a corner is pulled so far beyond its place
PULL_Z = 0.06


@dataclass(frozen=True)
class Dials(ClothDials):
    """hardness: 0 … 1."""

    hardness: tuple[float, float] = (0.0, 1.0)


class FoldDiverse(ClothTask):
    """One cloth in one model; at each start it is cut to another size, shape and stiffness."""

    Dials = Dials

    def cloth(self, rng: np.random.Generator) -> tuple[tuple[float, float, float], float]:
        self._hardness = rng.uniform(*self.dials.hardness)
        width, length = 0.22 - 0.04 * self._hardness * rng.random(2)
        taper = 0.15 * self._hardness * rng.uniform(-1.0, 1.0)
        return (width, length, taper), math.exp(self._hardness * rng.uniform(-1.0, 1.0))

    def thrown(self, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        points = shape.copy()
        names = rng.permutation(list(CORNERS))[: 1 + (self._hardness > 0.5)]
        for k, name in enumerate(names):
            corner = shape[CORNERS[name]]
            angle = math.atan2(corner[1], corner[0]) + rng.uniform(-0.3, 0.3)
            points = _turned_in(points, corner, angle, rng.uniform(0.03, 0.055), k + 1)
        return points

    def judge(self, station: Station) -> Judge:
        return DiverseJudge(self.task.stages, station.step_s)

    def script(self) -> type[Script]:
        return DiverseScript

    def signs(self) -> Signs:
        return DiverseSigns()


def _turned_in(points: np.ndarray, corner: np.ndarray, angle: float, deep: float, layer: int) -> np.ndarray:
    """What lies beyond the line `deep` [m] inside the corner, across heading `angle`, laid over onto the
    rest."""
    out = np.array([math.cos(angle), math.sin(angle)])
    beyond = (points[..., :2] - corner[:2]) @ out + deep
    turned = np.maximum(beyond, 0.0)
    moved = points.copy()
    moved[..., :2] -= 2 * turned[..., None] * out
    moved[..., 2] = np.where(beyond > 0, RADIUS + layer * LAYER, moved[..., 2])
    return moved


def _lies_spread(scene: ClothScene, within: float = SPREAD_M) -> bool:
    return bool(scene.spread_errors.max() < within)


def _begun(scene: ClothScene) -> bool:
    """Whether the first fold is under way."""
    return bool(scene.half_errors.min() < 0.6 * np.ptp(scene.shape[..., 1]))


class DiverseJudge(ClothJudge):
    """Stage 0 is spreading; then as with the shirt. Once spread, only a cloth that nobody holds is not."""

    def wanted(self, scene: ClothScene, stage: int) -> int:
        later = super().wanted(scene, max(stage - 1, 0)) + 1
        if later > 1 or _begun(scene):
            return later
        if stage > 0 and (any(scene.holds) or _lies_spread(scene, 1.5 * SPREAD_M)):
            return 1
        return int(_lies_spread(scene))


class DiverseSigns(ClothSigns):
    def to_go(self, scene: ClothScene, stage: int) -> float:
        if stage > 0:
            return super().to_go(scene, stage - 1)
        high = 0.3 * sum(min(tip[2], 0.1) for tip in scene.tips)
        return float(scene.spread_errors.sum()) + high - 0.1 * sum(scene.holds)

    def trouble(self, scene: ClothScene, stage: int, furthest: int) -> str:
        return super().trouble(scene, stage - 1, furthest - 1) if stage > 0 else ""

    def repaired(self, scene: ClothScene, stage: int, wrong: int) -> bool:
        return bool(not any(scene.holds) and stage > wrong and not self.trouble(scene, stage, 0))


class DiverseScript(ClothScript):
    """Pulls the corners to their places first, each hand those of its side."""

    def next_fold(self, scene: ClothScene) -> None:
        if scene.over or _begun(scene) or _lies_spread(scene) or "spread" in self._believes:
            super().next_fold(scene)
        else:
            self._spread(scene)

    def _spread(self, scene: ClothScene) -> None:
        errors = dict(zip(CORNERS, scene.spread_errors, strict=True))
        middle = scene.middle
        moves: Moves = {}
        for arm, side in enumerate(("left", "right")):
            name = max((f"near_{side}", f"far_{side}"), key=lambda n: errors[n])
            if errors[name] > SPREAD_M:
                place = scene.places[CORNERS[name]]
                out = (place - middle) * (1, 1, 0)
                moves[arm] = CORNERS[name], fixed(place + BEYOND_M * out / np.linalg.norm(out))
        self._fold("corner", scene, moves, PULL_Z, "spread", top=True)
