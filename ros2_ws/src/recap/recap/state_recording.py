"""Attempts with states of things instead of images: straight to an episode file, without a bag.

What the recorder and the converter do for bags, in one: a study makes thousands of attempts that nobody will
replay. Everything that is learnt from is the same columns (`recap_learner.data.episode_file`).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from recap_learner.data.episode_file import SUFFIX, Episode, EpisodeInfo, save_episode
from recap_station.contract import Station, Task
from recap_station.sim.cell import Cell, Truth
from recap_teleop.settings import Command


class StateRecording:
    """One attempt, in memory until it is over; nothing is left of one that is broken off."""

    def __init__(
        self, folder: Path, source: str, checkpoint: str, station: Station, task: Task, cell: Cell, seed: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.about: dict[str, Any] = {"source": source, "checkpoint": checkpoint, "seed": seed, "task": task}
        self.station, self.cell = station, cell
        self.id = f"{source}_{seed:06d}"
        self.path = folder / f"{self.id}{SUFFIX}"
        self.rows: dict[str, list[Any]] = defaultdict(list)

    def tick(
        self,
        tick: int,
        state: np.ndarray,
        truth: Truth,
        command: Command,
        policy_command: np.ndarray | None,
        teleop_command: np.ndarray | None,
    ) -> None:
        nothing = np.full(len(state), np.nan)
        row = {
            "state": state,
            "command": command.positions,
            "policy_command": nothing if policy_command is None else policy_command,
            "teleop_command": nothing if teleop_command is None else teleop_command,
            "source": command.source,
            "stage": truth.stage,
            "mode": command.mode.value,
            "objects": self.cell.scene().features(),
        }
        for name, value in row.items():
            self.rows[name].append(value)

    def stop(self, ticks: int, success: bool, reason: str) -> str:
        """Write it → the path."""
        rows, count = self.rows, len(self.rows["state"])
        info = EpisodeInfo(
            **self.about, id=self.id, bag="", outcome="success" if success else "failure", reason=reason,
            station=self.station,
        )  # fmt: skip
        source = np.array(rows["source"], dtype=object)
        corrected = (source == "teleop") & (self.about["source"] != "demonstration")
        episode = Episode(
            info=info,
            time_ns=np.arange(count, dtype=np.int64) * round(self.station.step_s * 1e9),
            state=np.array(rows["state"], dtype=np.float32),
            command=np.array(rows["command"], dtype=np.float32),
            policy_command=np.array(rows["policy_command"], dtype=np.float32),
            teleop_command=np.array(rows["teleop_command"], dtype=np.float32),
            objects=np.array(rows["objects"], dtype=np.float32),
            source=source,
            correction=corrected,
            stage=np.array(rows["stage"], dtype=object),
            gap=np.zeros(count, bool),
            mode=np.array(rows["mode"], dtype=np.int8),
        )
        save_episode(episode, self.path)
        return str(self.path)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
