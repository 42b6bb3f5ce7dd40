"""A writer of a store, to be killed: a module of its own, so that a process can start with it alone."""

from __future__ import annotations

from multiprocessing.synchronize import Semaphore
from pathlib import Path

import numpy as np

from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.store import Store
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")


def episode(name: str, ticks: int = 20, outcome: str = "success") -> Episode:
    """An attempt without images whose every number is `ticks`."""
    info = EpisodeInfo(name, "../bags/none", outcome, "", "rollout", "", 0, TASK, STATION)
    rows = np.full((ticks, STATION.dof), ticks, np.float32)
    text = np.array(["policy"] * ticks, dtype=object)
    flags = np.zeros(ticks, bool)
    return Episode(info, np.arange(ticks), rows, rows, rows, rows, text, flags, text, flags)


def write_forever(folder: Path, at_work: Semaphore) -> None:
    """One episode "e" of 10 to 16 ticks after the other, with labels, taken out now and then."""
    store, ticks, first = Store(folder), 10, True
    while True:
        ticks = 10 + (ticks - 9) % 7
        store.add(episode("e", ticks))
        store.save_labels("run", "e", {"value": np.full(ticks, ticks)}, {})
        store.index()
        if first:
            at_work.release()
            first = False
        if ticks == 13:
            store.remove("e")
