"""What stands where, worked out from the truth that the cell publishes: for who has no cell of his own."""

from __future__ import annotations

import mujoco
import numpy as np

from recap_station.contract import Station, Task
from recap_station.sim.model import build_model
from recap_station.sim.tasks.handover_insert import Scene, SceneReader


class TruthReader:
    """A model of the cell that is put into the configuration told, never stepped."""

    def __init__(self, station: Station, task: Task) -> None:
        self._model = build_model(station, task)
        self._data = mujoco.MjData(self._model)
        self._reader = SceneReader(station, self._model)

    def read(self, qpos: np.ndarray) -> Scene:
        """qpos: `Truth.qpos`, the joints' positions and the socket's place after them."""
        nq = self._model.nq
        self._data.qpos[:] = qpos[:nq]
        self._data.mocap_pos[0] = qpos[nq : nq + 3]
        mujoco.mj_kinematics(self._model, self._data)
        return self._reader.read(self._data)
