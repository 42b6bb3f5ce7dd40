"""Success rate and throughput with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959964


def wilson_interval(successes: int, attempts: int) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate; (0, 1) without attempts."""
    if attempts == 0:
        return 0.0, 1.0
    rate, z2 = successes / attempts, Z95 * Z95
    centre = (rate + z2 / (2 * attempts)) / (1 + z2 / attempts)
    half = Z95 / (1 + z2 / attempts) * math.sqrt(rate * (1 - rate) / attempts + z2 / (4 * attempts**2))
    # At none and at all the bound is exact, but for rounding.
    return min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate)


def throughput_per_hour(success: Sequence[bool], duration_s: Sequence[float]) -> float:
    """Successes per hour of attempting (time between attempts is not counted)."""
    total = float(np.sum(duration_s))
    return 3600.0 * float(np.sum(success)) / total if total else 0.0


def throughput_interval(
    success: Sequence[bool], duration_s: Sequence[float], seed: int = 0, resamples: int = 4000
) -> tuple[float, float]:
    """95 % bootstrap interval of the throughput over attempts."""
    wins, times = np.asarray(success, float), np.asarray(duration_s, float)
    if len(wins) == 0:
        return 0.0, 0.0
    pick = np.random.default_rng(seed).integers(0, len(wins), (resamples, len(wins)))
    rates = 3600.0 * wins[pick].sum(1) / times[pick].sum(1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def paired_difference_interval(
    first: Sequence[float], second: Sequence[float], seed: int = 0, resamples: int = 4000
) -> tuple[float, float]:
    """95 % bootstrap interval of mean(second − first) over the same seeds."""
    gap = np.asarray(second, float) - np.asarray(first, float)
    pick = np.random.default_rng(seed).integers(0, len(gap), (resamples, len(gap)))
    low, high = np.quantile(gap[pick].mean(1), [0.025, 0.975])
    return float(low), float(high)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random positive scores above a random negative (ties count half)."""
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))
