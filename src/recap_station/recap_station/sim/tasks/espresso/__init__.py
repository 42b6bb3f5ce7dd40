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
from recap_station.sim.arms import arms_of
from recap_station.sim.grip import GripReader
from recap_station.sim.judge import Judge
from recap_station.sim.script import Script
from recap_station.sim.task import Signs, SimTask, put_free_body
from recap_station.sim.tasks.espresso.judge import EspressoJudge, EspressoSigns
from recap_station.sim.tasks.espresso.scatter import scatter
from recap_station.sim.tasks.espresso.scene import (
    BUTTON,
    EQUALITY,
    FLOOR,
    GROUP,
    HALF,
    HANDLE,
    KNOB,
    KNOB_HALF,
    MEMORY,
    TURN,
    EspressoScene,
    Thing,
    props_mjcf,
    watery,
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
        part = step_s / (WATERY_S if watery(c) else BREW_S)
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
        model.geom_rgba[shown["brew"]] = (0.60, 0.45, 0.25, 0) if watery(c) else (0.25, 0.12, 0.05, 0)
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
