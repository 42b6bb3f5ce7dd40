"""The cell of a station and a task, whichever simulator has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from recap_station.contract import Station, Task
from recap_station.sim import gym_aloha

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

AnyCell: TypeAlias = "Cell | gym_aloha.GymAlohaCell"


def make_cell(station: Station, task: Task) -> AnyCell:
    """Raises ContractError where the task has no simulation here."""
    if task.name in gym_aloha.TASKS:
        return gym_aloha.GymAlohaCell(station, task)
    from recap_station.sim.cell import Cell

    return Cell(station, task)
