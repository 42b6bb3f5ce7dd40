"""Peg from the table to the left gripper, to the right gripper, into the socket.

A square bar lies on the left half of the table. The left gripper takes it near its left end and lifts it to
the middle, the right gripper takes it near its right end, the left one lets go, and the right one pushes the
free left end into a socket whose hole faces right. The peg is alike at both ends: "left end" is the end
with the smaller x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import mujoco
import numpy as np

from recap_station.contract import ContractError, Station, Task
from recap_station.sim.arms import OPENING_M, Arm, Unreachable, arms_of, reach_down

PEG_HALF = 0.10
PEG_HALF_WIDTH = 0.016
GRASP = 0.055  # from the peg's centre to where a gripper takes it
HOLE_Z = 0.09
HOLE_HALF = 0.032  # 16 mm of play on each side of the peg
HOLE_DEPTH = 0.065
DEEP_ENOUGH = 0.03
LIFTED_Z = 0.13


@dataclass(frozen=True)
class Dials:
    """Section `sim:` of the task's YAML: where things stand at the start. Metres and radians."""

    peg_x: tuple[float, float] = (-0.145, -0.075)
    peg_y: tuple[float, float] = (-0.115, -0.035)
    peg_yaw: tuple[float, float] = (-0.15, 0.15)
    socket_x: tuple[float, float] = (-0.075, -0.055)
    socket_y: tuple[float, float] = (0.12, 0.15)


@dataclass(frozen=True)
class Scene:
    """What matters of a simulator state; positions (3,) in world metres, pairs are (left arm, right arm)."""

    center: np.ndarray
    axis: np.ndarray  # unit vector from the peg's left end to its right end
    mouth: np.ndarray  # centre of the socket's hole, at its face
    tips: tuple[np.ndarray, np.ndarray]
    tip_yaws: tuple[float, float]  # heading of a bar that the gripper would hold
    gaps: tuple[float, float]  # between the pads, m
    held: tuple[bool, bool]

    @property
    def left_end(self) -> np.ndarray:
        return self.center - PEG_HALF * self.axis

    @property
    def right_end(self) -> np.ndarray:
        return self.center + PEG_HALF * self.axis

    @property
    def yaw(self) -> float:
        return math.atan2(self.axis[1], self.axis[0])

    @property
    def depth(self) -> float:
        """How far the free end is inside the hole [m]; negative before the mouth, -1 beside it."""
        end = self.left_end
        aside = np.abs(end[1:] - self.mouth[1:]).max()
        return float(self.mouth[0] - end[0]) if aside < HOLE_HALF else -1.0


class HandoverInsert:
    """Props of the task: their MJCF, start placement, and what a simulator state means."""

    def __init__(self, task: Task) -> None:
        known = {f.name for f in fields(Dials)}
        if unknown := set(task.sim) - known:
            raise ContractError(
                f"task {task.name!r}: unknown dial sim.{min(unknown)} (there are: {', '.join(sorted(known))})"
            )
        for name, pair in task.sim.items():
            if len(pair) != 2 or not pair[0] <= pair[1]:
                raise ContractError(f"task {task.name!r}: sim.{name} is {pair}, wanted [low, high]")
        self.dials = Dials(**{name: tuple(pair) for name, pair in task.sim.items()})
        self.stages = task.stages

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

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Start of an attempt: peg on the left half of the table, socket somewhere in its range."""
        d = self.dials
        self.put_socket(data, rng.uniform(*d.socket_x), rng.uniform(*d.socket_y))
        position = np.array([rng.uniform(*d.peg_x), rng.uniform(*d.peg_y), PEG_HALF_WIDTH])
        self.put_peg(model, data, position, rng.uniform(*d.peg_yaw))

    def put_socket(self, data: mujoco.MjData, x: float, y: float) -> None:
        data.mocap_pos[0] = (x, y, HOLE_Z)

    def put_peg(
        self, model: mujoco.MjModel, data: mujoco.MjData, position: np.ndarray, yaw: float, pitch: float = 0.0
    ) -> None:
        """Peg at rest at `position`, its right end turned by `yaw` and raised by `pitch`."""
        start = model.joint("peg").qposadr[0]
        turn, raise_, quat = np.empty(4), np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), yaw)
        mujoco.mju_axisAngle2Quat(raise_, np.array([0.0, 1.0, 0.0]), -pitch)
        mujoco.mju_mulQuat(quat, turn, raise_)
        data.qpos[start : start + 3] = position
        data.qpos[start + 3 : start + 7] = quat


class SceneReader:
    """Reads a Scene from a model's data after kinematics."""

    def __init__(self, station: Station, model: mujoco.MjModel) -> None:
        self.arms = arms_of(station)
        self._tips = [model.site(arm.tip_site).id for arm in self.arms]
        self._fingers = [[model.joint(n).qposadr[0] for n in arm.finger_joints] for arm in self.arms]
        self._peg = model.body("peg").id
        self._socket = model.body("socket").id

    def read(self, data: mujoco.MjData) -> Scene:
        center = data.xpos[self._peg].copy()
        axis = data.xmat[self._peg].reshape(3, 3)[:, 0].copy()
        if axis[0] < 0:
            axis = -axis
        tips, yaws, gaps, held = [], [], [], []
        for site, fingers in zip(self._tips, self._fingers, strict=True):
            tip = data.site_xpos[site].copy()
            frame = data.site_xmat[site].reshape(3, 3)
            gap = float(data.qpos[fingers[0]] + data.qpos[fingers[1]])
            tips.append(tip)
            yaws.append(math.atan2(-frame[0, 1], frame[1, 1]))
            gaps.append(gap)
            held.append(_between_pads(center, axis, tip, frame, gap))
        return Scene(
            center, axis, data.xpos[self._socket].copy(), (tips[0], tips[1]), (yaws[0], yaws[1]),
            (gaps[0], gaps[1]), (held[0], held[1]),
        )  # fmt: skip


def _between_pads(
    center: np.ndarray, axis: np.ndarray, tip: np.ndarray, frame: np.ndarray, gap: float
) -> bool:
    """Whether the pads are closed on the peg: it passes between them, and the gap is its width."""
    if gap > min(2 * PEG_HALF_WIDTH + 0.007, 0.9 * OPENING_M) or abs(axis @ frame[:, 1]) > 0.5:
        return False
    along = float((tip - center) @ axis)
    if abs(along) > PEG_HALF + 0.005:
        return False
    off = center + along * axis - tip
    return abs(off @ frame[:, 1]) < 0.012 and abs(off @ frame[:, 0]) < 0.024


def left_grasp(scene: Scene) -> np.ndarray:
    """Where the left gripper takes a peg that lies on the table."""
    return scene.center - GRASP * scene.axis


def can_pick(arm: Arm, scene: Scene) -> bool:
    """Whether a peg that nobody holds lies where the left arm can take it."""
    if scene.center[2] < 0 or abs(scene.axis[2]) > 0.5:
        return False
    grasp = left_grasp(scene)
    near_socket = grasp - scene.mouth + np.array([HOLE_DEPTH / 2, 0.0, 0.0])
    beside = HOLE_HALF + PEG_HALF_WIDTH + 0.05
    if abs(near_socket[0]) < HOLE_DEPTH / 2 + 0.03 and abs(near_socket[1]) < beside:
        return False
    try:
        reach_down(arm, grasp + np.array([0.0, 0.0, 0.08]), scene.yaw, 0.0)
    except Unreachable:
        return False
    return grasp[0] < 0.12


class Judge:
    """Stage, success and failure of an attempt, from scenes one control tick apart."""

    def __init__(self, stages: tuple[str, ...], arm: Arm, step_s: float) -> None:
        self._stages, self._arm, self._step_s = stages, arm, step_s
        self.reset()

    def reset(self) -> None:
        self._stage = self._wanted = 0
        self._wanted_s = self._in_s = self._lost_s = 0.0
        self.success = self.failure = False

    @property
    def stage(self) -> str:
        return self._stages[self._stage]

    def update(self, scene: Scene) -> None:
        left, right = scene.held
        inserted = scene.depth > 0.01
        if inserted and not left:
            wanted = 3
        elif left and right:
            wanted = 2
        elif right:
            wanted = 3
        elif left:
            height = LIFTED_Z - (0.03 if self._stage == 2 else 0.0)
            wanted = 2 if scene.center[2] > height else 1
        else:
            wanted = 0
        self._wanted_s = self._wanted_s + self._step_s if wanted == self._wanted else 0.0
        self._wanted = wanted
        if self._wanted_s >= 0.1:  # a grip that lasts a tick or two is none
            self._stage = wanted

        deep = scene.depth > DEEP_ENOUGH and not left
        self._in_s = self._in_s + self._step_s if deep else 0.0
        self.success = self.success or (self._in_s >= 0.1 and not self.failure)
        lost = not (left or right or inserted or can_pick(self._arm, scene))
        self._lost_s = self._lost_s + self._step_s if lost else 0.0
        gone = scene.center[2] < -0.05
        self.failure = self.failure or (not self.success and (gone or self._lost_s >= 1.5))
