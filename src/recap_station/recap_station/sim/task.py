"""What a task gives to the cell. One task is one module in `tasks/` and one YAML in `config/tasks/`.

Shared by all tasks: the table, arms and cameras (`model.py`, `arms.py`), stepping and rendering (`cell.py`),
smooth tip motion (`motion.py`), the grips (`grip.py`), the book-keeping of stages and outcome (`judge.py`),
of the expert's dials (`script.py`, `styles.py`), of the operator (`recap_teleop/operator.py`) and of
keypoints (`vision.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import mujoco
import numpy as np

from recap_station.contract import ContractError, Station, Task
from recap_station.sim.arms import OPENING_M

REACH_M = 0.4  # what positions are divided by for a policy: about as far as things are from the middle

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell
    from recap_station.sim.grip import GripReader, Grips
    from recap_station.sim.judge import Judge
    from recap_station.sim.script import Script


@dataclass(frozen=True)
class Scene:
    """What matters of a simulator state. A task adds its props: positions (3,) in world metres."""

    grips: Grips

    @property
    def tips(self) -> tuple[np.ndarray, np.ndarray]:
        return self.grips.tips

    @property
    def tip_yaws(self) -> tuple[float, float]:
        return self.grips.yaws

    @property
    def gaps(self) -> tuple[float, float]:
        return self.grips.gaps

    def points(self) -> tuple[np.ndarray, ...]:
        """Positions (3,) [m] of the task's `KEYPOINTS`, the tips left out."""
        raise NotImplementedError

    def facts(self) -> tuple[float, ...]:
        """What the points do not tell, each about 0..1: what is held, locked, full."""
        return ()

    def features(self) -> np.ndarray:
        """(9 * points + 12 + facts,) float32, each about -1..1: what a policy that is given states instead of
        images sees beside the joints. Every point as it lies from the middle and from both tips, as a base
        and two wrist cameras have it; then tips, headings (cosine and sine) and gaps of the hands; then the
        facts."""
        points, tips = np.stack(self.points()), np.stack(self.tips)
        placed = np.concatenate([points, points - tips[0], points - tips[1]], axis=1) / REACH_M
        yaws, gaps = np.array(self.tip_yaws), np.array(self.gaps) / OPENING_M
        hands = np.concatenate([tips.ravel() / REACH_M, np.cos(yaws), np.sin(yaws), gaps])
        return np.concatenate([placed.ravel(), hands, np.array(self.facts())]).astype(np.float32)


@dataclass(frozen=True)
class Placed:
    """A thing where it is. pos: (3,) m; rotation: (3, 3), columns are its axes."""

    pos: np.ndarray
    rotation: np.ndarray

    @property
    def yaw(self) -> float:
        return math.atan2(self.rotation[1, 0], self.rotation[0, 0])

    @property
    def upright(self) -> float:
        """Cosine of its tilt."""
        return float(self.rotation[2, 2])


class Signs:
    """What an onlooker sees of an attempt's progress: the scripted operator's eyes."""

    def to_go(self, scene: Any, stage: int) -> float:
        """Metres (or what weighs as much) left to the goal of a stage."""
        raise NotImplementedError

    def jammed(self, scene: Any, stage: int) -> bool:
        """Whether something presses where it cannot go: the operator's patience is then shorter."""
        return False

    def trouble(self, scene: Any, stage: int, furthest: int) -> str:
        """What has visibly gone wrong, in words; "" if nothing. `furthest`: the latest stage seen."""
        raise NotImplementedError

    def repaired(self, scene: Any, stage: int, wrong: int) -> bool:
        """Whether what went wrong in stage `wrong` is behind."""
        raise NotImplementedError

    def repaired_at_once(self, wrong: int) -> bool:
        """Whether a repair of stage `wrong` need not hold for a while before the operator lets go."""
        return False


class SimTask:
    """The simulated side of a task; hooks in the order in which they are called.

    One object belongs to one cell. `memory` (n,) float64 is what the positions of bodies do not tell (coffee
    in a basket, say); it travels in `Truth.qpos` behind them.
    """

    KEYPOINTS: ClassVar[tuple[str, ...]] = ()
    Dials: ClassVar[type] = object
    TIMESTEP_S: ClassVar[float] = 0.004

    def __init__(self, task: Task) -> None:
        """Raises ContractError where the YAML's section `sim:` names an unknown dial or no range."""
        self.task = task
        self.dials: Any = read_dials(self.Dials, task)
        self.memory = np.zeros(0)

    def mjcf(self) -> str:
        """Bodies of the props, for the world body."""
        raise NotImplementedError

    def assets_mjcf(self) -> str:
        """What stands beside the world body: <equality>, <contact>, <sensor>; "" if nothing."""
        return ""

    def bind(self, model: mujoco.MjModel) -> None:
        """Look up names, once the model is built."""

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Start of an attempt. The arms are at home; everything else is as the model says."""
        raise NotImplementedError

    def tick(self, model: mujoco.MjModel, data: mujoco.MjData, scene: Any, step_s: float) -> bool:
        """After each control tick: what physics does not do by itself (pouring, latching, sticking). →
        Whether the scene has changed by it."""
        return False

    def read(self, data: mujoco.MjData, grips: GripReader, memory: np.ndarray) -> Any:
        """A Scene, after kinematics. `memory`: the truth's, which need not be this object's own."""
        raise NotImplementedError

    def judge(self, station: Station) -> Judge:
        raise NotImplementedError

    def script(self) -> type[Script]:
        """The expert's steps."""
        raise NotImplementedError

    def signs(self) -> Signs:
        raise NotImplementedError

    def scatter(self, cell: Cell, rng: np.random.Generator) -> None:
        """A random plausible scene to render, arms and all; `place` comes before anything is stepped."""
        raise NotImplementedError


def read_dials(kind: type, task: Task) -> Any:
    """Section `sim:` of the task's YAML as a `kind` whose fields are (low, high)."""
    known = {f.name for f in fields(kind)}
    if unknown := set(task.sim) - known:
        raise ContractError(
            f"task {task.name!r}: unknown dial sim.{min(unknown)} (there are: {', '.join(sorted(known))})"
        )
    for name, pair in task.sim.items():
        if len(pair) != 2 or not pair[0] <= pair[1]:
            raise ContractError(f"task {task.name!r}: sim.{name} is {pair}, wanted [low, high]")
    return kind(**{name: tuple(pair) for name, pair in task.sim.items()})


def put_free_body(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    joint: str,
    position: np.ndarray,
    yaw: float,
    pitch: float = 0.0,
) -> None:
    """A body with a free joint at rest at `position`, turned by `yaw`, its x axis raised by `pitch`."""
    start = model.joint(joint).qposadr[0]
    turn, raise_, quat = np.empty(4), np.empty(4), np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), yaw)
    mujoco.mju_axisAngle2Quat(raise_, np.array([0.0, 1.0, 0.0]), -pitch)
    mujoco.mju_mulQuat(quat, turn, raise_)
    data.qpos[start : start + 3] = position
    data.qpos[start + 3 : start + 7] = quat
