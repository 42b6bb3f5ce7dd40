"""What stands where, worked out from the truth that the cell publishes: for who has no cell of his own."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from recap_station.contract import Station, Task
from recap_station.sim.grip import GripReader
from recap_station.sim.model import build_model
from recap_station.sim.tasks import sim_task


def pack(data: mujoco.MjData, memory: np.ndarray) -> np.ndarray:
    """`Truth.qpos`: the joints' positions, the places of what has no joint, the task's memory."""
    return np.concatenate([data.qpos, data.mocap_pos.ravel(), memory])


class TruthReader:
    """A model of the cell that is put into the configuration told, never stepped."""

    def __init__(self, station: Station, task: Task) -> None:
        self._task = sim_task(task)
        self._model = build_model(station, task, self._task)
        self._task.bind(self._model)
        self._data = mujoco.MjData(self._model)
        self._grips = GripReader(station, self._model)

    def read(self, qpos: np.ndarray) -> Any:
        """The task's Scene of a `Truth.qpos`."""
        nq, places = self._model.nq, self._data.mocap_pos
        self._data.qpos[:] = qpos[:nq]
        places[:] = qpos[nq : nq + places.size].reshape(places.shape)
        mujoco.mj_kinematics(self._model, self._data)
        return self._task.read(self._data, self._grips, qpos[nq + places.size :])
