"""Random plausible scenes of the task, to learn to see on."""
from __future__ import annotations
from typing import TYPE_CHECKING
import numpy as np
if TYPE_CHECKING:
    from recap_station.sim.cell import Cell
def scatter(cell: Cell, rng: np.random.Generator) -> None:
    cell.props.place(cell.model, cell.data, rng)
