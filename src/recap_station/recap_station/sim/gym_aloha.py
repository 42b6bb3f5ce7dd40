"""gym-aloha's two tasks as cells: the same scenes, start states and rewards as in published results.

The package (PyPI gym-aloha, Apache-2.0; tasks of ACT, arXiv 2304.13705) is optional and wants an older MuJoCo
than this project: requirements-gym-aloha.txt, in a folder of its own. Its scenes and tasks are driven
without its `gym.Env`, which renders three large images in every step whether anybody looks or not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recap_station.contract import ContractError, Station, Task
from recap_station.sim.truth import Truth

TASKS = {"aloha_transfer_cube": "transfer_cube", "aloha_insertion": "insertion"}
SUCCESS = 4  # the reward that ends an attempt; those below are its stages


class GymAlohaCell:
    """As `recap_station.sim.cell.Cell`. A seed gives the start state that `env.reset(seed=…)` gives.

    Raises ContractError where gym-aloha is missing or the station is not its two arms at 50 Hz.
    """

    def __init__(self, station: Station, task: Task) -> None:
        try:
            from dm_control import mujoco
            from gym_aloha import constants, utils
            from gym_aloha.tasks import sim
        except ImportError as error:
            raise ContractError(
                f"task {task.name} wants gym-aloha; {error.name} is not installed: requirements-gym-aloha.txt"
            ) from error
        if station.dof != len(constants.ACTIONS) or abs(station.step_s - constants.DT) > 1e-9:
            raise ContractError(
                f"task {task.name}: {station.dof} joints at {station.control_rate_hz:g} Hz, wanted "
                f"{len(constants.ACTIONS)} at {1 / constants.DT:g} Hz (station gym_aloha)"
            )
        if len(task.stages) != SUCCESS:
            raise ContractError(f"task {task.name}: {len(task.stages)} stages, wanted {SUCCESS}: its rewards")
        self.station, self.task = station, task
        name = TASKS[task.name]
        self._start = sim.BOX_POSE
        insertion = name == "insertion"
        self._place: Any = utils.sample_insertion_pose if insertion else utils.sample_box_pose
        self._rules: Any = (sim.InsertionTask if insertion else sim.TransferCubeTask)(random=0)
        scene = constants.ASSETS_DIR / f"bimanual_viperx_{name}.xml"
        self._physics: Any = mujoco.Physics.from_xml_path(str(scene))
        self._substeps = round(station.step_s / self._physics.timestep())
        self.ticks, self._reward, self._best = 0, 0, 0
        self.reset(0)

    @property
    def time_s(self) -> float:
        return self.ticks * self.station.step_s

    def reset(self, seed: int) -> None:
        self._start[0] = np.hstack(self._place(seed))
        self._rules.initialize_episode(self._physics)
        self.ticks, self._reward, self._best = 0, 0, 0

    def step(self, command: np.ndarray) -> None:
        """One control tick with `command` (14,) [rad; gripper 0..1]. Raises ContractError on what is not."""
        command = np.asarray(command, dtype=np.float64)
        if command.shape != (self.station.dof,) or not np.isfinite(command).all():
            raise ContractError(f"command {command}, wanted {self.station.dof} finite numbers")
        self._rules.before_step(command, self._physics)
        self._physics.step(self._substeps)
        self._rules.after_step(self._physics)
        self.ticks += 1
        self._reward = int(self._rules.get_reward(self._physics))
        self._best = max(self._best, self._reward)

    def state(self) -> np.ndarray:
        """Measured joint positions (14,) float64 [rad; gripper 0..1]."""
        return np.asarray(self._rules.get_qpos(self._physics))

    def truth(self) -> Truth:
        """Its stage is the highest reward so far, its success that of this tick, as in gym-aloha."""
        stage = self.task.stages[min(self._best, SUCCESS - 1)]
        return Truth(stage, self._reward == SUCCESS, False, self._physics.data.qpos.copy())

    def render(self, camera: str) -> np.ndarray:
        """Image of a camera of the scene (H, W, 3) uint8 RGB; `top` is the published one."""
        size = self.station.camera(camera)
        return self._physics.render(height=size.height, width=size.width, camera_id=camera)

    def close(self) -> None:
        self._physics.free()
