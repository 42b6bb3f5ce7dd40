"""Steps of a cloth's script: take it with one hand or both, bring it somewhere, let it go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recap_station.contract import Station
from recap_station.sim.cloth.scene import ClothScene
from recap_station.sim.motion import TipMotion
from recap_station.sim.script import Script, up
from recap_station.sim.steps import LOWEST
from recap_station.sim.styles import Style

Where = Callable[[ClothScene], np.ndarray]  # where a tip goes (3,) [m]
Hands = dict[int, Where]  # by arm
Phase = Callable[[ClothScene], None]
HOVER = 0.05
HOLDING_YAW = (0.0, 0.0)


class ClothSteps(Script):
    """`take`, `bring`, `let_go`: each enters a phase that ends in `then`; `take` in `start` if it fails."""

    def __init__(self, station: Station, style: Style, seed: int) -> None:
        super().__init__(station, style, seed)
        self._about = ""
        self._needs: tuple[int, ...] = ()

    @property
    def phase(self) -> str:
        return f"{self._phase.__name__.strip('_')} {self._about}".strip()

    def holding(self, scene: ClothScene) -> tuple[bool, bool]:
        return scene.holds

    def lost(self, scene: ClothScene) -> bool:
        return any(not scene.holds[arm] for arm in self._needs)

    def hand(self, arm: int) -> TipMotion:
        return self._right if arm else self._left

    def take(
        self, about: str, hands: Hands, then: Phase, errors: dict[int, np.ndarray] | None = None
    ) -> None:
        """Come down on the spots, open, and close; `errors` (3,) [m] is by how much a hand misses."""
        self._about, self._hands, self._then, self._errors = about, hands, then, errors or {}
        self._enter(self._reach)

    def bring(
        self,
        about: str,
        hands: Hands,
        then: Phase,
        pace: float = 1.0,
        near: float = 0.08,
        hesitate: bool = False,
    ) -> None:
        """Move to the spots, looked at again on the way; ends `near` seconds before the hands stand still."""
        self._about, self._hands, self._then, self._pace, self._near = about, hands, then, pace, near
        self._enter(self._move, hesitate=hesitate)

    def let_go(self, about: str, arms: tuple[int, ...], then: Phase, rise: float = 0.07) -> None:
        self._about, self._arms, self._then, self._rise = about, arms, then, rise
        self._needs = ()
        self._enter(self._open)

    # ---- phases ------------------------------------------------------------------------------------

    def _go(self, arm: int, scene: ClothScene, tip: np.ndarray, pace: float, fresh: bool) -> None:
        hand = self.hand(arm)
        tip = np.append(tip[:2], max(tip[2], LOWEST))
        if fresh:
            hand.go(tip, 0.0, pace * self._speed)
        elif hand.left_s < 0.3:
            hand.follow(tip, 0.0, pace * self._speed)

    def _left_s(self) -> float:
        return max(self.hand(arm).left_s for arm in self._hands)

    def _reach(self, scene: ClothScene) -> None:
        fresh = self._first()
        if fresh:
            self._high = all(
                scene.tips[arm][2] > 0.04 or np.linalg.norm((scene.tips[arm] - spot(scene))[:2]) < 0.03
                for arm, spot in self._hands.items()
            )
        for arm, spot in self._hands.items():
            hand = self.hand(arm)
            if fresh:
                hand.grip(1.0)
                if not self._high:
                    hand.go(np.append(scene.tips[arm][:2], HOVER), 0.0, self._speed)
            if self._high:
                above = spot(scene) + self._errors.get(arm, np.zeros(3)) + up(HOVER)
                self._go(arm, scene, above, 1.0, bool(np.linalg.norm(hand.goal[:3] - above) > 0.02))
        if not self._high:
            self._high = self._left_s() < 0.1
        elif self._left_s() < 0.06 and all(scene.gaps[arm] > 0.07 for arm in self._hands):
            self._enter(self._descend, hesitate=False)

    def _descend(self, scene: ClothScene) -> None:
        if self._first():
            for arm, spot in self._hands.items():
                down = spot(scene) + self._errors.get(arm, np.zeros(3))
                self._go(arm, scene, down, 0.8, True)
        if self._left_s() == 0 and self._since > 0.05:
            self._enter(self._close, hesitate=False)

    def _close(self, scene: ClothScene) -> None:
        if self._first():
            for arm in self._hands:
                self.hand(arm).grip(0.0, self._speed)
        if all(scene.holds[arm] for arm in self._hands):
            self._needs = tuple(self._hands)
            self._then(scene)
        elif self._since > 0.7 / self._speed:
            self.let_go("what it missed", tuple(self._hands), self.start, HOVER)

    def _move(self, scene: ClothScene) -> None:
        fresh = self._first()
        for arm, spot in self._hands.items():
            self._go(arm, scene, spot(scene), self._pace, fresh)
        if self._left_s() <= self._near:
            self._then(scene)

    def _open(self, scene: ClothScene) -> None:
        if self._first():
            self._risen = False
            for arm in self._arms:
                self.hand(arm).grip(1.0, self._speed)
        if not self._risen and (all(scene.gaps[arm] > 0.05 for arm in self._arms) or self._since > 1.0):
            self._risen = True
            for arm in self._arms:
                self.hand(arm).go(scene.tips[arm] + up(self._rise), 0.0, self._speed)
        if self._risen and max(self.hand(arm).left_s for arm in self._arms) < 0.1:
            self._then(scene)
