"""The simulated cell: joint commands in, joint states, images and truth out, one control tick at a time."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from recap_station.contract import ContractError, Station, Task
from recap_station.sim import vision
from recap_station.sim.arms import ARM_DOF, arms_of, finger_opening, finger_target
from recap_station.sim.grip import GripReader
from recap_station.sim.model import build_model
from recap_station.sim.scene import pack
from recap_station.sim.tasks import sim_task
from recap_station.sim.truth import Truth


class Layout:
    """Where the station's vector stands in MuJoCo's arrays."""

    def __init__(self, station: Station, model: mujoco.MjModel) -> None:
        self.arms = arms_of(station)
        self.joints = [[model.joint(j.name).qposadr[0] for j in arm.joints] for arm in self.arms]
        self.fingers = [[model.joint(n).qposadr[0] for n in arm.finger_joints] for arm in self.arms]
        self.nq = model.nq

    def state(self, qpos: np.ndarray) -> np.ndarray:
        """(nq,) → (dof,) in the station's order [rad; gripper 0..1]."""
        parts: list[float] = []
        for joints, fingers in zip(self.joints, self.fingers, strict=True):
            parts += [qpos[i] for i in joints]
            parts.append(finger_opening(0.5 * (qpos[fingers[0]] + qpos[fingers[1]])))
        return np.array(parts)

    def put(self, qpos: np.ndarray, state: np.ndarray) -> None:
        """Write (dof,) into (nq,)."""
        for k, (joints, fingers) in enumerate(zip(self.joints, self.fingers, strict=True)):
            part = state[k * (ARM_DOF + 1) : (k + 1) * (ARM_DOF + 1)]
            qpos[joints] = part[:ARM_DOF]
            qpos[fingers] = max(finger_target(part[ARM_DOF]), 0.0)

    def controls(self, command: np.ndarray) -> np.ndarray:
        """(dof,) → (nu,): the grippers' commands go to both of their fingers."""
        n = ARM_DOF + 1
        out: list[float] = []
        for k in range(len(self.arms)):
            out += list(command[k * n : k * n + ARM_DOF])
            out += [finger_target(command[k * n + ARM_DOF])] * 2
        return np.array(out)


class Cell:
    """A bimanual cell in MuJoCo. Same seed and same commands give the same states, bit for bit."""

    def __init__(self, station: Station, task: Task) -> None:
        self.station, self.task = station, task
        self.props = sim_task(task)
        self.model = build_model(station, task, self.props)
        self.props.bind(self.model)
        self.data = mujoco.MjData(self.model)
        self.layout = Layout(station, self.model)
        self._grips = GripReader(station, self.model)
        self._judge = self.props.judge(station)
        timestep_s = self.props.TIMESTEP_S
        self._substeps = round(station.step_s / timestep_s)
        if abs(self._substeps * timestep_s - station.step_s) > 1e-9:
            raise ContractError(
                f"a control step of {station.step_s} s is not a whole number of {timestep_s} s physics steps"
            )
        self._lower, self._upper = station.lower, station.upper
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._scene: Any = None
        self.ticks = 0
        self.reset(0)

    @property
    def time_s(self) -> float:
        return self.ticks * self.station.step_s

    def reset(self, seed: int) -> None:
        """Arms home, props placed by `seed`."""
        mujoco.mj_resetData(self.model, self.data)
        self.layout.put(self.data.qpos, self.station.home)
        self.data.ctrl[:] = self.layout.controls(self.station.home)
        self.props.place(self.model, self.data, np.random.default_rng(seed))
        mujoco.mj_forward(self.model, self.data)
        self.ticks = 0
        self._judge.reset()
        self._scene = None

    def step(self, command: np.ndarray) -> None:
        """One control tick with `command` (dof,) [rad; gripper 0..1], clipped to the joint limits.

        Raises ContractError on a wrong length or a value that is not finite; the cell is then unchanged.
        """
        command = np.asarray(command, dtype=np.float64)
        if command.shape != (self.station.dof,):
            raise ContractError(f"command of shape {command.shape}, wanted ({self.station.dof},)")
        if not np.isfinite(command).all():
            bad = self.station.joint_names[int(np.argmin(np.isfinite(command)))]
            raise ContractError(f"command of {bad} is not finite")
        self.data.ctrl[:] = self.layout.controls(np.clip(command, self._lower, self._upper))
        mujoco.mj_step(self.model, self.data, self._substeps)
        mujoco.mj_kinematics(self.model, self.data)
        self.ticks += 1
        self._scene = None
        if self.props.tick(self.model, self.data, self.scene(), self.station.step_s):
            self._scene = None
        self._judge.update(self.scene())

    def state(self) -> np.ndarray:
        """Measured joint positions (dof,) float64 [rad; gripper 0..1]."""
        return self.layout.state(self.data.qpos)

    def scene(self) -> Any:
        """The task's Scene."""
        if self._scene is None:
            self._scene = self.props.read(self.data, self._grips, self.props.memory)
        return self._scene

    def truth(self) -> Truth:
        qpos = pack(self.data, self.props.memory)
        return Truth(self._judge.stage, self._judge.success, self._judge.failure, qpos)

    def render(self, camera: str) -> np.ndarray:
        """Image of a camera (H, W, 3) uint8 RGB. Raises ContractError on an unknown camera."""
        size = self.station.camera(camera)
        key = (size.height, size.width)
        if key not in self._renderers:
            renderer = mujoco.Renderer(self.model, *key)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION,
                         mujoco.mjtRndFlag.mjRND_SKYBOX, mujoco.mjtRndFlag.mjRND_HAZE):  # fmt: skip
                renderer.scene.flags[flag] = 0
            self._renderers[key] = renderer
        renderer = self._renderers[key]
        renderer.update_scene(self.data, camera)
        return renderer.render()

    def keypoints(self, camera: str) -> dict[str, vision.Keypoint]:
        """See `vision.keypoints`."""
        return vision.keypoints(self, camera)

    def randomize(self, rng: np.random.Generator) -> None:
        """A random but plausible scene to render; `reset` before the next attempt."""
        mujoco.mj_resetData(self.model, self.data)
        self.props.scatter(self, rng)
        mujoco.mj_forward(self.model, self.data)
        self._scene = None

    def close(self) -> None:
        """Give back the rendering contexts; the cell can render again afterwards."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
