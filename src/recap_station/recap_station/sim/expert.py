"""A scripted expert for every simulated task: from the simulator's truth to smooth commands.

It can take over from any state. How good it is, is dialled by a Style: the clean ones make no mistake of
their own, the sloppy ones do, notice most of them, and try again. What it does is the task's script.
"""

from __future__ import annotations

import numpy as np

from recap_station.contract import Station, Task
from recap_station.sim.scene import TruthReader
from recap_station.sim.styles import FAILING, FAST, MODERATE, SLOPPY, SLOW, STYLES, Style
from recap_station.sim.tasks import sim_task
from recap_station.sim.truth import Truth

__all__ = ["FAILING", "FAST", "MODERATE", "SLOPPY", "SLOW", "STYLES", "Expert", "Style"]


class Expert:
    """Drives both arms from truth to commands; same seed and same truths give the same commands."""

    def __init__(self, station: Station, task: Task, style: Style = FAST, seed: int = 0) -> None:
        self.station, self.style = station, style
        self._reader = TruthReader(station, task)
        self._script_of = sim_task(task).script()
        self._seed = seed
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forget everything; the next `act` starts from the state it is given."""
        self._seed = self._seed + 1 if seed is None else seed
        self.script = self._script_of(self.station, self.style, self._seed)

    @property
    def phase(self) -> str:
        """What it is doing, for a person to read."""
        return self.script.phase

    def act(self, truth: Truth, state: np.ndarray) -> np.ndarray:
        """Command (dof,) for the next tick from truth and the measured state (dof,)."""
        return self.script.act(self._reader.read(truth.qpos), state, truth.success)
