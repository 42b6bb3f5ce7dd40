"""A box: a creased sheet picked up, folded, labelled, and put into the crate.

The left hand takes the sheet by its rib and brings it to the mat. One hand holds the rib while the other
pushes flaps up: the right hand those at the back, the right and the front, then, hands changed, the left hand
the last. The right hand touches a label off the dispenser, presses it on the front wall, and puts the box
into the crate.

Grips are friction; without a holding hand, the sheet slides away from a push. Hinges are springs: a flap that
is pushed far enough latches, by a stiffer spring about the upright; one pushed a little less is caught, and
springs open once the box is lifted; one pushed too far is crushed. The label is glued: it follows the finger
that touched it, then the wall it is pressed on; pressed too shortly, it falls off when the box is lifted, and
the dispenser shows the next.
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
from recap_station.sim.tasks.box.judge import BoxJudge, BoxSigns
from recap_station.sim.tasks.box.scatter import scatter
from recap_station.sim.tasks.box.scene import (
    CATCH,
    CAUGHT,
    CREASE,
    CRUSH,
    ENOUGH_PRESSED,
    FLAPS,
    FRONT,
    HALF_X,
    IN_HAND,
    LABEL,
    LABEL_AT,
    LABEL_Z,
    LATCH,
    LATCHED,
    LIMP,
    MEMORY,
    OFFERED,
    ON_BOX,
    OPEN,
    RIB_HALF,
    RIB_LONG,
    RIB_Z,
    STIFF,
    TALL,
    THIN,
    BoxScene,
    Thing,
    props_mjcf,
)
from recap_station.sim.tasks.box.script import BoxScript

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

PRESS_S = 1.5  # for a label to stick for good
STICKS = 0.3  # of that: with less, the label comes away with the finger
LIFTED = 0.02  # height at which what is not latched or stuck gives way, m
TOUCH = 0.003  # how near counts as touching, m
CLOSED = 0.02  # a gripper open wider than this drops the label, m
FLAT = np.array([0.5, 0.5, 0.5, 0.5])  # quaternion of a label on the front flap


@dataclass(frozen=True)
class Dials:
    """Section `sim:` of the task's YAML: where things stand at the start. Metres and radians."""

    sheet_x: tuple[float, float] = (-0.20, -0.15)
    sheet_y: tuple[float, float] = (-0.12, -0.05)
    sheet_yaw: tuple[float, float] = (-0.25, 0.25)
    dispenser_x: tuple[float, float] = (0.16, 0.20)
    crate_x: tuple[float, float] = (0.19, 0.22)
    crate_y: tuple[float, float] = (-0.09, -0.06)


class Box(SimTask):
    KEYPOINTS = (
        "box", "rib_end", *(flap.name + "_flap" for flap in FLAPS), "label", "dispenser", "crate",
    )  # fmt: skip
    Dials = Dials
    _glue: tuple[np.ndarray, np.ndarray] | None = None  # the label's pose on what it sticks to, once known

    def mjcf(self) -> str:
        return props_mjcf()

    def bind(self, model: mujoco.MjModel) -> None:
        self._bodies = [model.body(name).id for name in ("sheet", "label", "dispenser", "crate")]
        self._flaps = [model.body(flap.name + "_flap").id for flap in FLAPS]
        self._hinges = [model.joint(flap.name + "_flap").qposadr[0] for flap in FLAPS]
        self._joints = {model.joint(i).qposadr[0]: i for i in range(model.njnt)}
        self._hand = model.body("right_arm/wrist_rotate").id
        self._label = model.joint("label").qposadr[0]
        self._label_v = model.joint("label").dofadr[0]

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        d = self.dials
        self.memory = np.zeros(len(MEMORY))
        sheet = np.array([rng.uniform(*d.sheet_x), rng.uniform(*d.sheet_y), THIN])
        put_free_body(model, data, "sheet", sheet, rng.uniform(*d.sheet_yaw))
        data.qpos[self._hinges] = CREASE
        for hinge in self._hinges:
            self._bend(model, hinge, CREASE, LIMP)
        data.mocap_pos[0] = (rng.uniform(*d.crate_x), rng.uniform(*d.crate_y), 0.0)
        data.mocap_pos[1] = (rng.uniform(*d.dispenser_x), 0.17, LABEL_Z)
        self.offer(model, data)

    def read(self, data: mujoco.MjData, grips: GripReader, memory: np.ndarray) -> BoxScene:
        hands = grips.read(data)
        box, label = (Thing(data.xpos[i].copy(), data.xmat[i].reshape(3, 3).copy()) for i in self._bodies[:2])
        rib = box.at(0.0, 0.0, RIB_Z)
        held = [hands.hold_bar(arm, rib, box.rotation[:, 0], RIB_LONG, RIB_HALF) for arm in (0, 1)]
        edges = [data.xpos[i] + TALL * data.xmat[i].reshape(3, 3)[:, 0] for i in self._flaps]
        off = self._on_front(data, label)[:2] - LABEL_AT
        return BoxScene(
            hands, box, tuple(data.qpos[self._hinges].tolist()), tuple(edges), label, math.hypot(*off),
            data.xpos[self._bodies[2]].copy(), data.xpos[self._bodies[3]].copy(),
            dict(zip(MEMORY, memory.tolist(), strict=True)), (held[0], held[1]),
        )  # fmt: skip

    # ---- what physics does not do by itself --------------------------------------------------------

    def tick(self, model: mujoco.MjModel, data: mujoco.MjData, scene: BoxScene, step_s: float) -> bool:
        m = dict(scene.state)
        self._flaps_tick(model, scene, m)
        self._label_tick(model, data, scene, m, step_s)
        self.memory = np.array([m[name] for name in MEMORY])
        return True

    def _flaps_tick(self, model: mujoco.MjModel, scene: BoxScene, m: dict[str, float]) -> None:
        for flap, angle, hinge in zip(FLAPS, scene.angles, self._hinges, strict=True):
            held = m[flap.name]
            if held != LATCHED:
                caught = angle >= CATCH and scene.box.pos[2] < LIFTED
                held = LATCHED if angle >= LATCH else CAUGHT if caught else OPEN
            # what bends it: its crease, or what holds it where it was pushed to
            rest = {OPEN: CREASE, LATCHED: 0.5 * math.pi}.get(held, max(model.qpos_spring[hinge], angle))
            self._bend(model, hinge, rest, STIFF if held != OPEN else LIMP)
            m[flap.name] = held
            if angle > CRUSH:
                m["crushed"] = 1.0

    def _bend(self, model: mujoco.MjModel, hinge: int, rest: float, stiffness: float) -> None:
        model.qpos_spring[hinge] = rest
        model.jnt_stiffness[self._joints[hinge]] = stiffness

    def _label_tick(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        scene: BoxScene,
        m: dict[str, float],
        step_s: float,
    ) -> None:
        touched = _touched(scene)
        if m["label"] == OFFERED and touched and scene.gaps[1] < CLOSED:
            m["label"], self._glue = IN_HAND, None
        elif m["label"] == IN_HAND:
            up, along, out = self._on_front(data, scene.label)
            on_wall = 0.0 < up < TALL and abs(along) < HALF_X and -TOUCH < out + THIN + LABEL[1] < 3 * TOUCH
            pressing = on_wall and touched and m["front"] != OPEN
            m["pressed"] = m["pressed"] + step_s / PRESS_S if pressing else 0.0
            if m["pressed"] >= STICKS:
                m["label"] = ON_BOX
                self._glue = np.array([up, along, -THIN - LABEL[1]]), FLAT
        elif m["label"] == ON_BOX and touched:
            m["pressed"] = min(1.0, m["pressed"] + step_s / PRESS_S)
        opened = m["label"] == IN_HAND and scene.gaps[1] > CLOSED
        loose = m["label"] == ON_BOX and m["pressed"] < ENOUGH_PRESSED and scene.box.pos[2] > LIFTED
        if opened or loose:
            m["label"] = OFFERED
            m["pressed"] = 0.0
        if m["label"] == OFFERED:
            self.offer(model, data)
        else:
            self._follow(data, self._hand if m["label"] == IN_HAND else self._flaps[FRONT])
        mujoco.mj_kinematics(model, data)

    def offer(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """The label as the dispenser shows it."""
        put_free_body(model, data, "label", data.mocap_pos[1] - (0.0, LABEL[1], 0.0), 0.0)
        data.qvel[self._label_v : self._label_v + 6] = 0.0
        self._glue = None

    def _follow(self, data: mujoco.MjData, body: int) -> None:
        """Move the label with the body it is glued to."""
        at, part = self._label, data.qpos[self._label : self._label + 7]
        if self._glue is None:
            back, turn = np.empty(3), np.empty(4)
            mujoco.mju_negPose(back, turn, data.xpos[body], data.xquat[body])
            place, quat = np.empty(3), np.empty(4)
            mujoco.mju_mulPose(place, quat, back, turn, part[:3], part[3:])
            self._glue = place, quat
        place, quat = np.empty(3), np.empty(4)
        mujoco.mju_mulPose(place, quat, data.xpos[body], data.xquat[body], *self._glue)
        data.qpos[at : at + 7] = (*place, *quat)
        data.qvel[self._label_v : self._label_v + 6] = 0.0

    def _on_front(self, data: mujoco.MjData, label: Thing) -> np.ndarray:
        """The label's middle (3,) as the front flap has it: above the hinge, along it, inwards."""
        flap = self._flaps[FRONT]
        return data.xmat[flap].reshape(3, 3).T @ (label.pos - data.xpos[flap])

    # ---- the rest of the seam ----------------------------------------------------------------------

    def judge(self, station: Station) -> Judge:
        return BoxJudge(self.task.stages, arms_of(station), station.step_s)

    def script(self) -> type[Script]:
        return BoxScript

    def signs(self) -> Signs:
        return BoxSigns()

    def scatter(self, cell: Cell, rng: np.random.Generator) -> None:
        scatter(cell, rng)


def _touched(scene: BoxScene) -> bool:
    """Whether the closed right gripper's side lies on the label's front."""
    off = scene.label.pos - scene.tips[1]
    frame = scene.grips.frames[1]
    outside = 0.010 + 0.5 * scene.gaps[1]
    beside = max(abs(off @ frame[:, 0]), abs(off @ frame[:, 2])) < 0.02
    ahead = 0.0 < off @ scene.label.rotation[:, 1] < outside + LABEL[1] + TOUCH
    return bool(beside and ahead)
