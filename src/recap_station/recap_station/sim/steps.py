"""Steps that several tasks' scripts share: take a thing with a hand, bring it somewhere, let go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from recap_station.contract import Station
from recap_station.sim.motion import TipMotion
from recap_station.sim.script import Script, up
from recap_station.sim.styles import Style

Spot = tuple[np.ndarray, float]  # tip (3,) [m], heading of the bar [rad]
HOVER = 0.06
LOWEST = 0.0145  # of a tip: fingers pressed on the table cannot open, m


def nearest_turn(angle: float) -> float:
    """The same heading within half a turn of zero."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


class Steps(Script):
    """`take`, `bring`, `let_go`, `wait`: each enters a phase that ends in `then`, or `start` if it fails."""

    def __init__(self, station: Station, style: Style, seed: int) -> None:
        super().__init__(station, style, seed)
        self._error = np.zeros(3)
        self._about = ""

    @property
    def phase(self) -> str:
        return f"{self._phase.__name__.strip('_')} {self._about}".strip()

    def hand(self, arm: int) -> TipMotion:
        return self._right if arm else self._left

    def take(
        self,
        arm: int,
        about: str,
        spot: Callable[[Any], Spot],
        held: Callable[[Any], bool],
        then: Callable[[Any], None],
        error: np.ndarray | None = None,
        hover: float = HOVER,
    ) -> None:
        """Come down on `spot` from above, open, and close; `error` (3,) [m] is by how much it misses."""
        self._arm, self._about, self._spot, self._held, self._then = arm, about, spot, held, then
        self._error = np.zeros(3) if error is None else error
        self._hover = hover
        self._enter(self._reach)

    def bring(
        self,
        arm: int,
        about: str,
        spot: Callable[[Any], Spot],
        then: Callable[[Any], None],
        pace: float = 1.0,
        near: float = 0.08,
        hesitate: bool = True,
    ) -> None:
        """Move to `spot`, looked at again on the way; ends `near` seconds before the hand stands still."""
        self._arm, self._about, self._spot, self._then = arm, about, spot, then
        self._pace, self._near = pace, near
        self._enter(self._move, hesitate=hesitate)

    def let_go(self, arm: int, about: str, then: Callable[[Any], None], rise: float = 0.08) -> None:
        self._arm, self._about, self._then, self._rise = arm, about, then, rise
        self._enter(self._open)

    def wait(self, about: str, until: Callable[[Any], bool], then: Callable[[Any], None]) -> None:
        self._about, self._until, self._then = about, until, then
        self._enter(self._wait, hesitate=False)

    def carried_to(self, arm: int, scene: Any, thing: Any, place: np.ndarray, yaw: float) -> Spot:
        """Where a hand that holds `thing` (with pos and yaw) must go for it to be at `place` with `yaw`."""
        turn = nearest_turn(yaw - thing.yaw)
        c, s = math.cos(turn), math.sin(turn)
        off = scene.tips[arm] - thing.pos
        moved = np.array([c * off[0] - s * off[1], s * off[0] + c * off[1], off[2]])
        return place + moved, scene.tip_yaws[arm] + turn

    # ---- phases ------------------------------------------------------------------------------------

    def _reach(self, scene: Any) -> None:
        hand, tip = self.hand(self._arm), scene.tips[self._arm]
        spot, yaw = self._spot(scene)
        above = spot + self._error + up(self._hover)
        if self._first():
            self._high = tip[2] > above[2] - 0.02 or np.linalg.norm((tip - above)[:2]) < 0.03
            hand.grip(1.0)
            if not self._high:
                hand.go(np.array([tip[0], tip[1], above[2]]), scene.tip_yaws[self._arm], self._speed)
        if not self._high:
            if hand.left_s > 0.1:
                return
            self._high = True
        if np.linalg.norm(hand.goal[:3] - above) > 0.02:
            hand.go(above, yaw, self._speed)
        hand.follow(above, yaw, self._speed)
        if hand.left_s < 0.06 and scene.gaps[self._arm] > 0.07:
            self._enter(self._descend)

    def _descend(self, scene: Any) -> None:
        hand = self.hand(self._arm)
        spot, yaw = self._spot(scene)
        if self._first():
            hand.go(spot + self._error, yaw, 0.8 * self._speed)
        if hand.left_s == 0 and self._since > 0.05:
            self._enter(self._close)

    def _close(self, scene: Any) -> None:
        if self._first():
            self._held_s = 0.0
            self.hand(self._arm).grip(0.0, self._speed)
        self._held_s = self._held_s + self.station.step_s if self._held(scene) else 0.0
        if self._held_s > 0.1:
            self._then(scene)
        elif self._since > 0.6 / self._speed:
            self._enter(self._retreat)

    def _retreat(self, scene: Any) -> None:
        """It closed beside the thing: up and once more."""
        hand = self.hand(self._arm)
        if self._first():
            hand.grip(1.0)
            hand.go(scene.tips[self._arm] + up(self._hover), scene.tip_yaws[self._arm], self._speed)
        if hand.left_s == 0:
            self._enter(self.start)

    def _move(self, scene: Any) -> None:
        hand = self.hand(self._arm)
        spot, yaw = self._spot(scene)
        spot = np.append(spot[:2], max(spot[2], LOWEST))
        if self._first():
            hand.go(spot, yaw, self._pace * self._speed)
        elif hand.left_s < 0.3:
            hand.follow(spot, yaw, self._pace * self._speed)
        if hand.left_s <= self._near:
            self._then(scene)

    def _open(self, scene: Any) -> None:
        hand = self.hand(self._arm)
        if self._first():
            self._risen = False
            hand.grip(1.0, self._speed)
        if not self._risen and (scene.gaps[self._arm] > 0.06 or self._since > 1.0):
            self._risen = True
            hand.go(scene.tips[self._arm] + up(self._rise), scene.tip_yaws[self._arm], self._speed)
        if self._risen and hand.left_s < 0.12:
            self._then(scene)

    def _wait(self, scene: Any) -> None:
        self._first()
        if self._until(scene):
            self._then(scene)
