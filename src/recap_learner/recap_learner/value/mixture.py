"""How often frames are drawn in training: by kind of data, by task, fresh or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from recap_learner.data.frames import Frames

KINDS = ("demonstration", "rollout", "correction")


@dataclass(frozen=True)
class Mixture:
    """Shares of a batch, in expectation. Without any, frames are drawn evenly.

    kinds: weight of each of KINDS within a task; one that is not named, or that a task has no frames of, has
    no share. by_task: the same for single tasks. tasks: weight of each task; those not named have none.
    fresh_share: share of what is fresh, 0.5 for half offline and half online data; which episodes are fresh
    is the caller's to say. Weights need not sum to one. Raises ValueError on unknown kinds and wrong numbers.
    """

    kinds: Mapping[str, float] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tasks: Mapping[str, float] = field(default_factory=dict)
    fresh_share: float | None = None

    def __post_init__(self) -> None:
        for weights in (self.kinds, *self.by_task.values()):
            if unknown := sorted(set(weights) - set(KINDS)):
                raise ValueError(f"mixture: kind {unknown[0]!r}, wanted {', '.join(KINDS)}")
        for weights in (self.kinds, *self.by_task.values(), self.tasks):
            wrong = [w for w in weights.values() if not 0 <= w < float("inf")]
            if wrong or (weights and not any(weights.values())):
                raise ValueError(f"mixture: weights {dict(weights)}, wanted numbers from 0, not all 0")
        if self.fresh_share is not None and not 0 <= self.fresh_share <= 1:
            raise ValueError(f"mixture: fresh share is {self.fresh_share}, wanted 0 to 1")

    @property
    def even(self) -> bool:
        return not (self.kinds or self.by_task or self.tasks) and self.fresh_share is None


def frame_kinds(frames: Frames) -> np.ndarray:
    """Index into KINDS of every frame → (F,) int8; a correction: a person commanded, during a rollout."""
    rollout = np.array([e.info.source != "demonstration" for e in frames.episodes])[frames.episode]
    corrected = frames.per_tick({e.info.id: e.correction for e in frames.episodes}).astype(bool)
    return np.where(corrected, 2, rollout.astype(np.int8)).astype(np.int8)


def frame_odds(frames: Frames, mixture: Mixture, fresh: np.ndarray | None = None) -> np.ndarray:
    """Probability of every frame → (F,) float64, summing to one. fresh: (E,) bool, by episode.

    Raises ValueError where no frame can be drawn, and where a fresh share is wanted and frames of both kinds,
    fresh and not, are not there.
    """
    tasks = np.array([e.info.task.name for e in frames.episodes])
    odds = np.zeros(len(frames))
    kind_of, task_of = frame_kinds(frames), tasks[frames.episode]
    for task in np.unique(task_of):
        rows = task_of == task
        share = mixture.tasks.get(str(task), 0.0) if mixture.tasks else rows.mean()
        weights = mixture.by_task.get(str(task), mixture.kinds)
        within = np.zeros(len(frames))
        for index, kind in enumerate(KINDS):
            chosen = rows & (kind_of == index)
            if weights and chosen.any():
                within[chosen] = weights.get(kind, 0.0) / chosen.sum()
        if not weights:
            within[rows] = 1.0
        if within.any():
            odds += share * within / within.sum()
    if not odds.any():
        found = ", ".join(sorted({f"{KINDS[k]} of {t}" for k, t in zip(kind_of, task_of, strict=True)}))
        raise ValueError(f"mixture: nothing has a share; found only frames of {found or 'nothing'}")
    odds /= odds.sum()
    if mixture.fresh_share is not None:
        none = np.zeros(len(frames.episodes), bool)
        odds = share_out(odds, (none if fresh is None else fresh)[frames.episode], mixture.fresh_share)
    return odds


def share_out(odds: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
    """The same odds within what is new and within the rest, with `share` of all for what is new → (F,).

    odds: (F,), summing to one; new: (F,) bool. Raises ValueError where one side has none.
    """
    new = np.asarray(new, bool)
    parts = odds[new].sum(), odds[~new].sum()
    if not min(parts) > 0:
        raise ValueError(
            f"mixture: a share of {share} is to be fresh, wanted frames of both kinds, "
            f"found {int(new.sum())} fresh and {int((~new).sum())} older ones with a share"
        )
    return odds * np.where(new, share / parts[0], (1 - share) / parts[1])
