"""How an attempt at box is judged, and what an onlooker sees of it."""

from __future__ import annotations

import numpy as np

from recap_station.sim.arms import Arm, Unreachable, reach_down
from recap_station.sim.judge import Judge
from recap_station.sim.script import up
from recap_station.sim.task import Signs
from recap_station.sim.tasks.box.scene import (
    CAUGHT,
    ENOUGH_PRESSED,
    FLAPS,
    IN_HAND,
    LATCHED,
    MAT,
    ON_BOX,
    OPEN,
    STRAIGHT,
    BoxScene,
)

AWAY = 0.06  # a hand this far from a flap or the label has done with it, m
NEAR = 0.03  # a label nearer to its place than this is about to be pressed on, m
ASKEW = "the label is askew"


class BoxJudge(Judge):
    """Success: the box stands in the crate, all flaps latched, the label straight, no hand on it."""

    def __init__(self, stages: tuple[str, ...], arms: tuple[Arm, Arm], step_s: float) -> None:
        self._arms = arms
        super().__init__(stages, step_s)

    def wanted(self, scene: BoxScene, stage: int) -> int:
        if min(scene.flaps) > OPEN:
            return 3 if scene.state["label"] == ON_BOX else 2
        return 1 if scene.on_mat or max(scene.flaps) > OPEN else 0

    def done(self, scene: BoxScene) -> bool:
        whole = min(scene.flaps) == LATCHED and scene.straight
        return bool(whole and scene.in_crate and not any(scene.held))

    def lost(self, scene: BoxScene) -> bool:
        """Delivered, but not as it should be; or out of reach."""
        if any(scene.held):
            return False
        return scene.in_crate or scene.box.upright < 0.7 or not any(map(self._reaches, (0, 1), [scene] * 2))

    def _reaches(self, arm: int, scene: BoxScene) -> bool:
        try:
            reach_down(self._arms[arm], scene.grasp(arm) + up(0.06), scene.box.yaw, 0.0)
        except Unreachable:
            return False
        return True

    def broken(self, scene: BoxScene) -> bool:
        return bool(scene.box.pos[2] < -0.05 or scene.state["crushed"])


class BoxSigns(Signs):
    """What an onlooker sees. He sees whether a flap stands or leans, and whether the label is flat.

    He remembers what he last saw go wrong, and how many flaps were latched then.
    """

    def __init__(self) -> None:
        self._seen, self._latched = "", 0

    def to_go(self, scene: BoxScene, stage: int) -> float:
        left, right = scene.tips
        if stage == 0:
            to_sheet = 0.0 if scene.held[0] else 0.5 + _far(left, scene.grasp(0))
            return to_sheet + _far(scene.box.pos, MAT)
        if stage == 1:
            return self._to_fold(scene)
        if stage == 2:
            to_hold = 0.0 if scene.held[0] else 0.3 + _far(left, scene.grasp(0))
            to_hold += 0.2 if scene.held[1] else 0.0
            if scene.state["label"] == IN_HAND:
                return to_hold + _far(scene.label.pos, scene.label_place)
            return to_hold + 1.0 + _far(right, scene.label.pos)
        to_box = 0.0 if scene.held[1] else 0.3 + _far(right, scene.grasp(1)) - 0.3 * scene.state["pressed"]
        to_box += 0.1 if scene.held[0] else 0.0
        return to_box + _far(scene.box.pos, scene.crate) - (0.5 * scene.gaps[1] if scene.held[1] else 0.0)

    def _to_fold(self, scene: BoxScene) -> float:
        """To the nearest open flap of the hand that has one to fold, the other hand on the rib."""
        open_ = [i for i, flap in enumerate(scene.flaps) if flap != LATCHED]
        if not open_:
            return 0.0  # the stage is about to change
        arm = max(FLAPS[i].arm for i in open_)
        mine = [i for i in open_ if FLAPS[i].arm == arm]
        other = 1 - arm
        to_go = 0.0 if scene.held[other] else 0.5 + _far(scene.tips[other], scene.grasp(other))
        to_go += 0.2 if scene.held[arm] else 0.0
        edges = [_far(scene.tips[arm], scene.edges[i]) for i in mine]
        return to_go + min(edges) + 2.0 * len(open_) - sum(0.1 * scene.angles[i] for i in mine)

    def trouble(self, scene: BoxScene, stage: int, furthest: int) -> str:
        self._latched = scene.flaps.count(LATCHED)
        self._seen = self._wrong(scene, stage)
        if self._seen or furthest <= stage:
            return self._seen
        if not scene.on_mat and not any(scene.held) and not scene.in_crate:
            return "the box was dropped"
        return {1: "a flap has sprung open", 2: "the label fell off"}.get(stage, "")

    def _wrong(self, scene: BoxScene, stage: int) -> str:
        """What is visibly wrong in this moment, whatever went before."""
        if scene.on_mat and (scene.slipped(0) or scene.slipped(1)):
            return "the sheet slides in the hand"
        for flap, edge, held in zip(FLAPS, scene.edges, scene.flaps, strict=True):
            if held == CAUGHT and _far(scene.tips[flap.arm], edge) > AWAY:
                return f"the {flap.name} flap is not latched"
        ahead = abs(scene.box.rotation[:, 1] @ (scene.label_place - scene.label.pos))
        if scene.state["label"] == IN_HAND and ahead < NEAR and STRAIGHT < scene.label_off < NEAR:
            return ASKEW
        loose = stage == 3 and scene.state["pressed"] < ENOUGH_PRESSED
        if loose and _far(scene.tips[1], scene.label.pos) > AWAY:
            return "the label is loose"
        return ""

    def repaired(self, scene: BoxScene, stage: int, wrong: int) -> bool:
        if self._wrong(scene, stage):
            return False
        if self._seen:
            return any(scene.held) and (self._seen != ASKEW or scene.state["label"] == ON_BOX)
        if wrong == 1 and scene.flaps.count(LATCHED) > self._latched:
            return True
        return bool(stage > wrong or (wrong == 3 and scene.held[1] and scene.box.pos[2] > 0.025))


def _far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))
