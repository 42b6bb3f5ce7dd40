"""How the expert builds a box, step by step.

Its mistakes: a grip beside the rib (seen at once) or a weak one (the sheet slides in the hand while it is
folded); a flap not pushed far enough (it springs back, seen at once, or is caught and springs open when the
box is lifted), or pushed too far (crushed, for good); a label pressed on too shortly (it falls off when the
box is lifted) or off its place (seen at the end, for good); the box let go beside its place in the crate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from recap_station.contract import Station
from recap_station.sim.script import up
from recap_station.sim.steps import Spot, Steps
from recap_station.sim.styles import Style
from recap_station.sim.tasks.box.scene import (
    CATCH,
    CAUGHT,
    CREASE,
    ENOUGH_PRESSED,
    FLAPS,
    IN_HAND,
    LABEL_Z,
    LATCH,
    LATCHED,
    MAT,
    OFFERED,
    ON_BOX,
    OPEN,
    TALL,
    BoxScene,
    Flap,
)

HIGH = 0.085  # of a tip above the table that passes over standing walls
PUSH_Z = 0.034
CARRY_Z = 0.05  # of the box
RISE = 0.10  # of a hand that lets go of the rib: over the walls of a box that is then lifted
LEFT_PARK = np.array([-0.22, -0.10, 0.16])
GRIP_UP = up(0.003)
WEAK = 0.245  # gripper command that only just holds the rib
UNNOTICED = 0.9  # of the mistakes of its kind, how many are made where nothing shows them yet

Phase = Callable[[BoxScene], None]


class BoxScript(Steps):
    PAUSE = 3.0

    def __init__(self, station: Station, style: Style, seed: int) -> None:
        super().__init__(station, style, seed)
        self._holder: int | None = None  # the hand that must not lose the rib
        self._believed: set[str] = set()  # flaps that lean, and seem well to it
        self._stuck = False  # the label, as far as it believes

    def holding(self, scene: BoxScene) -> tuple[bool, bool]:
        return scene.held[0], scene.held[1] or scene.state["label"] == IN_HAND

    def lost(self, scene: BoxScene) -> bool:
        return self._holder is not None and not scene.held[self._holder]

    def start(self, scene: BoxScene) -> None:
        self._holder = None
        flap = self._next_flap(scene)
        built = flap is None and self._labelled(scene)
        slipped = [arm for arm in (0, 1) if scene.slipped(arm)]
        if not built and not scene.on_mat:
            self._fetch(scene)
        elif slipped and scene.on_mat:
            arm = slipped[0]
            self.let_go(arm, "rib", lambda s: self._with_grip(s, arm, self.start))
        elif flap is not None:
            self._with_grip(scene, 1 - flap.arm, lambda s: self._fold(s, flap))
        elif not self._labelled(scene):
            self._with_grip(scene, 0, self._label)
        else:
            self._with_grip(scene, 1, self._to_crate)

    def _next_flap(self, scene: BoxScene) -> Flap | None:
        for flap in FLAPS:
            held = scene.state[flap.name]
            if held == OPEN:
                self._believed.discard(flap.name)
            if held != LATCHED and flap.name not in self._believed:
                return flap
        return None

    def _labelled(self, scene: BoxScene) -> bool:
        if scene.state["label"] != ON_BOX:
            self._stuck = False
            return False
        self._stuck = self._stuck or scene.state["pressed"] >= ENOUGH_PRESSED
        return self._stuck

    # ---- who holds the box -------------------------------------------------------------------------

    def _with_grip(self, scene: BoxScene, arm: int, then: Phase) -> None:
        """`then`, once this hand alone is on the rib."""
        if not scene.held[arm]:
            self._take_rib(scene, arm, lambda s: self._with_grip(s, arm, then))
        elif scene.held[1 - arm]:
            self._holder = arm
            self.let_go(1 - arm, "rib", then, RISE)
        else:
            self._holder = arm
            then(scene)

    def _take_rib(self, scene: BoxScene, arm: int, then: Phase, error: np.ndarray | None = None) -> None:
        spot = lambda s: (s.grasp(arm) + GRIP_UP, s.box.yaw)  # noqa: E731
        self.take(arm, "rib", spot, lambda s: s.held[arm], then, error)

    def _box_at(self, arm: int, place: np.ndarray, yaw: float) -> Callable[[BoxScene], Spot]:
        return lambda s: self.carried_to(arm, s, s.box, place, yaw)

    def _fetch(self, scene: BoxScene) -> None:
        """The sheet, or a box with something amiss, to the mat."""
        if any(scene.held):
            self._with_grip(scene, int(not scene.held[0]), self._lift)
            return
        arm = int(scene.box.pos[0] > 0.06)
        error, weak = np.zeros(3), False
        if self._mistake("grasp", self.style.bad_grasp):
            weak = self._rng.random() < 0.6
            if not weak:  # comes down beside it
                across = self._rng.choice([-1.0, 1.0]) * self._rng.uniform(0.028, 0.036)
                error = across * scene.box.rotation[:, 1]

        def lift(s: BoxScene) -> None:
            if weak:
                self.hand(arm).grip(WEAK)
            self._lift(s)

        self._take_rib(scene, arm, lift, error)

    def _lift(self, scene: BoxScene) -> None:
        arm = int(scene.held[1])
        self._holder = arm

        def down(s: BoxScene) -> None:
            self.bring(
                arm, "sheet down", self._box_at(arm, MAT, 0.0), self.start, 0.8, near=0.0, hesitate=False
            )

        def over(s: BoxScene) -> None:
            self.bring(arm, "sheet to the mat", self._box_at(arm, MAT + up(0.03), 0.0), down, near=0.02)

        rise = np.append(scene.box.pos[:2], CARRY_Z)
        if scene.box.pos[2] < CARRY_Z - 0.01:
            self.bring(arm, "sheet up", self._box_at(arm, rise, scene.box.yaw), over, hesitate=False)
        else:
            over(scene)

    # ---- flaps -------------------------------------------------------------------------------------

    def _pusher(self, flap: Flap, beyond: float, height: float) -> Callable[[BoxScene], Spot]:
        def spot(s: BoxScene) -> Spot:
            x, y = flap.pusher(beyond)
            return np.append(s.box.at(x, y, 0.0)[:2], height), s.box.yaw

        return spot

    def _clear(self, scene: BoxScene, arm: int, then: Phase) -> None:
        """Up, so that the hand passes over the walls."""
        tip, yaw = scene.tips[arm].copy(), scene.tip_yaws[arm]
        if tip[2] > HIGH - 0.015:
            then(scene)
            return
        tip[2] = HIGH
        self.bring(arm, "hand up", lambda s: (tip, yaw), then, hesitate=False)

    def _how_far(self) -> tuple[float, bool]:
        """Where a push ends, metres before the hinge, and whether a flap that leans then seems well."""
        if not self._mistake("fold", self.style.misaligned):
            return 0.003, False
        kind = self._rng.random()
        if kind < 0.08:  # crushes it
            return -self._rng.uniform(0.014, 0.022), False
        low, high = (CATCH + 0.07, LATCH - 0.05) if kind < 0.6 else (CREASE + 0.15, CATCH - 0.1)
        return TALL * math.cos(self._rng.uniform(low, high)), bool(self._rng.random() < UNNOTICED)

    def _fold(self, scene: BoxScene, flap: Flap) -> None:
        arm, name = flap.arm, f"{flap.name} flap"
        beyond, unnoticed = self._how_far()
        outside = TALL + 0.012

        def back(s: BoxScene) -> None:
            self.bring(arm, f"off the {name}", self._pusher(flap, 0.03, PUSH_Z + 0.01), after, hesitate=False)

        def after(s: BoxScene) -> None:
            if unnoticed and s.state[flap.name] == CAUGHT:
                self._believed.add(flap.name)
            self.start(s)

        def push(s: BoxScene) -> None:
            spot = self._pusher(flap, beyond, PUSH_Z)(s)  # fixed: what slides away is not pursued
            self.bring(arm, f"push the {name}", lambda t: spot, pushed, 0.7, near=0.0, hesitate=False)

        def pushed(s: BoxScene) -> None:  # the arm lags behind
            self.wait(f"push the {name}", lambda t: t.state[flap.name] == LATCHED or self._since > 0.3, back)

        def down(s: BoxScene) -> None:
            spot = self._pusher(flap, outside, PUSH_Z)
            self.bring(arm, f"down by the {name}", spot, push, near=0.04, hesitate=False)

        def over(s: BoxScene) -> None:
            self.hand(arm).grip(0.0)
            self.bring(arm, f"to the {name}", self._pusher(flap, outside, HIGH), down, near=0.06)

        self._clear(scene, arm, over)

    # ---- the label ---------------------------------------------------------------------------------

    def _label(self, scene: BoxScene) -> None:
        self._right.grip(0.0)
        self._clear(scene, 1, self._stick if scene.state["label"] != OFFERED else self._to_dispenser)

    def _to_dispenser(self, scene: BoxScene) -> None:
        aside = 0.0
        if self._mistake("touch", self.style.misaligned):
            aside = self._rng.choice([-1.0, 1.0]) * self._rng.uniform(0.008, 0.030)
        before = lambda s: (s.dispenser + np.array([aside, -0.05, 0.0]), 0.0)  # noqa: E731
        touching = lambda s: (s.dispenser + np.array([aside, -0.0105, 0.0]), 0.0)  # noqa: E731

        def touch(s: BoxScene) -> None:
            self.bring(1, "touch the label", touching, away, 0.7, near=0.0, hesitate=False)

        def away(s: BoxScene) -> None:
            off = before(s)[0] + up(HIGH - LABEL_Z)
            self.bring(1, "label off", lambda t: (off, 0.0), self.start, hesitate=False)

        self.bring(1, "to the label", before, touch, near=0.04)

    def _stick(self, scene: BoxScene) -> None:
        aside, enough = np.zeros(3), 0.97
        if self._mistake("label", 0.6 * self.style.misaligned):
            angle = self._rng.uniform(0.0, 2 * math.pi)
            aside = self._rng.uniform(0.011, 0.016) * np.array([math.cos(angle), 0.0, 0.7 * math.sin(angle)])
        if self._mistake("press", UNNOTICED * self.style.early_release):
            enough = self._rng.uniform(0.35, 0.7)

        def at(out: float, height: float | None = None) -> Callable[[BoxScene], Spot]:
            def spot(s: BoxScene) -> Spot:
                if s.state["label"] == ON_BOX:  # loosely: it wants pressing once more
                    tip, yaw = s.label.at(0.0, -out - 0.011, 0.0), s.box.yaw
                else:
                    place = s.label_place + s.box.rotation @ (aside - np.array([0.0, out, 0.0]))
                    tip, yaw = self.carried_to(1, s, s.label, place, s.box.yaw)
                return tip if height is None else np.append(tip[:2], height), yaw

            return spot

        def down(s: BoxScene) -> None:
            self.bring(1, "label down", at(0.045), onto, near=0.02, hesitate=False)

        def onto(s: BoxScene) -> None:
            press, yaw = at(-0.003)(s)
            self.bring(1, "press the label", lambda t: (press, yaw), hold, 0.6, near=0.0)

        def hold(s: BoxScene) -> None:
            begun = self._ticks
            over = lambda t: t.state["pressed"] >= enough or self._ticks - begun > 120  # noqa: E731
            self.wait("pressing", over, off)

        def off(s: BoxScene) -> None:
            self._stuck = s.state["pressed"] >= min(enough, ENOUGH_PRESSED)
            tip, yaw = s.tips[1] - 0.04 * s.box.rotation[:, 1], s.tip_yaws[1]
            self.bring(1, "off the label", lambda t: (tip, yaw), self.start, hesitate=False)

        self.bring(1, "label to the box", at(0.045, HIGH), down, near=0.04)

    # ---- the crate ---------------------------------------------------------------------------------

    def _to_crate(self, scene: BoxScene) -> None:
        aside = np.zeros(3)
        if self._mistake("crate", 0.5 * self.style.misaligned):
            angle = self._rng.uniform(0.0, 2 * math.pi)
            aside[:2] = self._rng.uniform(0.026, 0.034) * np.array([math.cos(angle), math.sin(angle)])
        blind = self._mistake("look", UNNOTICED * self.style.early_release)

        def release(s: BoxScene) -> None:
            self._holder = None
            self.let_go(1, "box", self.start)

        def down(s: BoxScene) -> None:
            place = s.crate + aside + up(0.003)
            self.bring(1, "box down", self._box_at(1, place, 0.0), release, 0.8, near=0.0, hesitate=False)

        def over(s: BoxScene) -> None:
            if not blind and not (self._next_flap(s) is None and self._labelled(s)):
                self.start(s)  # something has sprung open or fallen off
                return
            place = s.crate + aside + up(CARRY_Z)
            self.bring(1, "box over the crate", self._box_at(1, place, 0.0), down, near=0.02)

        rise = np.append(scene.box.pos[:2], CARRY_Z)
        self._left.go(LEFT_PARK, 0.0, 0.8 * self._speed)
        self.bring(1, "box up", self._box_at(1, rise, scene.box.yaw), over, hesitate=False)
