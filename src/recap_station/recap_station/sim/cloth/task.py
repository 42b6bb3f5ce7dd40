"""The SimTask that the folding tasks specialise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from recap_station.contract import Station
from recap_station.sim.cloth.judge import ClothJudge, ClothSigns
from recap_station.sim.cloth.scatter import scatter
from recap_station.sim.cloth.scene import CORNERS, MAT, MAT_HALF, MIDDLES, ClothScene
from recap_station.sim.cloth.script import ClothScript
from recap_station.sim.cloth.sheet import N, Sheet, flat, sheet_assets, sheet_mjcf
from recap_station.sim.grip import GripReader
from recap_station.sim.judge import Judge
from recap_station.sim.script import Script
from recap_station.sim.task import Signs, SimTask

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

HANDS = ("left_arm/wrist_rotate", "right_arm/wrist_rotate")
COLORS = {
    "cloth": "0.25 0.45 0.85 1",
    "collar": "0.95 0.85 0.20 1",
    "near_left": "0.10 0.75 0.30 1",
    "near_right": "0.90 0.15 0.15 1",
    "far_left": "0.55 0.15 0.65 1",
    "far_right": "0.95 0.95 0.95 1",
}


@dataclass(frozen=True)
class Dials:
    """Section `sim:` of the task's YAML: where the cloth lies at the start. Metres and radians."""

    cloth_x: tuple[float, float] = (-0.03, 0.03)
    cloth_y: tuple[float, float] = (-0.05, 0.0)
    cloth_yaw: tuple[float, float] = (-0.25, 0.25)


class ClothTask(SimTask):
    """A cloth to be folded and laid on the mat. `memory`: 4 numbers of each hand, see `sheet.py`."""

    KEYPOINTS = tuple(f"cloth_{name}" for name in (*CORNERS, *MIDDLES))
    Dials = Dials
    TIMESTEP_S = 0.01

    def mjcf(self) -> str:
        x, y = MAT[:2]
        return f"""<geom class="visual" type="box" pos="{x} {y} 0" size="{MAT_HALF[0]} {MAT_HALF[1]} 0.0008"
 rgba="0.30 0.32 0.34 1"/>
{sheet_mjcf()}"""

    def assets_mjcf(self) -> str:
        materials = "".join(f'<material name="{name}" rgba="{rgba}"/>' for name, rgba in COLORS.items())
        return f"<asset>{materials}</asset>" + sheet_assets(HANDS, _materials())

    def bind(self, model: mujoco.MjModel) -> None:
        self._sheet = Sheet(model, HANDS)

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        d = self.dials
        self.memory = np.zeros(8)
        self._tips: tuple[np.ndarray, np.ndarray] | None = None
        pose = rng.uniform(*d.cloth_x), rng.uniform(*d.cloth_y), rng.uniform(*d.cloth_yaw)
        self._sheet.put(model, data, posed(flat(), *pose))

    def tick(self, model: mujoco.MjModel, data: mujoco.MjData, scene: ClothScene, step_s: float) -> bool:
        self._sheet.stack(model, scene.vertices)
        before, self._tips = self._tips or scene.tips, scene.tips
        self.memory = self.memory.copy()
        for arm in (0, 1):
            moved = float(np.linalg.norm(scene.tips[arm] - before[arm]))
            own = self.memory[4 * arm : 4 * arm + 4]
            self._sheet.hold(model, data, arm, scene.tips[arm], scene.gaps[arm], moved, own)
        return True

    def read(self, data: mujoco.MjData, grips: GripReader, memory: np.ndarray) -> ClothScene:
        return ClothScene(
            grips.read(data), self._sheet.vertices(data), (bool(memory[0] > 0), bool(memory[4] > 0))
        )

    def judge(self, station: Station) -> Judge:
        return ClothJudge(self.task.stages, station.step_s)

    def script(self) -> type[Script]:
        return ClothScript

    def signs(self) -> Signs:
        return ClothSigns()

    def scatter(self, cell: Cell, rng: np.random.Generator) -> None:
        scatter(cell, rng)


def posed(vertices: np.ndarray, x: float, y: float, yaw: float) -> np.ndarray:
    """Vertices (N, N, 3) turned by `yaw` about the origin and moved."""
    c, s = np.cos(yaw), np.sin(yaw)
    return vertices @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]) + (x, y, 0.0)


def _materials() -> list[str]:
    """Of each triangle: patches at the corners, a strip along the far edge, else plain."""
    names = []
    for i in range(N - 1):
        for j in range(N - 1):
            x = "left" if i < 2 else "right" if i > N - 4 else ""
            y = "near" if j < 2 else "far" if j > N - 4 else ""
            strip = "collar" if j == N - 2 else "cloth"
            names += [f"{y}_{x}" if x and y else strip] * 2
    return names
