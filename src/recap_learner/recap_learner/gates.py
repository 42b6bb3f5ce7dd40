"""Is a value function worth trusting? Measured on episodes it did not train on.

An over-fitted or constant value gives labels that say nothing, silently; these numbers say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import spearmanr

from recap_learner.statistics import auc


@dataclass(frozen=True)
class ValueReport:
    """spread: standard deviation of V over frames; spearman: rank correlation with the return over all
    frames; spearman_success: the same within successes, where only progress can explain it;
    outcome_auc: success told from failure a second before the end; fast_auc: the faster half of the
    successes told from the slower by mean N-step advantage."""

    frames: int
    episodes: int
    spread: float
    spearman: float
    spearman_success: float
    outcome_auc: float
    fast_auc: float

    def problems(self) -> list[str]:
        """What fails, each as one line with found and wanted; empty if the value can be used."""
        wanted = [
            ("spread", self.spread, 0.02, "the output is nearly constant"),
            ("spearman", self.spearman, 0.4, "it hardly follows the return"),
            ("outcome_auc", self.outcome_auc, 0.7, "it cannot tell success from failure before the end"),
        ]
        return [
            f"{why}: {name} is {found:.3f}, wanted at least {least}"
            for name, found, least, why in wanted
            if not np.isnan(found) and found < least
        ]

    def to_dict(self) -> dict[str, float | None]:
        return {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in asdict(self).items()}


def judge_value(
    values: Sequence[np.ndarray],
    returns: Sequence[np.ndarray],
    success: Sequence[bool],
    advantages: Sequence[np.ndarray],
    second: int,
) -> ValueReport:
    """Judge per-tick values of held-out episodes against their returns.

    values, returns, advantages: one (T,) array an episode; second: ticks in one second.
    """
    pooled, truth = np.concatenate(values), np.concatenate(returns)
    won = [i for i, s in enumerate(success) if s]
    lost = [i for i, s in enumerate(success) if not s]
    late = [v[max(0, len(v) - 1 - second)] for v in values]
    lengths = {i: len(values[i]) for i in won}
    middle = np.median(list(lengths.values())) if won else 0
    mean_advantage = {i: float(advantages[i].mean()) for i in won}
    return ValueReport(
        frames=len(pooled),
        episodes=len(values),
        spread=float(pooled.std()),
        spearman=_spearman(pooled, truth),
        spearman_success=_spearman(
            np.concatenate([values[i] for i in won]) if won else np.empty(0),
            np.concatenate([returns[i] for i in won]) if won else np.empty(0),
        ),
        outcome_auc=auc(np.array([late[i] for i in won]), np.array([late[i] for i in lost])),
        fast_auc=auc(
            np.array([mean_advantage[i] for i in won if lengths[i] < middle]),
            np.array([mean_advantage[i] for i in won if lengths[i] >= middle]),
        ),
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0 if len(a) else float("nan")
    return float(spearmanr(a, b).statistic)
