"""A scripted operator: watches the simulator's truth, takes over when the attempt goes wrong, and lets go.

It stands in for a person with a pedal and leader arms, so that the loop can run unattended. Like a person it
is slow to notice, waits a while before it concludes that nothing moves, and works at a moderate pace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recap_station.contract import Station, Task
from recap_station.sim.expert import MODERATE, Expert, Style
from recap_station.sim.scene import TruthReader
from recap_station.sim.tasks import sim_task
from recap_station.sim.truth import Truth

PROGRESS_M = 0.01  # less than this nearer to the stage's goal is no progress


@dataclass(frozen=True)
class OperatorOutput:
    """command: (dof,) while pressed, else None; reason: why it pressed, for a person to read."""

    pressed: bool
    command: np.ndarray | None = None
    reason: str = ""


@dataclass(frozen=True)
class Habits:
    """patience_s: nothing comes nearer for so long → stuck. jam_s: likewise when something presses where it
    cannot go. latency_s: from seeing to pressing. settle_s: how long the repair must hold before it lets go.
    max_share: of the time limit that it may drive. rest_s: pause between two takeovers."""

    patience_s: float = 2.8
    jam_s: float = 1.6
    latency_s: float = 0.4
    settle_s: float = 0.4
    max_share: float = 0.5
    rest_s: float = 1.0


class Operator:
    """Pure and deterministic by seed. Call `update` once per control tick, `reset` before each attempt."""

    def __init__(
        self, station: Station, task: Task, seed: int, habits: Habits | None = None, style: Style = MODERATE
    ) -> None:
        self.task, self.habits = task, habits or Habits()
        self._reader = TruthReader(station, task)
        self._signs = sim_task(task).signs()
        self._expert = Expert(station, task, style, seed)
        self._seed, self._attempts = seed, 0
        self._step_s = station.step_s
        self.reset()

    def reset(self) -> None:
        self._rng = np.random.default_rng([self._seed, self._attempts])
        self._attempts += 1
        self._patience = self.habits.patience_s * self._rng.uniform(0.9, 1.1)
        self._pressed, self._reason = False, ""
        self._used_s = 0.0
        self._rest_until = 0.0
        self._noticed_at: float | None = None
        self._stage: int | None = None
        self._furthest = 0
        self._watch_from(0.0)

    def update(self, truth: Truth, state: np.ndarray, time_s: float) -> OperatorOutput:
        """Pedal and leader command of this tick, from truth, measured state (dof,) and the attempt's time."""
        scene = self._reader.read(truth.qpos)
        stage = self.task.stages.index(truth.stage)
        if truth.success or truth.failure:
            self._pressed = False
            return OperatorOutput(False)
        if not self._pressed:
            self._watch(scene, stage, time_s)
            if self._noticed_at is None or time_s - self._noticed_at < self.habits.latency_s:
                return OperatorOutput(False)
            self._press(stage)
        self._used_s += self._step_s
        if self._repaired(scene, stage) or self._used_s > self.habits.max_share * self.task.time_limit_s:
            self._pressed = False
            self._rest_until = time_s + self.habits.rest_s
            self._watch_from(time_s)
            self._stage, self._furthest = stage, stage
            return OperatorOutput(False)
        return OperatorOutput(True, self._expert.act(truth, state), self._reason)

    # ---- watching -----------------------------------------------------------------------------

    def _watch_from(self, time_s: float) -> None:
        self._nearest, self._nearest_at = np.inf, time_s
        self._noticed_at = None

    def _watch(self, scene: Any, stage: int, time_s: float) -> None:
        """Note since when the attempt goes wrong, if it does."""
        if stage != self._stage:
            self._stage = stage
            self._nearest, self._nearest_at = np.inf, time_s
        if (left := self._signs.to_go(scene, stage)) < self._nearest - PROGRESS_M:
            self._nearest, self._nearest_at = left, time_s
        self._furthest = max(self._furthest, stage)
        reason = self._signs.trouble(scene, stage, self._furthest)
        patience = self.habits.jam_s if self._signs.jammed(scene, stage) else self._patience
        if not reason and time_s - self._nearest_at > patience:
            reason = f"no progress in stage {self.task.stages[stage]}"
        spent = self._used_s >= self.habits.max_share * self.task.time_limit_s
        if not reason or spent or time_s < self._rest_until:
            self._noticed_at = None
        elif self._noticed_at is None:
            self._noticed_at, self._reason = time_s, reason

    # ---- driving ------------------------------------------------------------------------------

    def _press(self, stage: int) -> None:
        self._pressed = True
        self._went_wrong_in = stage
        self._repaired_s = 0.0
        self._expert.reset(int(self._rng.integers(2**31)))

    def _repaired(self, scene: Any, stage: int) -> bool:
        wrong = self._went_wrong_in
        good = self._signs.repaired(scene, stage, wrong)
        self._repaired_s = self._repaired_s + self._step_s if good else 0.0
        at_once = good and self._signs.repaired_at_once(wrong)
        return self._repaired_s >= (0.0 if at_once else self.habits.settle_s)
