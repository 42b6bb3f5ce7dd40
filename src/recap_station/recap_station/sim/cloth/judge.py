"""How a folding attempt is judged, and what an onlooker sees of it."""

from __future__ import annotations

import numpy as np

from recap_station.sim.cloth.scene import MAT, MID, NEAT, ClothScene
from recap_station.sim.judge import Judge
from recap_station.sim.task import Signs

FOLD, AGAIN, PLACE = range(3)
OUT = (0.42, -0.22, 0.33)  # beyond these |x|, y, y no hand takes the cloth, m


class ClothJudge(Judge):
    """Success: the cloth lies on the mat, folded in four, and nobody holds it."""

    def wanted(self, scene: ClothScene, stage: int) -> int:
        if scene.over and (scene.halved or stage == PLACE):
            return PLACE
        loosely = stage > FOLD and scene.half_errors.max() < 2 * NEAT  # else it would flicker
        return AGAIN if scene.halved or loosely else FOLD

    def done(self, scene: ClothScene) -> bool:
        neat = scene.flat and scene.halved and scene.quartered
        return scene.on_mat and neat and scene.right_way

    def lost(self, scene: ClothScene) -> bool:
        """On the mat in no neat square, or out of reach."""
        if any(scene.holds):
            return False
        x, y = scene.middle[:2]
        return bool(scene.on_mat or abs(x) > OUT[0] or not OUT[1] < y < OUT[2])

    def broken(self, scene: ClothScene) -> bool:
        return bool(scene.middle[2] < -0.05)


class ClothSigns(Signs):
    """What an onlooker sees."""

    def to_go(self, scene: ClothScene, stage: int) -> float:
        high = 0.3 * sum(min(scene.tips[arm][2], 0.1) for arm in (0, 1))
        v = scene.vertices
        if stage == PLACE:
            ends = [v[c].mean(axis=0) for c in (0, -1)]
            left = 2 * _far(scene.middle, MAT)
        else:
            ends = [v[c, 0 if stage == FOLD else MID] for c in (0, -1)]
            left = float((scene.half_errors if stage == FOLD else scene.again_errors).sum())
        taken = [0.0 if scene.holds[k] else _far(scene.tips[k], ends[k]) + 0.1 for k in (0, 1)]
        return left + 0.5 * sum(taken) + high

    def trouble(self, scene: ClothScene, stage: int, furthest: int) -> str:
        if any(scene.holds):
            return ""
        if stage > FOLD and not scene.right_way:
            return "folded with the print inside"
        if stage == FOLD and furthest > FOLD:
            return "the first fold has come open"
        if not scene.halved and (stage > FOLD or scene.over):
            return "the first fold is askew"
        if stage == PLACE and not scene.quartered:
            return "the second fold is askew"
        return ""

    def repaired(self, scene: ClothScene, stage: int, wrong: int) -> bool:
        clear = not any(scene.holds)
        return bool(clear and stage > wrong and not self.trouble(scene, stage, 0))


def _far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm((a - b)[:2]))
