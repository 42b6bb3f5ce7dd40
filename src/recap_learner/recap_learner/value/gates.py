"""Is a value function worth trusting? Measured on episodes it did not train on.

An over-fitted or constant value gives labels that say nothing, silently; these numbers say so, and a run
whose value fails one of its gates ends with a verdict instead of a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from recap_learner.evaluation.statistics import auc

BEFORE_END_S = (0.5, 1.0, 2.0, 3.0, 5.0)
_FEWEST = 3  # episodes, or on each side of a comparison; fewer say nothing
_BINS = 10


class GateError(ValueError):
    """A value function that must not be used. One line with every gate that failed and what to do."""


@dataclass(frozen=True)
class Gates:
    """What a value function must reach on held-out episodes; None: that gate is not asked. Each is a field of
    ValueReport. The defaults (choice) lie between chance and what the value functions of a demo reach (spread
    0.15, Spearman 0.6 and 0.7 within successes, outcome 0.84, fast/slow 0.97, corrections 0.64, calibration
    0.04 at worst of four)."""

    spread: float | None = 0.02
    spearman: float | None = 0.4
    spearman_success: float | None = 0.2
    outcome_auc: float | None = 0.7
    fast_auc: float | None = 0.6
    correction_auc: float | None = 0.5
    fall_auc: float | None = 0.6
    calibration: float | None = 0.15  # at most


_WHY = {
    "spread": "the output is nearly constant",
    "spearman": "it hardly follows the return",
    "spearman_success": "it does not see progress within successes",
    "outcome_auc": "it cannot tell success from failure before the end",
    "fast_auc": "it cannot tell fast successes from slow ones",
    "correction_auc": "it holds corrections for worse than what they corrected",
    "fall_auc": "it does not fall where attempts were marked as lost",
    "calibration": "what it predicts is not what comes",
}


@dataclass(frozen=True)
class ValueReport:
    """spread: standard deviation of V over frames; spearman: rank correlation with the return over all
    frames; spearman_success: the same within successes, where only progress can explain it;
    outcome_auc: success told from failure a second before the end, outcome_auc_by_time: the same by seconds
    before the end; fast_auc: the faster half of the successes told from the slower by mean N-step advantage;
    correction_auc: within successes, frames that a person commanded told from autonomous ones of the same
    attempts by N-step advantage; calibration: mean over frames of |mean V − mean return| in tenths of like V;
    fall_auc: falls of V over two seconds around the marked moments of failure told from those around other
    frames of the same attempts, fall: their median. NaN: could not be measured."""

    frames: int
    episodes: int
    spread: float
    spearman: float
    spearman_success: float
    outcome_auc: float
    fast_auc: float
    correction_auc: float = float("nan")
    calibration: float = float("nan")
    fall_auc: float = float("nan")
    fall: float = float("nan")
    successes: int = -1
    outcome_auc_by_time: dict[str, float] = field(default_factory=dict)

    def problems(self, gates: Gates = Gates()) -> list[str]:
        """What fails, each as one line with found and wanted; empty if the value can be used."""
        found = []
        if self.successes == 0:
            found.append(
                f"no success among {self.episodes} episodes: nothing shows what is good; record "
                "demonstrations, or an easier start"
            )
        for name, bound in asdict(gates).items():
            value = getattr(self, name)
            if bound is None or np.isnan(value):
                continue
            if name == "calibration":
                if value > bound:
                    found.append(f"{_WHY[name]}: {name} is {value:.3f}, wanted at most {bound}")
            elif value < bound:
                found.append(f"{_WHY[name]}: {name} is {value:.3f}, wanted at least {bound}")
        return found

    def unmeasured(self) -> list[str]:
        """Gates that say nothing here, each as one line with the reason."""
        lost = self.episodes - self.successes
        why = {
            "spearman": f"{self.episodes} episodes",
            "spearman_success": f"{self.successes} successes",
            "outcome_auc": f"{self.successes} successes and {lost} failures",
            "fast_auc": f"{self.successes} successes",
            "correction_auc": "too few corrected frames in successes",
            "fall_auc": "too few marks: ./recap label mark STORE EPISODE failed SECONDS",
        }
        return [f"{name}: {text}" for name, text in why.items() if np.isnan(getattr(self, name))]

    def check(self, gates: Gates = Gates(), what: str = "the value function") -> None:
        """Raise GateError unless it can be used."""
        if problems := self.problems(gates):
            raise GateError(
                f"{what} fails {len(problems)} of its gates on held-out episodes: {'; '.join(problems)}. "
                "Look at outcomes, add episodes, train longer or smaller; what was trained is kept, and "
                "--gates warn goes on with it"
            )

    def to_dict(self) -> dict[str, Any]:
        def plain(v: Any) -> Any:
            if isinstance(v, dict):
                return {key: plain(inner) for key, inner in v.items()}
            return None if isinstance(v, float) and np.isnan(v) else v

        return plain(asdict(self))

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> ValueReport:
        """What `to_dict` gave, whatever else stands beside it."""
        known: dict[str, Any] = {f.name: found[f.name] for f in fields(ValueReport) if f.name in found}
        values: dict[str, Any] = {name: float("nan") if v is None else v for name, v in known.items()}
        return ValueReport(**values)


def check_found(found: Mapping[str, Any], gates: Gates, what: str) -> None:
    """`check` of what value.json says, on all tasks together and on each. Raises GateError."""
    ValueReport.from_dict(found).check(gates, what)
    for task, own in found.get("by_task", {}).items():
        ValueReport.from_dict(own).check(gates, f"{what}, on {task},")


def warnings(found: Mapping[str, Any], what: str) -> list[str]:
    """What value.json says of gates that fail, a line each."""
    lines = [f"{what}: {problem}" for problem in found.get("problems", ())]
    for task, own in found.get("by_task", {}).items():
        lines += [f"{what}, on {task}: {problem}" for problem in own.get("problems", ())]
    return lines


def judge_value(
    values: Sequence[np.ndarray],
    returns: Sequence[np.ndarray],
    success: Sequence[bool],
    advantages: Sequence[np.ndarray],
    second: int,
    corrections: Sequence[np.ndarray] | None = None,
    failed_at: Sequence[int] | None = None,
) -> ValueReport:
    """Judge per-tick values of held-out episodes against their returns.

    values, returns, advantages: one (T,) array an episode; second: ticks in one second; corrections: (T,)
    bool each; failed_at: tick of the marked moment of failure each, −1 where there is none. Raises ValueError
    without an episode.
    """
    if not values:
        raise ValueError("no held-out episode to judge the value function on")
    pooled, truth = np.concatenate(values), np.concatenate(returns)
    won = [i for i, s in enumerate(success) if s]
    lost = [i for i, s in enumerate(success) if not s]
    lengths = {i: len(values[i]) for i in won}
    middle = np.median(list(lengths.values())) if won else 0
    mean_advantage = {i: float(advantages[i].mean()) for i in won}
    by_time = {f"{s:g}": _auc(*_before_end(values, won, lost, round(s * second))) for s in BEFORE_END_S}
    fall_auc, fall = _falls(values, failed_at or [-1] * len(values), second)
    return ValueReport(
        frames=len(pooled),
        episodes=len(values),
        spread=float(pooled.std()),
        spearman=_spearman(values, returns),
        spearman_success=_spearman([values[i] for i in won], [returns[i] for i in won]),
        outcome_auc=_auc(*_before_end(values, won, lost, second)),
        fast_auc=_auc(
            np.array([mean_advantage[i] for i in won if lengths[i] < middle]),
            np.array([mean_advantage[i] for i in won if lengths[i] >= middle]),
        ),
        correction_auc=_correction_auc([advantages[i] for i in won], [corrections[i] for i in won], second)
        if corrections is not None
        else float("nan"),
        calibration=_calibration(pooled, truth) if len(values) >= _FEWEST else float("nan"),
        fall_auc=fall_auc,
        fall=fall,
        successes=len(won),
        outcome_auc_by_time=by_time,
    )


def _before_end(
    values: Sequence[np.ndarray], won: list[int], lost: list[int], ticks: int
) -> tuple[np.ndarray, np.ndarray]:
    late = [v[max(0, len(v) - 1 - ticks)] for v in values]
    return np.array([late[i] for i in won]), np.array([late[i] for i in lost])


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """NaN where a side has too few to say anything."""
    return auc(positive, negative) if min(len(positive), len(negative)) >= _FEWEST else float("nan")


def _correction_auc(
    advantages: Sequence[np.ndarray], corrections: Sequence[np.ndarray], second: int
) -> float:
    """Over all attempts that have a second of both kinds of frames."""
    both = [
        (a[c], a[~c])
        for a, c in zip(advantages, corrections, strict=True)
        if second <= c.sum() <= len(c) - second
    ]
    if len(both) < _FEWEST:
        return float("nan")
    return auc(np.concatenate([a for a, _ in both]), np.concatenate([b for _, b in both]))


def _falls(values: Sequence[np.ndarray], failed_at: Sequence[int], second: int) -> tuple[float, float]:
    """(AUC, median) of V(t − 1 s) − V(t + 1 s) at the marks; at an attempt's ends the nearest ticks count."""
    at_marks, elsewhere = [], []
    for v, mark in zip(values, failed_at, strict=True):
        if not 0 <= mark < len(v):
            continue
        tick = np.arange(len(v))
        fell = v[np.maximum(tick - second, 0)] - v[np.minimum(tick + second, len(v) - 1)]
        at_marks.append(float(fell[mark]))
        elsewhere.append(fell[np.abs(tick - mark) > 2 * second])
    if len(at_marks) < _FEWEST:
        return float("nan"), float("nan")
    return _auc(np.array(at_marks), np.concatenate(elsewhere)), float(np.median(at_marks))


def _calibration(values: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    gaps = [abs(float(values[part].mean()) - float(truth[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(values)


def _spearman(values: Sequence[np.ndarray], returns: Sequence[np.ndarray]) -> float:
    if len(values) < _FEWEST:
        return float("nan")
    a, b = np.concatenate(values), np.concatenate(returns)
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0
