"""The scripted expert's book-keeping, shared by all tasks: phases, pauses, mistakes, tremor, hands.

A task's script is a closed-loop state machine over its Scene: each phase is a method called once per tick.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from recap_station.contract import Station
from recap_station.sim.arms import ARM_DOF, arms_of
from recap_station.sim.motion import TipMotion
from recap_station.sim.styles import Style


def up(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])


class Script:
    """One attempt, or what is left of one: it can begin in any state."""

    PAUSE = 1.0  # by how much a task's pauses are longer than the style says: some steps take more thought

    def __init__(self, station: Station, style: Style, seed: int) -> None:
        self.station, self.style = station, style
        self._rng = np.random.default_rng(seed)
        self._begun = False
        self._ticks = 0
        self._pause = 0.0
        self._lost_s = 0.0
        self._tries: dict[str, int] = {}
        self._tremor = self._rng.uniform(0.0, 2 * math.pi, (2, 3, 3))
        self._speed = style.speed * float(self._rng.uniform(0.9, 1.1))

    # ---- what a task's script gives ----------------------------------------------------------------

    def start(self, scene: Any) -> None:
        """The phase that looks around and enters the one that the scene needs."""
        raise NotImplementedError

    def holding(self, scene: Any) -> tuple[bool, bool]:
        """Which hands hold something, at a beginning."""
        raise NotImplementedError

    def lost(self, scene: Any) -> bool:
        """Whether this phase needs something in a hand that is not there."""
        raise NotImplementedError

    # ---- what the expert calls ---------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """What it is doing, for a person to read."""
        return self._phase.__name__.strip("_")

    def act(self, scene: Any, state: np.ndarray, finished: bool) -> np.ndarray:
        """Command (dof,) of this tick."""
        if not self._begun:
            self._begin(scene, state)
        self._since += self.station.step_s
        if self._pause > 0:
            self._pause -= self.station.step_s
        elif not finished:
            self._notice_loss(scene)
            self._phase(scene)
        self._ticks += 1
        return np.concatenate([self._left.advance(self._shake(0)), self._right.advance(self._shake(1))])

    def _begin(self, scene: Any, state: np.ndarray) -> None:
        left, right = (
            TipMotion(self.station, arm, k * (ARM_DOF + 1), scene.tips[k], scene.tip_yaws[k], state)
            for k, arm in enumerate(arms_of(self.station))
        )
        self._left, self._right, self._begun = left, right, True
        self._phase: Callable[[Any], None] = self.start
        self._enter(self.start, hesitate=False)
        for arm, holds in zip((left, right), self.holding(scene), strict=True):
            if holds:
                arm.grip(0.0)

    # ---- what phases use ---------------------------------------------------------------------------

    def _enter(self, phase: Callable[[Any], None], hesitate: bool = True) -> None:
        self._phase = phase
        self._since = 0.0  # seconds in this phase
        self._fresh = True
        if hesitate and self._rng.random() < self.style.hesitate:
            self._pause = self.PAUSE * float(self._rng.exponential(self.style.pause_s))

    def _first(self) -> bool:
        """True once, on a phase's first tick after its pause."""
        fresh, self._fresh = self._fresh, False
        if fresh:
            self._since = 0.0
        return fresh

    def _mistake(self, kind: str, probability: float) -> bool:
        """Whether to make a mistake now; one just made is less likely to be made again."""
        chance = probability * 0.75 ** self._tries.setdefault(kind, 0)
        self._tries[kind] += 1
        return bool(self._rng.random() < chance)

    def _shake(self, arm: int) -> np.ndarray:
        """Slow smooth noise (3,) of the hand, rising from zero."""
        if not self.style.tremor_m:
            return np.zeros(3)
        t = self._ticks * self.station.step_s
        waves = np.sin(2 * math.pi * np.array([0.31, 0.53, 0.87]) * t + self._tremor[arm])
        rise = min(t, 1.0) ** 2 * (3 - 2 * min(t, 1.0))
        return self.style.tremor_m * rise * waves.sum(axis=1) / 1.5

    def _notice_loss(self, scene: Any) -> None:
        """Look around again when what should be in a hand is not."""
        self._lost_s = self._lost_s + self.station.step_s if self.lost(scene) else 0.0
        if self._lost_s > 0.2:
            self._lost_s = 0.0
            self._enter(self.start)
