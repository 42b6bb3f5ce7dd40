"""Simulated tasks by name. A new one is one module here that gives a SimTask, and one entry below."""

from __future__ import annotations

import difflib

from recap_station.contract import ContractError, Task
from recap_station.sim.task import SimTask
from recap_station.sim.tasks.box import Box
from recap_station.sim.tasks.espresso import Espresso
from recap_station.sim.tasks.fold_diverse import FoldDiverse
from recap_station.sim.tasks.fold_shirt import FoldShirt
from recap_station.sim.tasks.fold_strict import FoldStrict
from recap_station.sim.tasks.handover_insert import HandoverInsert

TASKS: dict[str, type[SimTask]] = {
    "handover_insert": HandoverInsert,
    "espresso": Espresso,
    "box": Box,
    "fold_shirt": FoldShirt,
    "fold_strict": FoldStrict,
    "fold_diverse": FoldDiverse,
}


def sim_task(task: Task) -> SimTask:
    """The simulated side of a task. Raises ContractError with the nearest name."""
    if task.name not in TASKS:
        close = difflib.get_close_matches(task.name, TASKS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ContractError(f"no simulation of task {task.name!r}{hint} (there are: {', '.join(TASKS)})")
    return TASKS[task.name](task)
