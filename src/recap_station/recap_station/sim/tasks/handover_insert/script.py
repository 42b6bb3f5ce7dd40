"""How the expert does handover_insert, phase by phase.

The clean styles make no mistake of their own; the sloppy ones grip badly, let go too early and miss the hole.
"""

from __future__ import annotations

import math

import numpy as np

from recap_station.contract import Station
from recap_station.sim.script import Script, up
from recap_station.sim.styles import Style
from recap_station.sim.tasks.handover_insert.scene import (
    DEEP_ENOUGH,
    GRASP,
    PEG_HALF_WIDTH,
    PegScene,
    left_grasp,
)

HOVER = 0.06  # above a grasp, m
GRASP_Z = 0.003  # pads a little above the peg's middle, so that they clear the table
HANDOVER = np.array([0.0, -0.02, 0.19])  # where the peg's centre is handed over
RIGHT_WAIT = HANDOVER + np.array([GRASP + 0.01, 0.0, HOVER])
LEFT_PARK = np.array([-0.24, -0.06, 0.22])
RIGHT_PARK = np.array([0.20, 0.0, 0.22])
ALIGN_GAP = 0.03  # free end before the hole
PUSH_DEPTH = DEEP_ENOUGH + 0.015


class PegScript(Script):
    def __init__(self, station: Station, style: Style, seed: int) -> None:
        super().__init__(station, style, seed)
        self._aside = np.zeros(3)

    def holding(self, scene: PegScene) -> tuple[bool, bool]:
        return scene.held

    def lost(self, scene: PegScene) -> bool:
        if self._phase in (self._lift, self._carry, self._take, self._close_right):
            return not any(scene.held) and scene.depth < 0.005
        return self._phase in (self._leave, self._align, self._push, self._back) and not scene.held[1]

    # ---- the phases, in the order of a clean attempt ------------------------------------------------

    def start(self, scene: PegScene) -> None:
        left, right = scene.held
        if left and right:
            self._enter(self._close_right, hesitate=False)
        elif right:
            self._enter(self._push if scene.depth > 0 else self._leave, hesitate=False)
        elif left:
            self._enter(self._carry if scene.center[2] > 0.12 else self._lift, hesitate=False)
        elif scene.depth > 0.01:
            self._enter(self._retake)
        else:
            self._enter(self._clear)

    def _clear(self, scene: PegScene) -> None:
        """Open and get both hands up and out of the way before reaching for the peg."""
        over = np.linalg.norm((scene.tips[0] - left_grasp(scene))[:2]) < 0.025
        if self._first():
            self._left.grip(1.0)
            self._right.grip(1.0)
            if scene.tips[0][2] < 0.10 and not over:
                self._left.go(scene.tips[0] + up(0.07), scene.tip_yaws[0], self._speed)
            if scene.tips[1][0] < 0.15:
                self._right.go(scene.tips[1] + np.array([0.04, 0.0, 0.07]), scene.tip_yaws[1], self._speed)
        if max(self._left.left_s, self._right.left_s) < 0.1 and min(scene.gaps) > 0.065:
            if scene.tips[1][0] < 0.15:
                self._right.go(RIGHT_PARK, 0.0, self._speed)
            self._enter(self._reach)

    def _reach(self, scene: PegScene) -> None:
        if self._first():
            self._error = np.zeros(3)
            if self._mistake("grasp", self.style.bad_grasp):
                if self._rng.random() < 0.5:  # takes hold of the top edge only
                    self._error[2] = self._rng.uniform(0.020, 0.026)
                else:  # comes down beside it
                    across = self._rng.choice([-1.0, 1.0]) * np.array([-scene.axis[1], scene.axis[0]])
                    self._error[:2] = self._rng.uniform(0.030, 0.040) * across
            self._left.go(self._grasp(scene) + up(HOVER), scene.yaw, self._speed)
        self._left.follow(self._grasp(scene) + up(HOVER), scene.yaw, self._speed)
        if self._left.left_s < 0.06:
            self._enter(self._descend)

    def _grasp(self, scene: PegScene) -> np.ndarray:
        spot = left_grasp(scene) + self._error
        spot[2] = max(spot[2], PEG_HALF_WIDTH) + GRASP_Z
        return spot

    def _descend(self, scene: PegScene) -> None:
        if self._first():
            self._left.go(self._grasp(scene), scene.yaw, 0.8 * self._speed)
        if self._left.left_s == 0 and self._since > 0.05:
            self._enter(self._close_left)

    def _close_left(self, scene: PegScene) -> None:
        if self._first():
            self._held_s = 0.0
            self._left.grip(0.0, self._speed)
        self._held_s = self._held_s + self.station.step_s if scene.held[0] else 0.0
        if self._held_s > 0.1:
            self._enter(self._lift)
        elif self._since > 0.5 / self._speed:
            self._enter(self._clear)

    def _lift(self, scene: PegScene) -> None:
        """Straight up, so that the peg drags along nothing."""
        if self._first():
            self._left.grip(0.0)
            self._right.grip(1.0)
            above = scene.tips[0] + up(0.08)
            self._left.go(above, scene.tip_yaws[0], self._speed)
            self._right.go(RIGHT_WAIT, 0.0, 0.8 * self._speed)
        if self._left.left_s < 0.16:
            self._enter(self._carry)

    def _carry(self, scene: PegScene) -> None:
        """To the middle, the peg turned along x, while the right hand waits above its right end."""
        goal, yaw = self._with_peg_at(scene, 0, HANDOVER)
        if self._first():
            self._left.grip(0.0)
            self._left.go(goal, yaw, self._speed)
            if not scene.held[1]:
                self._right.grip(1.0)
                self._right.go(RIGHT_WAIT, 0.0, self._speed)
        if max(self._left.left_s, self._right.left_s) < 0.08 and self._since > 0.1:
            self._enter(self._take)

    def _with_peg_at(self, scene: PegScene, arm: int, center: np.ndarray) -> tuple[np.ndarray, float]:
        """Where a hand that holds the peg must go for the peg to lie along x, its centre at `center`."""
        along = float((scene.tips[arm] - scene.center) @ scene.axis)
        drop = float(scene.tips[arm][2] - (scene.center + along * scene.axis)[2])
        return center + np.array([along, 0.0, drop]), scene.tip_yaws[arm] - scene.yaw

    def _take(self, scene: PegScene) -> None:
        """The right hand comes down on the peg's right part."""
        along = GRASP
        if scene.held[0]:  # keep clear of the left hand
            along = max(along, float((scene.tips[0] - scene.center) @ scene.axis) + 0.10)
        spot = scene.center + min(along, 0.085) * scene.axis
        if self._first():
            self._early = scene.held[0] and self._mistake("release", self.style.early_release)
            self._right.go(spot, scene.yaw, 0.8 * self._speed)
        self._right.follow(spot, scene.yaw, self._speed)
        if self._early and self._right.left_s < 0.12:
            self._left.grip(1.0)
        if self._right.left_s == 0:
            self._enter(self._close_right)

    def _close_right(self, scene: PegScene) -> None:
        if self._first():
            self._held_s = 0.0
            self._right.grip(0.0, self._speed)
        self._held_s = self._held_s + self.station.step_s if scene.held[1] else 0.0
        if self._held_s > 0.1:
            self._enter(self._release if scene.held[0] else self._leave)
        elif self._since > 0.5 / self._speed:
            self._enter(self._reopen)

    def _reopen(self, scene: PegScene) -> None:
        """The right hand closed beside the peg: up and once more."""
        if self._first():
            self._right.grip(1.0)
            self._right.go(scene.tips[1] + up(HOVER), scene.tip_yaws[1], self._speed)
        if self._right.left_s == 0:
            self._enter(self.start)

    def _release(self, scene: PegScene) -> None:
        if self._first():
            self._left.grip(1.0, self._speed)
        if scene.gaps[0] > 0.06:
            self._enter(self._leave, hesitate=False)
        elif self._since > 1.0:
            self._enter(self.start)

    def _leave(self, scene: PegScene) -> None:
        """The left hand rises off the peg; then the right one may move."""
        apart = np.abs(scene.tips[0] - scene.center)
        near = apart[0] < 0.16 and apart[1] < 0.08
        if self._first():
            self._left.grip(1.0)
            self._right.grip(0.0)
            if near:
                self._left.go(scene.tips[0] + np.array([-0.02, 0.0, 0.09]), scene.tip_yaws[0], self._speed)
        if not near or self._left.left_s < 0.18 or scene.tips[0][2] > scene.center[2] + 0.05:
            self._left.go(LEFT_PARK, 0.0, 0.8 * self._speed)
            self._enter(self._align)

    def _end_at(self, scene: PegScene, end: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the right hand must go so that the free end is at `end` and the peg along x."""
        along = float((scene.tips[1] - scene.left_end) @ scene.axis)
        offset = scene.tips[1] - (scene.left_end + along * scene.axis)
        return end + np.array([along, offset[1], offset[2]]), scene.tip_yaws[1] - scene.yaw

    def _align(self, scene: PegScene) -> None:
        """Free end before the hole."""
        if self._first():
            self._aside = np.zeros(3)
            if self._mistake("align", self.style.misaligned):
                angle = self._rng.uniform(0.0, 2 * math.pi)
                self._aside[1:] = self._rng.uniform(0.026, 0.036) * np.array(
                    [math.cos(angle), math.sin(angle)]
                )
            goal, yaw = self._end_at(scene, scene.mouth + self._aside + np.array([ALIGN_GAP, 0.0, 0.0]))
            self._right.go(goal, yaw, self._speed)
        target = scene.mouth + self._aside + np.array([ALIGN_GAP, 0.0, 0.0])
        if self._right.left_s < 0.25:
            self._right.follow(*self._end_at(scene, target), self._speed)
        error = np.abs(scene.left_end - target)
        close = (
            error[1:].max() < 0.006 + 1.5 * self.style.tremor_m and error[0] < 0.02 and abs(scene.yaw) < 0.06
        )
        if self._right.left_s < 0.1 and (close or self._since > 2.0 / self._speed):
            self._enter(self._push)

    def _push(self, scene: PegScene) -> None:
        if self._first():
            self._best, self._best_s = -1.0, 0.0
            aside = self._aside if scene.depth < 0 else 0.0 * self._aside
            self._right.grip(0.0)
            goal, yaw = self._end_at(scene, scene.mouth + aside - (PUSH_DEPTH, 0.0, 0.0))
            self._right.go(goal, yaw, 0.6 * self._speed)
        progress = float(scene.mouth[0] - scene.left_end[0])
        if progress > self._best + 0.002:
            self._best, self._best_s = progress, 0.0
        self._best_s += self.station.step_s
        if self._best_s > self.style.patience_s:
            self._enter(self._back)

    def _back(self, scene: PegScene) -> None:
        """It jams: out again, and try anew."""
        if self._first():
            self._right.go(scene.tips[1] + np.array([0.05, 0.0, 0.0]), scene.tip_yaws[1], self._speed)
        if self._right.left_s == 0:
            self._enter(self._align)

    def _retake(self, scene: PegScene) -> None:
        """The peg sticks in the socket and nobody holds it: the right hand goes above its right end."""
        spot = scene.center + 0.07 * scene.axis + up(HOVER)
        if self._first():
            self._right.grip(1.0)
            above = scene.tips[1] + up(0.07)
            self._right.go(above, scene.tip_yaws[1], self._speed)
            self._left.go(LEFT_PARK, 0.0, self._speed)
        if self._right.left_s < 0.05 and scene.gaps[1] > 0.065:
            if np.linalg.norm(self._right.goal[:3] - spot) > 0.02:
                self._right.go(spot, scene.yaw, self._speed)
            else:
                self._enter(self._take)
