"""Peg from the table to the left gripper, to the right gripper, into the socket.

A square bar lies on the left half of the table. The left gripper takes it near its left end and lifts it to
the middle, the right gripper takes it near its right end, the left one lets go, and the right one pushes the
free left end into a socket whose hole faces right. The peg is alike at both ends: "left end" is the end
with the smaller x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from recap_station.contract import Station
from recap_station.sim.arms import Arm, arms_of
from recap_station.sim.grip import GripReader
from recap_station.sim.judge import Judge
from recap_station.sim.script import Script
from recap_station.sim.task import Signs, SimTask, put_free_body
from recap_station.sim.tasks.handover_insert.scatter import scatter
from recap_station.sim.tasks.handover_insert.scene import (
    DEEP_ENOUGH,
    GRASP,
    HOLE_DEPTH,
    HOLE_HALF,
    HOLE_Z,
    LIFTED_Z,
    PEG_HALF,
    PEG_HALF_WIDTH,
    PegScene,
    can_pick,
    left_grasp,
)
from recap_station.sim.tasks.handover_insert.script import PegScript

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell


@dataclass(frozen=True)
class Dials:
    """Section `sim:` of the task's YAML: where things stand at the start. Metres and radians."""

    peg_x: tuple[float, float] = (-0.145, -0.075)
    peg_y: tuple[float, float] = (-0.115, -0.035)
    peg_yaw: tuple[float, float] = (-0.15, 0.15)
    socket_x: tuple[float, float] = (-0.075, -0.055)
    socket_y: tuple[float, float] = (0.12, 0.15)


class HandoverInsert(SimTask):
    """Props of the task: their MJCF, start placement, and what a simulator state means."""

    KEYPOINTS = ("peg_center", "peg_left_end", "peg_right_end", "socket_mouth")
    Dials = Dials

    def mjcf(self) -> str:
        h, wall, d = HOLE_HALF, 0.006, HOLE_DEPTH / 2
        outer = h + 2 * wall
        blue, rim = "0.10 0.30 0.85 1", "0.20 0.85 0.95 1"
        side = [(f"0 {s * (h + wall)} 0", f"{d} {wall} {outer}") for s in (-1, 1)] + [
            (f"0 0 {s * (h + wall)}", f"{d} {h} {wall}") for s in (-1, 1)
        ]
        walls = "\n".join(
            f'<geom class="solid" type="box" pos="{pos}" size="{size}" rgba="{blue}"/>' for pos, size in side
        )
        rims = "\n".join(
            f'<geom class="visual" type="box" pos="{d} {pos.split(" ", 1)[1]}" '
            f'size="0.002 {size.split(" ", 1)[1]}" rgba="{rim}"/>'
            for pos, size in side
        )
        foot = (HOLE_Z - outer) / 2
        # The body's origin is the middle of the hole's face; the walls lie behind it.
        return f"""
<body name="socket" mocap="true" pos="-0.06 0.13 {HOLE_Z}">
 <body name="socket_block" pos="{-d} 0 0">{walls}{rims}
  <geom class="solid" type="box" pos="{-d} 0 0" size="0.004 {outer} {outer}" rgba="{blue}"/>
  <geom class="solid" type="box" pos="0 0 {-outer - foot}" size="{d} {outer} {foot}" rgba="0.08 0.18 0.45 1"/>
 </body>
</body>
<body name="peg" pos="-0.11 -0.08 {PEG_HALF_WIDTH}">
 <freejoint name="peg"/>
 <geom class="solid" name="peg" type="box" size="{PEG_HALF} {PEG_HALF_WIDTH} {PEG_HALF_WIDTH}"
  rgba="0.86 0.10 0.12 1" mass="0.06"/>
</body>"""

    def bind(self, model: mujoco.MjModel) -> None:
        self._peg, self._socket = model.body("peg").id, model.body("socket").id

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Peg on the left half of the table, socket somewhere in its range."""
        d = self.dials
        data.mocap_pos[0] = (rng.uniform(*d.socket_x), rng.uniform(*d.socket_y), HOLE_Z)
        position = np.array([rng.uniform(*d.peg_x), rng.uniform(*d.peg_y), PEG_HALF_WIDTH])
        put_free_body(model, data, "peg", position, rng.uniform(*d.peg_yaw))

    def read(self, data: mujoco.MjData, grips: GripReader, memory: np.ndarray) -> PegScene:
        hands = grips.read(data)
        center = data.xpos[self._peg].copy()
        axis = data.xmat[self._peg].reshape(3, 3)[:, 0].copy()
        if axis[0] < 0:
            axis = -axis
        held = [hands.hold_bar(arm, center, axis, PEG_HALF, PEG_HALF_WIDTH) for arm in (0, 1)]
        return PegScene(hands, center, axis, data.xpos[self._socket].copy(), (held[0], held[1]))

    def judge(self, station: Station) -> Judge:
        return PegJudge(self.task.stages, arms_of(station)[0], station.step_s)

    def script(self) -> type[Script]:
        return PegScript

    def signs(self) -> Signs:
        return PegSigns()

    def scatter(self, cell: Cell, rng: np.random.Generator) -> None:
        scatter(cell, rng)


class PegJudge(Judge):
    """Success: the free end is deep in the hole and the left hand off the peg."""

    def __init__(self, stages: tuple[str, ...], arm: Arm, step_s: float) -> None:
        self._arm = arm
        super().__init__(stages, step_s)

    def wanted(self, scene: PegScene, stage: int) -> int:
        left, right = scene.held
        if _inserted(scene) and not left:
            return 3
        if left and right:
            return 2
        if right:
            return 3
        if left:
            height = LIFTED_Z - (0.03 if stage == 2 else 0.0)
            return 2 if scene.center[2] > height else 1
        return 0

    def done(self, scene: PegScene) -> bool:
        return scene.depth > DEEP_ENOUGH and not scene.held[0]

    def lost(self, scene: PegScene) -> bool:
        return not (any(scene.held) or _inserted(scene) or can_pick(self._arm, scene))

    def broken(self, scene: PegScene) -> bool:
        return bool(scene.center[2] < -0.05)


def _inserted(scene: PegScene) -> bool:
    return scene.depth > 0.01


class PegSigns(Signs):
    """What an onlooker sees."""

    def to_go(self, scene: PegScene, stage: int) -> float:
        if stage == 0:
            return float(np.linalg.norm(scene.tips[0] - left_grasp(scene)))
        if stage == 1:
            return max(0.0, 0.2 - float(scene.center[2]))
        if stage == 2:
            reach = float(np.linalg.norm(scene.tips[1] - (scene.center + GRASP * scene.axis)))
            return reach + (0.07 if scene.held[0] else 0.0) - 0.5 * scene.gaps[0]
        return float(np.linalg.norm(scene.left_end - scene.mouth)) if scene.depth < 0 else -scene.depth

    def jammed(self, scene: PegScene, stage: int) -> bool:
        """The free end stands at the socket's face, beside the hole."""
        off = scene.left_end - scene.mouth
        beside = np.abs(off[1:]).max() > HOLE_HALF - PEG_HALF_WIDTH
        return bool(stage == 3 and abs(off[0]) < 0.02 and beside)

    def trouble(self, scene: PegScene, stage: int, furthest: int) -> str:
        return "the peg was dropped" if stage == 0 and furthest > 0 else ""

    def repaired(self, scene: PegScene, stage: int, wrong: int) -> bool:
        """The stage that went wrong is behind, and safely so; in the last one, the peg is in the hole."""
        if wrong == 3:
            return scene.depth > 0.005
        return stage > wrong and not (stage == 1 and scene.center[2] < 0.06)

    def repaired_at_once(self, wrong: int) -> bool:
        return wrong == 3
