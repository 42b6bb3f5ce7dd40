"""Values of every tick of many episodes, end to end in flat arrays: what labels are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from recap_learner.value.returns import Normalizer, renormalize


@dataclass(frozen=True)
class EpisodeValues:
    """What labelling needs of one episode. values: (T,) normalised; correction: (T,) bool, ticks that a
    person commanded during a rollout; failed: (T, 2) as `returns.renormalize`'s, where it is known;
    failed_at: the tick that a person marked as the one at which the attempt was lost, −1: none."""

    episode: str
    values: np.ndarray
    success: bool
    correction: np.ndarray
    sets_threshold: bool  # its autonomous frames are those the threshold is a quantile of
    task: str = ""
    failed: np.ndarray | None = None
    failed_at: int = -1
    source: str = ""


@dataclass(frozen=True)
class Ticks:
    """E episodes, N ticks. success, sets_threshold: (E,) bool; failed_at: (E,) int64, −1 none; starts:
    (E + 1,) int64; value: (N,); correction: (N,) bool; failed: (N, 2) or None; norms: by task, those that the
    values are normalised by. The rest as in EpisodeValues."""

    episode: tuple[str, ...]
    task: tuple[str, ...]
    source: tuple[str, ...]
    success: np.ndarray
    sets_threshold: np.ndarray
    failed_at: np.ndarray
    starts: np.ndarray
    value: np.ndarray
    correction: np.ndarray
    failed: np.ndarray | None
    norms: Mapping[str, Normalizer]

    @staticmethod
    def of(episodes: Sequence[EpisodeValues], norms: Mapping[str, Normalizer]) -> Ticks:
        """Raises ValueError without a tick, on an episode without one, on columns of different lengths, on
        values that are no numbers, and on a task without a normaliser."""
        if not episodes:
            raise ValueError("no episode to label")
        for e in episodes:
            failed = len(e.values) if e.failed is None else len(e.failed)
            if not len(e.values) or not len(e.values) == len(e.correction) == failed:
                raise ValueError(
                    f"{e.episode}: {len(e.values)} values, {len(e.correction)} ticks and {failed} chances of "
                    "failure, wanted as many of each and at least one"
                )
            if e.task not in norms:
                raise ValueError(f"{e.episode}: task {e.task!r} has no normaliser, found {sorted(norms)}")
        value = np.concatenate([e.values for e in episodes])
        if not np.isfinite(value).all():
            bad = next(e.episode for e in episodes if not np.isfinite(e.values).all())
            raise ValueError(f"{bad}: a value is no number: train the value function anew")
        parts = [e.failed for e in episodes if e.failed is not None]
        return Ticks(
            episode=tuple(e.episode for e in episodes),
            task=tuple(e.task for e in episodes),
            source=tuple(e.source for e in episodes),
            success=np.array([e.success for e in episodes], bool),
            sets_threshold=np.array([e.sets_threshold for e in episodes], bool),
            failed_at=np.array([e.failed_at for e in episodes], np.int64),
            starts=np.cumsum([0, *(len(e.values) for e in episodes)]),
            value=value,
            correction=np.concatenate([e.correction for e in episodes]).astype(bool),
            failed=np.concatenate(parts) if len(parts) == len(episodes) else None,
            norms=dict(norms),
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def spread(self, column: np.ndarray) -> np.ndarray:
        """One value an episode (E,) → one a tick (N,)."""
        return np.repeat(column, self.lengths)

    def split(self, column: np.ndarray) -> dict[str, np.ndarray]:
        """(N, …) → episode → (T, …), views."""
        parts = np.split(column, self.starts[1:-1])
        return dict(zip(self.episode, parts, strict=True))

    def of_task(self, task: str) -> tuple[Ticks, np.ndarray]:
        """The episodes of one task, and the places of their ticks (n,) int64 in these arrays."""
        return self.part(np.array([name == task for name in self.task]))

    def part(self, mine: np.ndarray) -> tuple[Ticks, np.ndarray]:
        """The episodes of a mask (E,), and the places of their ticks (n,) int64 in these arrays."""
        if mine.all():
            return self, np.arange(self.starts[-1])
        rows = np.flatnonzero(self.spread(mine))
        chosen = np.flatnonzero(mine).tolist()
        part = replace(
            self,
            episode=tuple(self.episode[i] for i in chosen),
            task=tuple(self.task[i] for i in chosen),
            source=tuple(self.source[i] for i in chosen),
            success=self.success[mine],
            sets_threshold=self.sets_threshold[mine],
            failed_at=self.failed_at[mine],
            starts=np.cumsum([0, *self.lengths[mine]]),
            value=self.value[rows],
            correction=self.correction[rows],
            failed=None if self.failed is None else self.failed[rows],
        )
        return part, rows

    def under(self, norms: Mapping[str, Normalizer]) -> Ticks:
        """With values told under other normalisers; those not given stay. Raises as `returns.renormalize`."""
        norms = {**self.norms, **{task: norm for task, norm in norms.items() if task in self.norms}}
        if norms == dict(self.norms):
            return self
        value = np.empty(len(self.value), np.float32)
        failed = None if self.failed is None else np.empty((len(value), 2), np.float32)
        for task in dict.fromkeys(self.task):
            part, rows = self.of_task(task)
            told, chance = renormalize(part.value, part.failed, self.norms[task], norms[task])
            value[rows] = told
            if failed is not None:
                failed[rows] = chance
        return replace(self, value=value, failed=failed, norms=norms)
