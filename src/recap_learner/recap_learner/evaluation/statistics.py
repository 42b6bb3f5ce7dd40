"""Rates, means and throughput with 95 % intervals, and two policies compared on the same start states.

Proportions get Wilson's score interval, everything else a bootstrap over attempts. All of it is for a number
of attempts that was fixed beforehand; where the count depends on what was seen, see
`recap_learner.evaluation.sequential`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Z95 = 1.959964
RESAMPLES = 4000
_AT_ONCE = 250  # resamples drawn in one array

Interval = tuple[float, float]


def wilson_interval(successes: int, attempts: int) -> Interval:
    """95 % Wilson score interval of a success rate (Wilson 1927); (0, 1) without attempts."""
    if attempts == 0:
        return 0.0, 1.0
    rate, z2 = successes / attempts, Z95 * Z95
    centre = (rate + z2 / (2 * attempts)) / (1 + z2 / attempts)
    half = Z95 / (1 + z2 / attempts) * math.sqrt(rate * (1 - rate) / attempts + z2 / (4 * attempts**2))
    # At none and at all the bound is exact, but for rounding.
    return min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate)


def mean_interval(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """95 % bootstrap interval of a mean; (nan, nan) without values."""
    return _bootstrap(np.asarray(values, float)[:, None], lambda means: means[:, 0], seed, resamples)


def throughput_per_hour(success: Sequence[bool], duration_s: Sequence[float], reset_s: float = 0.0) -> float:
    """Successes per hour of attempting, with `reset_s` seconds after each attempt counted too."""
    total = float(np.sum(duration_s)) + reset_s * len(duration_s)
    return 3600.0 * float(np.sum(success)) / total if total else 0.0


def throughput_interval(
    success: Sequence[bool],
    duration_s: Sequence[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
    reset_s: float = 0.0,
) -> Interval:
    """95 % bootstrap interval of the throughput over attempts.

    Where nobody or everybody succeeded, resampling sees no spread in the outcomes: there it is widened to
    what Wilson's interval of the success rate gives at the mean time of an attempt.
    """
    wins, times = np.asarray(success, float), np.asarray(duration_s, float) + reset_s
    if len(wins) == 0:
        return 0.0, 0.0
    low, high = _bootstrap(
        np.stack([wins, times], axis=1), lambda means: 3600.0 * means[:, 0] / means[:, 1], seed, resamples
    )
    if wins.min() == wins.max():
        worst, best = wilson_interval(int(wins.sum()), len(wins))
        low, high = min(low, 3600.0 * worst / times.mean()), max(high, 3600.0 * best / times.mean())
    return low, high


def clustered_interval(
    groups: Sequence[np.ndarray],
    measure: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """95 % bootstrap interval of measure(column means) where rows come in groups, such as the attempts of
    several trainings: groups are resampled, and the rows within each. groups: (n, k) each; measure: (R, k) →
    (R,). With few groups it is close to all that they can give, which is what they tell."""
    rng = np.random.default_rng(seed)
    means = np.stack([_resampled_means(rows, rng, resamples) for rows in groups])  # (G, R, k)
    pick = rng.integers(0, len(groups), (len(groups), resamples))
    # Each pick of a group is a resample of its own.
    chosen = np.stack([means[own, rng.permutation(resamples)] for own in pick])
    return _quantiles(measure(chosen.mean(0)), len(groups))


def paired_difference_interval(
    first: Sequence[float], second: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """95 % bootstrap interval of mean(second − first) over the same start states."""
    return mean_interval(np.asarray(second, float) - np.asarray(first, float), seed, resamples)


def throughput_ratio_interval(
    first: tuple[Sequence[bool], Sequence[float]],
    second: tuple[Sequence[bool], Sequence[float]],
    paired: bool,
    reset_s: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """95 % bootstrap interval of throughput(second) / throughput(first), each (success, duration_s).

    paired: start states are resampled, each with both attempts on it; else each side by itself. Infinite
    where the first has no success in a resample.
    """

    def rows(side: tuple[Sequence[bool], Sequence[float]]) -> np.ndarray:
        return np.stack([np.asarray(side[0], float), np.asarray(side[1], float) + reset_s], axis=1)

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (b[:, 0] / b[:, 1]) / (a[:, 0] / a[:, 1])
        return np.where(np.isnan(found), 1.0, found)  # neither succeeds: no difference

    one, two = rows(first), rows(second)
    if paired:
        return _bootstrap(
            np.concatenate([one, two], axis=1),
            lambda means: ratio(means[:, :2], means[:, 2:]),
            seed,
            resamples,
        )
    rng = np.random.default_rng(seed)
    found = ratio(_resampled_means(one, rng, resamples), _resampled_means(two, rng, resamples))
    return _quantiles(found, min(len(one), len(two)))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact McNemar test: among the start states that one policy alone solved, each of
    the two is as likely as the other (McNemar 1947; exact binomial)."""
    n, least = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)


def independent_difference_interval(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """95 % interval of rate(second) − rate(first), each (successes, attempts), of attempts that are not
    paired: Newcombe's hybrid of two Wilson intervals (Newcombe 1998, method 10)."""
    (a, n), (b, m) = first, second
    p, q = (a / n if n else 0.5), (b / m if m else 0.5)
    (low_p, high_p), (low_q, high_q) = wilson_interval(a, n), wilson_interval(b, m)
    gap = q - p
    return gap - math.hypot(q - low_q, high_p - p), gap + math.hypot(high_q - q, p - low_p)


def paired_rate_difference_interval(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """95 % interval of rate(second) − rate(first) over the same start states: Newcombe's score interval for
    pairs (Newcombe 1998, "Improved confidence intervals …", method 10). It has a width even where both came
    to the same on every start state, which a bootstrap has not."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    n, p, q = len(a), float(a.mean()), float(b.mean())
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - n / 2, 0)
    scale = math.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    phi = product / scale if scale else 0.0
    (low_p, high_p), (low_q, high_q) = (wilson_interval(int(x.sum()), n) for x in (a, b))

    def half(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return q - p - half(q - low_q, high_p - p), q - p + half(high_q - q, p - low_p)


def fisher_p(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Two-sided p of Fisher's exact test for two rates, each (successes, attempts), not paired."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[s, n - s] for s, n in (first, second)]).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p of several tests, adjusted so that the chance of any false finding is kept (Holm 1979)."""
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random positive scores above a random negative (ties count half)."""
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def _bootstrap(
    rows: np.ndarray, measure: Callable[[np.ndarray], np.ndarray], seed: int, resamples: int
) -> Interval:
    """Interval of measure(column means) over resampled rows. rows: (n, k); measure: (R, k) → (R,)."""
    if len(rows) == 0:
        return float("nan"), float("nan")
    return _quantiles(measure(_resampled_means(rows, np.random.default_rng(seed), resamples)), len(rows))


def _resampled_means(rows: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Column means of `resamples` resamples of the rows: (n, k) → (resamples, k)."""
    means = []
    for start in range(0, resamples, _AT_ONCE):
        pick = rng.integers(0, len(rows), (min(_AT_ONCE, resamples - start), len(rows)))
        means.append(rows[pick].mean(1))
    return np.concatenate(means)


def _quantiles(found: np.ndarray, n: int) -> Interval:
    """The 95 % in the middle, a little wider for few attempts: the percentiles at which a mean's interval has
    the width of Student's (the "expanded percentile" of Hesterberg 2015)."""
    from scipy.special import ndtr, stdtrit

    tail = 0.025
    if n > 1:
        tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    # Order statistics, not between two of them: a ratio may be infinite.
    low = np.quantile(found, tail, method="lower")
    high = np.quantile(found, 1 - tail, method="higher")
    return float(low), float(high)
