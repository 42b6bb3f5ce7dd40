"""How an attempt at espresso is judged, and what an onlooker sees of it."""

from __future__ import annotations

import math

import numpy as np

from recap_station.sim.arms import Arm, Unreachable, reach_down
from recap_station.sim.judge import Judge
from recap_station.sim.task import Signs
from recap_station.sim.tasks.espresso.scene import (
    BUTTON,
    ENOUGH_DOSE,
    ENOUGH_TAMP,
    GROUP,
    HALF,
    MAT,
    SPOUT,
    TOO_MUCH_SPILLED,
    TURN,
    EspressoScene,
    Thing,
    watery,
)


class EspressoJudge(Judge):
    """Success: a full cup stands on the saucer and the hand is off it."""

    def __init__(self, stages: tuple[str, ...], arms: tuple[Arm, Arm], step_s: float) -> None:
        self._arms = arms
        super().__init__(stages, step_s)

    def wanted(self, scene: EspressoScene, stage: int) -> int:
        c = scene.coffee
        if c["brewed"] >= 1:
            return 6
        if c["brewing"] or (c["locked"] and scene.cup_under and not scene.has_cup):
            return 5
        if c["locked"]:
            return 4
        if not scene.has_filter:
            return 0
        return 3 if c["tamp"] >= 0.3 else 2 if c["dose"] >= 0.45 else 1

    def done(self, scene: EspressoScene) -> bool:
        return (
            scene.coffee["filled"] > 0.7
            and scene.coffee["brewed"] >= 1
            and scene.served
            and not scene.has_cup
        )

    def lost(self, scene: EspressoScene) -> bool:
        c = scene.coffee
        filter_lost = not (scene.has_filter or c["engaged"]) and self._gone(0, scene.filter)
        tamper_lost = not scene.has_tamper and c["tamp"] < ENOUGH_TAMP and scene.tamper.upright < 0.8
        return filter_lost or tamper_lost or (not scene.has_cup and self._gone(1, scene.cup))

    def _gone(self, arm: int, thing: Thing) -> bool:
        """Lies where or as the arm cannot take it; in the air it is falling, which is not lying."""
        try:
            reach_down(self._arms[arm], thing.grasp + np.array([0.0, 0.0, 0.06]), thing.yaw, 0.0)
        except Unreachable:
            return True
        return thing.upright < 0.9

    def broken(self, scene: EspressoScene) -> bool:
        c = scene.coffee
        fallen = min(thing.pos[2] for thing in (scene.filter, scene.cup, scene.tamper)) < -0.05
        return fallen or c["spilled"] > TOO_MUCH_SPILLED or (c["brewed"] >= 1 and watery(c))


class EspressoSigns(Signs):
    """What an onlooker sees. He sees how much coffee is in a basket that leaves the grinder or the mat."""

    def to_go(self, scene: EspressoScene, stage: int) -> float:
        c, right = scene.coffee, scene.tips[1]
        if stage == 0:
            return _far(scene.tips[0], scene.filter.grasp)
        if stage == 1:
            return _far(scene.filter.pos, SPOUT) + 0.3 * (1 - c["dose"])
        if stage == 2:
            to_tamper = 0.0 if scene.has_tamper else 0.3 + _far(right, scene.tamper.pos)
            return (
                _far(scene.filter.pos, MAT) + to_tamper + _far(scene.tamper.pos, MAT) + 0.3 * (1 - c["tamp"])
            )
        if stage == 3:
            raised = 0.0 if c["engaged"] else 0.1
            return _far(scene.filter.pos, GROUP) + raised + 0.3 * (TURN - scene.turned)
        if stage == 5:
            return 0.3 * (1 - c["brewed"]) + (0.0 if c["brewing"] else 0.1 + _far(right, BUTTON))
        goal = GROUP * (1, 1, 0) if stage == 4 else scene.saucer
        to_cup = 0.0 if scene.has_cup else 0.1 + _far(right, scene.cup.grasp)
        if scene.has_tamper:
            to_cup += 0.1 + float(scene.tamper.pos[2])
        elif scene.has_filter:
            to_cup += 0.2 - scene.gaps[0]
        return to_cup + _far(scene.cup.pos, goal) - (0.5 * scene.gaps[1] if scene.has_cup else 0.0)

    def jammed(self, scene: EspressoScene, stage: int) -> bool:
        """Pressed against the head, but not in it."""
        high = scene.filter.pos[2] > GROUP[2] - HALF - 0.012
        return bool(stage == 3 and high and not scene.coffee["engaged"])

    def trouble(self, scene: EspressoScene, stage: int, furthest: int) -> str:
        c = scene.coffee
        if stage == 0 and furthest > 0:
            return "the portafilter was dropped"
        if stage in (2, 3) and c["dose"] < ENOUGH_DOSE and scene.filter_under_spout > 0.08:
            return "too little coffee"
        if stage == 3 and c["tamp"] < ENOUGH_TAMP and not scene.tamper_near:
            return "hardly tamped"
        aside = math.hypot(*(scene.cup.pos - GROUP)[:2])
        if stage == 4 and not scene.has_cup and aside < 0.06 and not scene.cup_under:
            return "the cup stands aside"
        return ""

    def repaired(self, scene: EspressoScene, stage: int, wrong: int) -> bool:
        safe = stage > 0 and scene.filter.pos[2] > 0.05 if wrong == 0 else stage > wrong
        if wrong == 2:
            safe = safe and not scene.tamper_near
        if wrong == 6:
            safe = scene.has_cup and scene.cup.pos[2] > 0.03
        return bool(safe and not self.trouble(scene, stage, 0))


def _far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))
