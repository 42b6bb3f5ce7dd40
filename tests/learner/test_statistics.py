"""Intervals and tests against hand-computed cases, and by simulation."""

import math

import numpy as np
import pytest

from recap_learner.evaluation.statistics import (
    auc,
    fisher_p,
    holm,
    independent_difference_interval,
    mcnemar_p,
    mean_interval,
    paired_difference_interval,
    paired_rate_difference_interval,
    throughput_interval,
    throughput_per_hour,
    throughput_ratio_interval,
    wilson_interval,
)


def coverage(truth: float, interval, trials: int, seed: int = 0) -> float:
    """Share of simulated evaluations whose interval holds the truth. interval: of a random generator."""
    rng = np.random.default_rng(seed)
    found = [interval(rng) for _ in range(trials)]
    return sum(low <= truth <= high for low, high in found) / trials


def attempts(rng: np.random.Generator, n: int, rate: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Successes after about 6 s, failures at the time limit of 12 s."""
    won = rng.random(n) < rate
    return won, np.where(won, rng.gamma(9.0, 6.0 / 9.0, n), 12.0)


def test_wilson_interval_matches_published_values():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in range(1, 200):
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


def test_wilson_interval_covers_as_it_says_on_average_over_rates():
    """Exactly, from the binomial distribution; at single rates it wavers about 95 %."""
    n, covered = 50, []
    inside = [wilson_interval(k, n) for k in range(n + 1)]
    for rate in np.linspace(0.02, 0.98, 97):
        chance = [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
        covered.append(sum(c for c, (lo, hi) in zip(chance, inside, strict=True) if lo <= rate <= hi))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.008) and min(covered) > 0.89


def test_throughput_counts_successes_per_hour_with_or_without_the_resets():
    assert throughput_per_hour([True, False, True], [10, 20, 10]) == pytest.approx(180.0)
    assert throughput_per_hour([True, False, True], [10, 20, 10], reset_s=20.0) == pytest.approx(72.0)
    assert throughput_per_hour([], []) == 0.0


@pytest.mark.parametrize(("n", "reset_s"), [(60, 0.0), (15, 30.0)])
def test_throughput_interval_covers_the_truth_about_as_often_as_it_says(n, reset_s):
    covered = coverage(
        3600 * 0.5 / (9.0 + reset_s),
        lambda rng: throughput_interval(*attempts(rng, n), resamples=400, reset_s=reset_s),
        400,
    )
    assert 0.92 <= covered <= 0.98


def test_throughput_interval_without_a_failure_or_a_success_still_has_a_width():
    low, high = throughput_interval([True] * 20, [6.0] * 20)
    assert low == pytest.approx(600 * wilson_interval(20, 20)[0]) and high == pytest.approx(600.0)
    low, high = throughput_interval([False] * 20, [12.0] * 20)
    assert low == 0.0 and high == pytest.approx(300 * wilson_interval(0, 20)[1])


def test_mean_interval_of_few_skewed_values_covers_about_as_often_as_it_says():
    truth = 6.0
    covered = coverage(truth, lambda rng: mean_interval(rng.gamma(2.0, 3.0, 20), resamples=400), 400)
    assert 0.90 <= covered <= 0.97  # a bootstrap of 20 skewed values falls a little short
    assert all(math.isnan(v) for v in mean_interval([]))
    assert mean_interval([4.0]) == (4.0, 4.0)


def test_paired_difference_is_narrower_where_start_states_decide():
    def paired(rng):
        hard = rng.random(80)
        return paired_difference_interval(hard < 0.4, hard < 0.6, resamples=400)

    assert 0.92 <= coverage(0.2, paired, 300) <= 0.98
    low, high = paired(np.random.default_rng(0))
    apart = independent_difference_interval((32, 80), (48, 80))
    assert high - low < 0.7 * (apart[1] - apart[0])


def test_newcombe_interval_matches_the_published_example():
    # Newcombe 1998, table II (a): 56/70 against 48/80
    low, high = independent_difference_interval((48, 80), (56, 70))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=2e-4)


def test_paired_newcombe_interval_matches_the_published_example_and_covers():
    # Newcombe 1998, table II: 36 both, 12 only the second, 2 only the first, 0 neither.
    first = [True] * 36 + [False] * 12 + [True] * 2
    second = [True] * 36 + [True] * 12 + [False] * 2
    assert paired_rate_difference_interval(first, second) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    low, high = paired_rate_difference_interval([True] * 20, [True] * 20)
    assert low == -high and high == pytest.approx(0.161, abs=1e-3)

    def paired(rng):
        hard = rng.random(50)
        return paired_rate_difference_interval(hard < 0.75, hard + 0.2 * rng.random(50) < 1.0)

    assert 0.92 <= coverage(0.9 - 0.75, paired, 500) <= 0.99


def test_exact_mcnemar_by_hand():
    assert mcnemar_p(0, 0) == 1.0 and mcnemar_p(3, 3) == 1.0
    assert mcnemar_p(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_p(1, 9) == pytest.approx(2 * (1 + 10) / 1024) == mcnemar_p(9, 1)


def test_fisher_by_hand():
    # 3 of 3 against 0 of 3: both extreme tables of 20
    assert fisher_p((3, 3), (0, 3)) == pytest.approx(2 / 20)


def test_holm_adjusts_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_throughput_ratio_paired_and_not():
    def sides(rng):
        hard, pace = rng.random(80), rng.uniform(4.0, 8.0, 80)
        a, b = hard < 0.5, hard < 0.7
        return (a, np.where(a, pace, 12.0)), (b, np.where(b, 0.8 * pace, 12.0))

    truth = (0.7 / (0.7 * 4.8 + 0.3 * 12)) / (0.5 / (0.5 * 6 + 0.5 * 12))

    def interval(rng, paired):
        return throughput_ratio_interval(*sides(rng), paired=paired, resamples=400)

    assert 0.92 <= coverage(truth, lambda rng: interval(rng, True), 300) <= 0.98
    narrow, wide = (interval(np.random.default_rng(1), paired) for paired in (True, False))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    none, some = ([False] * 9, [12.0] * 9), ([True] * 9, [6.0] * 9)
    assert throughput_ratio_interval(none, some, paired=True) == (math.inf, math.inf)
    assert throughput_ratio_interval(none, none, paired=True) == (1.0, 1.0)


def test_auc_of_separated_equal_and_missing_scores():
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert np.isnan(auc(np.array([]), np.array([1.0])))
