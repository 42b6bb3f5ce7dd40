"""Looking at an evaluation while it runs, and stopping it early, without fooling oneself.

A 95 % interval that is looked at after every attempt, and acted on when it looks well, is wrong far more
often than once in twenty. What is here may be looked at after every attempt and stopped at will: under the
hypothesis, a mixture of likelihood ratios is a martingale that starts at 1, and the chance that it ever
reaches 1/α is at most α (Ville 1939; Robbins 1970). The mixture is uniform over the unknown rate, so the
ratio is a ratio of beta functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, lgamma, log

import numpy as np

_STEPS = 60  # of bisection: to less than 1e-15


def confidence_sequence(successes: int, attempts: int, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of a success rate that covers it at all attempt counts at once with probability 1 − alpha.

    It holds whenever, and for whatever reason, the evaluation is stopped, and is wider than Wilson's for it.
    """
    failures = attempts - successes
    limit = log(1 / alpha) - _log_beta(1 + successes, 1 + failures)

    def allowed(rate: float) -> bool:
        return -_log_likelihood(rate, successes, failures) < limit

    middle = successes / attempts if attempts else 0.5

    def bound(outside: float) -> float:
        if allowed(outside):
            return outside
        inside = middle
        for _ in range(_STEPS):
            between = 0.5 * (inside + outside)
            inside, outside = (between, outside) if allowed(between) else (inside, between)
        return outside

    return bound(0.0), bound(1.0)


def sequential_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """p of the hypothesis that both policies are as good, from attempts in the order of their start states;
    valid at whatever count it is looked at.

    The sequential form of McNemar's test: of the start states that one policy alone solved, each is the
    second's with probability 1/2; the p is 1 over the largest mixture likelihood ratio so far.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    most, wins, seen = 0.0, 0, 0
    for alone in b[a != b]:
        wins, seen = wins + int(alone), seen + 1
        most = max(most, _log_beta(1 + wins, 1 + seen - wins) + seen * log(2))
    return min(1.0, exp(-most))


@dataclass(frozen=True)
class Stopping:
    """When an evaluation may end before its last attempt.

    width: once every policy's confidence sequence is at most so wide, upper end minus lower; decided: once
    each policy after the first is told from the first. alpha is shared among the comparisons (Bonferroni).
    """

    width: float | None = None
    decided: bool = False
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.width is not None and not 0 < self.width < 1:
            raise ValueError(f"width of an interval: wanted more than 0 and less than 1, found {self.width}")

    @property
    def early(self) -> bool:
        return self.width is not None or self.decided

    def reason(self, outcomes: Sequence[Sequence[bool]]) -> str:
        """Why to stop now, empty if not. outcomes: one row a policy, in the order of the start states."""
        if not outcomes or not outcomes[0]:
            return ""
        if self.width is not None and self._widest(outcomes) <= self.width:
            return f"every interval of success is at most {self.width:g} wide"
        if self.decided and len(outcomes) > 1:
            level = self.alpha / (len(outcomes) - 1)
            if all(sequential_p(outcomes[0], other) <= level for other in outcomes[1:]):
                return "every policy is told from the first"
        return ""

    def _widest(self, outcomes: Sequence[Sequence[bool]]) -> float:
        bounds = [confidence_sequence(sum(row), len(row), self.alpha) for row in outcomes]
        return max(high - low for low, high in bounds)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _log_likelihood(rate: float, successes: int, failures: int) -> float:
    """Of one order of so many successes and failures."""
    if (rate == 0 and successes) or (rate == 1 and failures):
        return -inf
    return (successes * log(rate) if successes else 0.0) + (failures * log(1 - rate) if failures else 0.0)
