"""Simulated tasks by name. A new one is one file like handover_insert.py and one entry here."""

from __future__ import annotations

import difflib

from recap_station.contract import ContractError, Task
from recap_station.sim.tasks.handover_insert import HandoverInsert

PROPS = {"handover_insert": HandoverInsert}


def props_of(task: Task) -> HandoverInsert:
    """The simulated side of a task. Raises ContractError with the nearest name."""
    if task.name not in PROPS:
        close = difflib.get_close_matches(task.name, PROPS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ContractError(f"no simulation of task {task.name!r}{hint} (there are: {', '.join(PROPS)})")
    return PROPS[task.name](task)
