"""Stage, success and failure of an attempt, from scenes one control tick apart."""

from __future__ import annotations

from typing import Any

STEADY_S = 0.1  # what lasts a tick or two does not count: a stage would flicker


class Judge:
    """A task says what a scene looks like (`wanted`, `done`, `lost`, `broken`); time is kept here."""

    LOST_S = 1.5  # a prop out of reach for so long is out of reach for good

    def __init__(self, stages: tuple[str, ...], step_s: float) -> None:
        self._stages, self._step_s = stages, step_s
        self.reset()

    def wanted(self, scene: Any, stage: int) -> int:
        """The stage that a scene belongs to, if it lasts."""
        raise NotImplementedError

    def done(self, scene: Any) -> bool:
        """Whether the scene is the goal."""
        raise NotImplementedError

    def lost(self, scene: Any) -> bool:
        """Whether nothing can be done any more, should it stay so."""
        return False

    def broken(self, scene: Any) -> bool:
        """Whether the attempt has failed beyond recovery."""
        return False

    def reset(self) -> None:
        self._stage = self._wanted = 0
        self._wanted_s = self._in_s = self._lost_s = 0.0
        self.success = self.failure = False

    @property
    def stage(self) -> str:
        return self._stages[self._stage]

    def update(self, scene: Any) -> None:
        wanted = self.wanted(scene, self._stage)
        self._wanted_s = self._wanted_s + self._step_s if wanted == self._wanted else 0.0
        self._wanted = wanted
        if self._wanted_s >= STEADY_S:
            self._stage = wanted

        self._in_s = self._in_s + self._step_s if self.done(scene) else 0.0
        self.success = self.success or (self._in_s >= STEADY_S and not self.failure)
        self._lost_s = self._lost_s + self._step_s if self.lost(scene) else 0.0
        self.failure = self.failure or (
            not self.success and (self.broken(scene) or self._lost_s >= self.LOST_S)
        )
