"""How the expert makes an espresso, step by step.

Its mistakes: a grip on the handle's edge or beside it (the portafilter slips, seen at once); the basket held
aside of the spout (slow, and it spills a little); pushing beside the head (it jams, and comes again). Those
that it does not notice, and that show only when the coffee runs: too little coffee, a tamp cut short, the cup
aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from recap_station.contract import Station
from recap_station.sim.script import up
from recap_station.sim.steps import Spot, Steps
from recap_station.sim.styles import Style
from recap_station.sim.tasks.espresso.scene import (
    BUTTON,
    ENOUGH_DOSE,
    ENOUGH_TAMP,
    FLOOR,
    GROUP,
    HALF,
    KNOB,
    MAT,
    SPOUT,
    TURN,
    EspressoScene,
)

GRIND_YAW, LOCK_YAW, BREW_YAW, SERVE_YAW = 0.9, 0.35, 2.3, 2.5  # headings of filter and cup there
TAMPER_HOME = np.array([0.07, -0.11, 0.002])
LEFT_PARK = np.array([-0.24, -0.06, 0.20])
CARRY_Z = 0.10
CUP_Z = 0.045
GRIP_UP = up(0.003)  # pads a little above a handle's middle, so that they clear the table
UNNOTICED = 0.9  # of the mistakes of its kind, how many are made where nothing shows them yet


Where = Callable[[EspressoScene], Spot]
Phase = Callable[[EspressoScene], None]


class EspressoScript(Steps):
    PAUSE = 3.0

    def __init__(self, station: Station, style: Style, seed: int) -> None:
        super().__init__(station, style, seed)
        self._dosed = self._tamped = False  # as far as it believes
        self._needs = ""
        self._aside = np.zeros(3)
        self._enough = 0.97  # of dose or tamp, where it stops

    def holding(self, scene: EspressoScene) -> tuple[bool, bool]:
        return scene.has_filter, scene.has_tamper or scene.has_cup

    def lost(self, scene: EspressoScene) -> bool:
        if self._needs == "filter":
            return not (scene.has_filter or scene.coffee["locked"])
        held = {"tamper": scene.has_tamper, "cup": scene.has_cup}
        return not held.get(self._needs, True)

    def start(self, scene: EspressoScene) -> None:
        c = scene.coffee
        self._needs = ""
        if c["brewed"] >= 1:
            after = self._to_saucer if scene.has_cup else self._take_cup
            after(scene)
        elif c["brewing"]:
            self.wait("brewing", lambda s: s.coffee["brewed"] >= 1, self.start)
        elif c["locked"]:
            self._after_locking(scene)
        elif c["engaged"]:
            self._turn(scene)
        elif not scene.has_filter:
            self._take_filter(scene)
        elif not (self._dosed or c["dose"] >= ENOUGH_DOSE):
            self._to_grinder(scene)
        elif not (self._tamped or c["tamp"] >= ENOUGH_TAMP):
            self._to_mat(scene)
        elif scene.has_tamper and scene.tamper_near:
            self._tamper_off(scene)
        else:
            self._to_group(scene)

    # ---- the left hand: portafilter ----------------------------------------------------------------

    def _filter_at(self, place: np.ndarray, yaw: float) -> Where:
        return lambda s: self.carried_to(0, s, s.filter, place, yaw)

    def _take_filter(self, scene: EspressoScene) -> None:
        error = np.zeros(3)
        if self._mistake("grasp", self.style.bad_grasp):
            if self._rng.random() < 0.5:  # takes hold of the top edge only
                error[2] = self._rng.uniform(0.020, 0.026)
            else:  # comes down beside it
                across = self._rng.choice([-1.0, 1.0]) * np.array(
                    [-scene.filter.axis[1], scene.filter.axis[0]]
                )
                error[:2] = self._rng.uniform(0.030, 0.040) * across
        spot = lambda s: (s.filter.grasp + GRIP_UP, s.filter.yaw)  # noqa: E731
        self.take(0, "filter", spot, lambda s: s.has_filter, self._lift_filter, error)

    def _lift_filter(self, scene: EspressoScene) -> None:
        self._needs = "filter"
        rise = np.append(scene.filter.pos[:2], CARRY_Z)
        self.bring(0, "filter up", self._filter_at(rise, scene.filter.yaw), self.start)

    def _to_grinder(self, scene: EspressoScene) -> None:
        self._needs = "filter"
        aside = np.zeros(3)
        if self._mistake("grind", UNNOTICED * self.style.misaligned):
            aside[0] = self._rng.choice([-1.0, 1.0]) * self._rng.uniform(0.018, 0.028)
        early = self._mistake("dose", UNNOTICED * self.style.early_release)
        self._enough = self._rng.uniform(0.45, 0.95) if early else 0.97
        place = np.append(SPOUT[:2], CARRY_Z) + aside
        self.bring(0, "filter to the grinder", self._filter_at(place, GRIND_YAW), self._grind)

    def _grind(self, scene: EspressoScene) -> None:
        if not scene.has_tamper:
            self._right.grip(1.0)
            self._right.go(self._knob(scene)[0] + up(0.06), self._knob(scene)[1], self._speed)
        self.wait("grinding", lambda s: s.coffee["dose"] >= self._enough, self._ground)

    def _ground(self, scene: EspressoScene) -> None:
        self._dosed = True
        self._to_mat(scene)

    def _to_mat(self, scene: EspressoScene) -> None:
        self._needs = "filter"
        above = MAT + up(0.05)

        def then(s: EspressoScene) -> None:
            self.bring(0, "filter down", self._filter_at(MAT, 0.0), self._tamp, 0.8, near=0.0, hesitate=False)

        self.bring(0, "filter to the mat", self._filter_at(above, 0.0), then)

    def _to_group(self, scene: EspressoScene) -> None:
        """Below the head, up into it, and turned."""
        self._needs = "filter"
        self._aside = np.zeros(3)
        if self._mistake("lock", self.style.misaligned):
            angle = self._rng.uniform(0.0, 2 * math.pi)
            self._aside[:2] = self._rng.uniform(0.013, 0.020) * np.array([math.cos(angle), math.sin(angle)])
        below = np.append(GROUP[:2], 0.118) + self._aside
        rise = np.append(scene.filter.pos[:2], 0.09)

        def go(s: EspressoScene) -> None:
            self.bring(0, "filter to the head", self._filter_at(below, LOCK_YAW), self._push, near=0.02)

        if scene.filter.pos[2] < 0.06:
            self.bring(0, "filter up", self._filter_at(rise, scene.filter.yaw), go, hesitate=False)
        else:
            go(scene)

    def _push(self, scene: EspressoScene) -> None:
        place = np.append(GROUP[:2], GROUP[2] - HALF + 0.005) + self._aside
        spot = self._filter_at(place, LOCK_YAW)(scene)  # fixed: what does not give way is not pushed harder
        self.bring(0, "filter into the head", lambda s: spot, self._pushed, 0.6, near=0.0)

    def _pushed(self, scene: EspressoScene) -> None:
        begun = self._ticks
        patience = self.style.patience_s / self.station.step_s

        def then(s: EspressoScene) -> None:
            after = self._turn if s.coffee["engaged"] else self._back
            after(s)

        self.wait("pushing", lambda s: s.coffee["engaged"] or self._ticks - begun > patience, then)

    def _back(self, scene: EspressoScene) -> None:
        """It jams: down again, and try anew."""
        tip, yaw = scene.tips[0] - up(0.03), scene.tip_yaws[0]
        self.bring(0, "filter back down", lambda s: (tip, yaw), self.start)

    def _turn(self, scene: EspressoScene) -> None:
        self._needs = "filter"
        goal = scene.filter.yaw + min(0.35, TURN + 0.13 - scene.turned)
        place = np.append(GROUP[:2], scene.filter.pos[2])

        def then(s: EspressoScene) -> None:
            after = self._turn if s.coffee["engaged"] and not s.coffee["locked"] else self.start
            after(s)

        self.bring(0, "turn", self._filter_at(place, goal), then, near=0.02, hesitate=False)

    # ---- the right hand: tamper, cup, button -------------------------------------------------------

    def _knob(self, scene: EspressoScene) -> Spot:
        yaw = scene.tamper.yaw
        return scene.tamper.pos + up(KNOB), yaw - 0.5 * math.pi * round(yaw / (0.5 * math.pi))

    def _tamper_at(self, place: np.ndarray) -> Where:
        def spot(s: EspressoScene) -> Spot:
            quarter = 0.5 * math.pi
            yaw = s.filter.yaw + quarter * round((s.tamper.yaw - s.filter.yaw) / quarter)
            return self.carried_to(1, s, s.tamper, place, yaw)

        return spot

    def _tamp(self, scene: EspressoScene) -> None:
        if not scene.has_tamper:
            self._needs = "filter"
            self.take(1, "tamper", self._knob, lambda s: s.has_tamper, self._lift_tamper)
        else:
            self._lift_tamper(scene)

    def _lift_tamper(self, scene: EspressoScene) -> None:
        self._needs = "tamper"
        above = np.append(scene.filter.pos[:2], scene.filter.pos[2] + 0.05)
        rise = np.append(scene.tamper.pos[:2], above[2])

        def go(s: EspressoScene) -> None:
            self.bring(1, "tamper to the basket", self._tamper_at(above), self._press_coffee, near=0.02)

        self.bring(1, "tamper up", self._tamper_at(rise), go, hesitate=False)

    def _press_coffee(self, scene: EspressoScene) -> None:
        early = self._mistake("tamp", UNNOTICED * self.style.early_release)
        self._enough = self._rng.uniform(0.3, 0.9) if early else 0.97
        place = scene.filter.pos + up(FLOOR - 0.004)

        def over(s: EspressoScene) -> bool:
            return s.coffee["tamp"] >= self._enough or self._since > 4.0

        def pressed(s: EspressoScene) -> None:
            self.wait("tamping", over, self._tamper_off)

        self.bring(1, "tamper down", self._tamper_at(place), pressed, 0.8, near=0.0)

    def _tamper_off(self, scene: EspressoScene) -> None:
        self._tamped = scene.coffee["tamp"] >= min(self._enough, ENOUGH_TAMP)

        def aside(s: EspressoScene) -> None:  # before the basket rises
            spot = self._tamper_at(TAMPER_HOME + up(0.08))(s)
            self.bring(1, "tamper aside", lambda t: spot, self.start, near=0.2, hesitate=False)

        tip, yaw = scene.tips[1] + up(0.07), scene.tip_yaws[1]
        self.bring(1, "tamper off", lambda s: (tip, yaw), aside, hesitate=False)

    def _after_locking(self, scene: EspressoScene) -> None:
        if scene.has_filter:
            self.let_go(0, "filter", self.start)
            return
        self._left.go(LEFT_PARK, 0.0, 0.8 * self._speed)
        if scene.has_tamper:
            self._needs = "tamper"
            over = lambda s: self.let_go(1, "tamper", self.start)  # noqa: E731
            self.bring(1, "tamper home", self._tamper_at(TAMPER_HOME), over, 0.8, near=0.0)
        elif scene.has_cup:
            self._to_tray(scene)
        elif scene.cup_under:
            self._to_button(scene)
        else:
            self._take_cup(scene)

    def _cup_at(self, place: np.ndarray, yaw: float) -> Where:
        return lambda s: self.carried_to(1, s, s.cup, place, yaw)

    def _take_cup(self, scene: EspressoScene) -> None:
        spot = lambda s: (s.cup.grasp + GRIP_UP, s.cup.yaw)  # noqa: E731
        after = self._to_saucer if scene.coffee["brewed"] else self._to_tray
        self.take(1, "cup", spot, lambda s: s.has_cup, after)

    def _to_tray(self, scene: EspressoScene) -> None:
        aside = np.zeros(3)
        if self._mistake("cup", 0.5 * UNNOTICED * self.style.misaligned):
            angle = self._rng.uniform(0.0, 2 * math.pi)
            aside[:2] = self._rng.uniform(0.020, 0.030) * np.array([math.cos(angle), math.sin(angle)])
        self._carry_cup(scene, np.append(GROUP[:2], HALF + 0.001) + aside, BREW_YAW, self._to_button)

    def _to_saucer(self, scene: EspressoScene) -> None:
        self._carry_cup(scene, scene.saucer + up(HALF), SERVE_YAW, self.start)

    def _carry_cup(self, scene: EspressoScene, place: np.ndarray, yaw: float, after: Phase) -> None:
        """Up, over the place, down, and let go."""
        self._needs = "cup"

        def release(s: EspressoScene) -> None:
            self._needs = ""
            self.let_go(1, "cup", after)

        def lower(s: EspressoScene) -> None:
            self.bring(1, "cup down", self._cup_at(place, yaw), release, 0.8, near=0.0, hesitate=False)

        def over(s: EspressoScene) -> None:
            self.bring(
                1, "cup over its place", self._cup_at(np.append(place[:2], CUP_Z), yaw), lower, near=0.02
            )

        rise = np.append(scene.cup.pos[:2], CUP_Z)
        self.bring(1, "cup up", self._cup_at(rise, scene.cup.yaw), over, hesitate=False)

    def _to_button(self, scene: EspressoScene) -> None:
        above, yaw = BUTTON + up(0.05), 0.0
        down = BUTTON + up(0.009)

        def press(s: EspressoScene) -> None:
            self.bring(1, "button", lambda t: (down, yaw), self._pressed, 0.8, near=0.0, hesitate=False)

        self._right.grip(0.0, self._speed)
        self.bring(1, "hand to the button", lambda s: (above, yaw), press, near=0.04)

    def _pressed(self, scene: EspressoScene) -> None:
        def back(s: EspressoScene) -> None:
            self._right.grip(1.0)
            self._right.go(s.cup.grasp + up(0.08), s.cup.yaw, 0.8 * self._speed)
            self.start(s)

        self.bring(1, "hand off the button", lambda s: (BUTTON + up(0.06), 0.0), back, hesitate=False)
