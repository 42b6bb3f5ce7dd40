"""Intervals against known values and by simulation."""

import numpy as np
import pytest

from recap_learner.statistics import auc, throughput_interval, throughput_per_hour, wilson_interval


def test_wilson_interval_matches_published_values():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for attempts in range(1, 200):
        assert wilson_interval(0, attempts)[0] == 0.0 and wilson_interval(attempts, attempts)[1] == 1.0


def test_throughput_counts_successes_per_hour_of_attempting():
    assert throughput_per_hour([True, False, True], [10, 20, 10]) == pytest.approx(180.0)
    assert throughput_per_hour([], []) == 0.0


def test_throughput_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        won = rng.random(60) < 0.5
        times = np.where(won, 6.0, 12.0)
        low, high = throughput_interval(won, times, seed=trial, resamples=400)
        covered += low <= 3600 * 0.5 / 9.0 <= high
    assert 0.87 < covered / 200 <= 1.0


def test_auc_of_separated_equal_and_missing_scores():
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert np.isnan(auc(np.array([]), np.array([1.0])))
