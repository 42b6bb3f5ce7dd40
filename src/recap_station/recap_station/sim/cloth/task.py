"""The SimTask that the folding tasks specialise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import mujoco
import numpy as np

from recap_station.contract import Station
from recap_station.sim.cloth.judge import ClothJudge, ClothSigns
from recap_station.sim.cloth.mesh import SIZE, N, flat
from recap_station.sim.cloth.scatter import scatter
from recap_station.sim.cloth.scene import CORNERS, MAT, MAT_HALF, MIDDLES, ClothScene
from recap_station.sim.cloth.script import ClothScript
from recap_station.sim.cloth.sheet import Sheet, sheet_assets, sheet_mjcf
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
    "print": "0.95 0.50 0.10 1",
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
    """A cloth to be folded and laid on the mat. `memory`: 4 numbers of each hand, see `sheet.py`, then the
    cloth's width, length and taper."""

    PRINT_ROW: ClassVar[int | None] = None
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
        return f"<asset>{materials}</asset>" + sheet_assets(HANDS, _materials(self.PRINT_ROW))

    def bind(self, model: mujoco.MjModel) -> None:
        self.sheet = Sheet(model, HANDS)

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        d = self.dials
        pose = rng.uniform(*d.cloth_x), rng.uniform(*d.cloth_y), rng.uniform(*d.cloth_yaw)
        size, stiffness = self.cloth(rng)
        self.memory = np.array([*np.zeros(8), *size])
        self._tips: tuple[np.ndarray, np.ndarray] | None = None
        self.shape = flat(*size)
        self.sheet.cut(model, self.shape, stiffness)
        self.sheet.put(model, data, posed(self.thrown(self.shape, rng), *pose))

    def cloth(self, rng: np.random.Generator) -> tuple[tuple[float, float, float], float]:
        """Width, length [m] and taper of this attempt's cloth, and its stiffness, 1 being cotton's."""
        return (SIZE, SIZE, 0.0), 1.0

    def thrown(self, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """How it lies at the start, round the origin: vertices (N, N, 3)."""
        return shape

    def tick(self, model: mujoco.MjModel, data: mujoco.MjData, scene: ClothScene, step_s: float) -> bool:
        self.sheet.stack(model, scene.vertices)
        before, self._tips = self._tips or scene.tips, scene.tips
        self.memory = self.memory.copy()
        for arm in (0, 1):
            moved = float(np.linalg.norm(scene.tips[arm] - before[arm]))
            own = self.memory[4 * arm : 4 * arm + 4]
            self.sheet.hold(model, data, arm, scene.tips[arm], scene.gaps[arm], moved, own)
        return True

    def read(self, data: mujoco.MjData, grips: GripReader, memory: np.ndarray) -> ClothScene:
        holds = bool(memory[0] > 0), bool(memory[4] > 0)
        shape = flat(*memory[8:11])
        return ClothScene(grips.read(data), self.sheet.vertices(data), shape, holds, self.PRINT_ROW)

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


def _materials(print_row: int | None) -> list[str]:
    """Of each triangle: patches at the corners, a strip along the far edge, the print across, else plain."""
    names = []
    for i in range(N - 1):
        for j in range(N - 1):
            x = "left" if i < 2 else "right" if i > N - 4 else ""
            y = "near" if j < 2 else "far" if j > N - 4 else ""
            name = "collar" if j == N - 2 else "cloth"
            if print_row is not None:
                name = "print" if j in (print_row - 1, print_row) else "cloth"
            names += [f"{y}_{x}" if x and y else name] * 2
    return names
