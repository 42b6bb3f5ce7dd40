"""An espresso: ground into the portafilter, tamped, locked into the machine, brewed into the cup, served.

The left hand takes the portafilter by its handle, holds its basket under the grinder's spout, sets it down on
the mat; the right hand presses the tamper into it; the left one pushes it up into the brewing head and turns
it until it locks. The right hand puts the cup under it, presses the button, and brings the full cup to the
saucer.

Grips are friction. What sticks is the portafilter in the head: pushed up level and in the middle it is held
by a weld to a hinge while the hand holds it, and for good once turned. Coffee is an account, not a fluid: it
is dosed while the basket is under the spout, spilled where a vessel tips or nothing stands below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from recap_station.contract import Station
from recap_station.sim.arms import Arm, Unreachable, arms_of, reach_down
from recap_station.sim.grip import GripReader
from recap_station.sim.judge import Judge
from recap_station.sim.script import Script
from recap_station.sim.task import Signs, SimTask, put_free_body
from recap_station.sim.tasks.espresso.scatter import scatter
from recap_station.sim.tasks.espresso.scene import (
    BUTTON,
    ENOUGH_DOSE,
    ENOUGH_TAMP,
    EQUALITY,
    FLOOR,
    GROUP,
    HALF,
    HANDLE,
    KNOB,
    KNOB_HALF,
    MAT,
    MEMORY,
    SPOUT,
    TOO_MUCH_SPILLED,
    TURN,
    EspressoScene,
    Thing,
    props_mjcf,
)
from recap_station.sim.tasks.espresso.script import LOCK_YAW, EspressoScript

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

GRIND_S, TAMP_S, BREW_S, WATERY_S = (
    1.6,
    0.5,
    2.5,
    1.2,
)  # for a whole dose, tamp, cup; without a proper dose and tamp


@dataclass(frozen=True)
class Dials:
    """Section `sim:` of the task's YAML: where things stand at the start. Metres and radians."""

    filter_x: tuple[float, float] = (-0.16, -0.10)
    filter_y: tuple[float, float] = (-0.19, -0.13)
    filter_yaw: tuple[float, float] = (-0.25, 0.25)
    cup_x: tuple[float, float] = (0.13, 0.18)
    cup_y: tuple[float, float] = (0.03, 0.08)
    cup_yaw: tuple[float, float] = (2.9, 3.4)
    tamper_x: tuple[float, float] = (0.05, 0.10)
    tamper_y: tuple[float, float] = (-0.13, -0.09)
    saucer_x: tuple[float, float] = (0.19, 0.23)
    saucer_y: tuple[float, float] = (-0.10, -0.06)


class Espresso(SimTask):
    KEYPOINTS = ("basket", "basket_handle", "cup", "cup_handle", "tamper", "saucer")
    Dials = Dials

    def mjcf(self) -> str:
        return props_mjcf()

    def assets_mjcf(self) -> str:
        return EQUALITY

    def bind(self, model: mujoco.MjModel) -> None:
        self._bodies = [model.body(name).id for name in ("filter", "cup", "tamper", "saucer")]
        self._weld = model.equality("bayonet").id
        self._hinge = model.joint("bayonet").qposadr[0]
        self._hinge_v = model.joint("bayonet").dofadr[0]
        self._bayonet = model.body("bayonet").id
        names = ("filter_inside", "cup_inside", "grind", "brew", "button")
        self._shown = {name: model.geom(name).id for name in names}

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        d = self.dials
        self.memory = np.zeros(len(MEMORY))
        for name, height in (("filter", HALF), ("cup", HALF), ("tamper", 0.0)):
            x, y = rng.uniform(*getattr(d, name + "_x")), rng.uniform(*getattr(d, name + "_y"))
            yaw = rng.uniform(*getattr(d, name + "_yaw")) if hasattr(d, name + "_yaw") else 0.0
            put_free_body(model, data, name, np.array([x, y, height]), yaw)
        data.mocap_pos[0] = (rng.uniform(*d.saucer_x), rng.uniform(*d.saucer_y), 0.001)
        self.show(model)

    def read(self, data: mujoco.MjData, grips: GripReader, memory: np.ndarray) -> EspressoScene:
        hands = grips.read(data)
        basket, cup, tamper = (
            Thing(data.xpos[i].copy(), data.xmat[i].reshape(3, 3).copy()) for i in self._bodies[:3]
        )
        half = 0.5 * (HANDLE[1] - HANDLE[0])
        knob = np.abs(hands.tips[1] - tamper.pos - KNOB * tamper.rotation[:, 2]).max()
        return EspressoScene(
            hands, basket, cup, tamper, data.xpos[self._bodies[3]].copy(), float(data.qpos[self._hinge]),
            dict(zip(MEMORY, memory.tolist(), strict=True)),
            hands.hold_bar(0, basket.handle, basket.axis, half, HALF),
            bool(knob < 0.022 and hands.gaps[1] < 2 * KNOB_HALF + 0.007),
            hands.hold_bar(1, cup.handle, cup.axis, half, HALF),
        )  # fmt: skip

    # ---- what physics does not do by itself --------------------------------------------------------

    def tick(self, model: mujoco.MjModel, data: mujoco.MjData, scene: EspressoScene, step_s: float) -> bool:
        c = dict(scene.coffee)
        off = scene.filter_under_spout
        grinding = off < 0.04 and c["dose"] < 1 and not c["engaged"]
        if grinding:
            part = step_s / GRIND_S
            c["dose"] = min(1.0, c["dose"] + (part if off < 0.016 else 0.4 * part))
            c["spilled"] += 0.0 if off < 0.016 else 0.09 * part
        if scene.has_tamper and c["dose"] > 0.3 and _foot_on_coffee(scene):
            c["tamp"] = min(1.0, c["tamp"] + step_s / TAMP_S)
        self._bayonet_tick(model, data, scene, c)
        self._brew_tick(scene, c, step_s)
        if (c["dose"] > 0 and scene.filter.upright < 0.8 and not c["brewed"]) or (
            c["filled"] > 0 and scene.cup.upright < 0.85
        ):
            c["spilled"] = 1.0
        self.memory = np.array([c[name] for name in MEMORY])
        self.show(model, grinding)
        return True

    def _bayonet_tick(
        self, model: mujoco.MjModel, data: mujoco.MjData, scene: EspressoScene, c: dict[str, float]
    ) -> None:
        if c["locked"]:
            return
        if c["engaged"]:
            if scene.turned >= TURN:
                c["locked"] = 1.0
            elif not scene.has_filter:
                data.eq_active[self._weld] = 0
                c["engaged"] = 0.0
            return
        off = scene.filter.pos - GROUP + np.array([0.0, 0.0, HALF])
        level = scene.filter.upright > 0.97 and abs(scene.filter.yaw - LOCK_YAW) < 0.3
        if scene.has_filter and math.hypot(off[0], off[1]) < 0.010 and off[2] > -0.006 and level:
            data.qpos[self._hinge] = data.qvel[self._hinge_v] = 0.0
            quat = np.empty(4)
            mujoco.mju_mat2Quat(quat, scene.filter.rotation.ravel())
            # body2's pose in body1, which stands upright while the hinge is at zero
            model.eq_data[self._weld, 0:3] = 0.0
            model.eq_data[self._weld, 3:6] = scene.filter.pos - data.xpos[self._bayonet]
            model.eq_data[self._weld, 6:10] = quat
            data.eq_active[self._weld] = 1
            c["engaged"] = 1.0

    @staticmethod
    def _brew_tick(scene: EspressoScene, c: dict[str, float], step_s: float) -> None:
        tip = scene.tips[1] - BUTTON
        if not (c["brewing"] or c["brewed"]) and math.hypot(tip[0], tip[1]) < 0.02 and -0.01 < tip[2] < 0.017:
            c["brewing"] = 1.0
        if not c["brewing"]:
            return
        part = step_s / (WATERY_S if _watery(c) else BREW_S)
        c["brewed"] = min(1.0, c["brewed"] + part)
        c["filled" if c["locked"] and scene.cup_under else "spilled"] += part
        if c["brewed"] >= 1:
            c["brewing"] = 0.0

    def show(self, model: mujoco.MjModel, grinding: bool = False) -> None:
        """Make the memory visible: coffee in basket and cup, what runs, the button's light."""
        c = dict(zip(MEMORY, self.memory.tolist(), strict=True))
        shown = self._shown
        level = FLOOR + 0.002 + 0.018 * c["dose"] - 0.006 * c["tamp"]
        model.geom_pos[shown["filter_inside"], 2] = level
        model.geom_rgba[shown["filter_inside"]] = (
            *(0.36 - 0.18 * c["tamp"], 0.20 - 0.10 * c["tamp"], 0.08),
            c["dose"] > 0,
        )
        model.geom_pos[shown["cup_inside"], 2] = FLOOR + 0.002 + 0.016 * c["filled"]
        model.geom_rgba[shown["cup_inside"], 3] = c["filled"] > 0
        model.geom_rgba[shown["grind"], 3] = grinding
        model.geom_rgba[shown["brew"]] = (0.60, 0.45, 0.25, 0) if _watery(c) else (0.25, 0.12, 0.05, 0)
        model.geom_rgba[shown["brew"], 3] = c["brewing"]
        model.geom_rgba[shown["button"], :3] = (
            (0.1, 0.85, 0.2) if c["brewing"] or c["brewed"] else (0.9, 0.9, 0.9)
        )

    # ---- the rest of the seam ----------------------------------------------------------------------

    def judge(self, station: Station) -> Judge:
        return EspressoJudge(self.task.stages, arms_of(station), station.step_s)

    def script(self) -> type[Script]:
        return EspressoScript

    def signs(self) -> Signs:
        return EspressoSigns()

    def scatter(self, cell: Cell, rng: np.random.Generator) -> None:
        scatter(cell, rng)


def _foot_on_coffee(scene: EspressoScene) -> bool:
    x, y, z = scene.filter.rotation.T @ (scene.tamper.pos - scene.filter.pos)
    return bool(max(abs(x), abs(y)) < 0.012 and z < FLOOR + 0.004 and scene.tamper.upright > 0.95)


def _watery(c: dict[str, float]) -> bool:
    return c["dose"] < ENOUGH_DOSE or c["tamp"] < ENOUGH_TAMP


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
        return fallen or c["spilled"] > TOO_MUCH_SPILLED or (c["brewed"] >= 1 and _watery(c))


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
