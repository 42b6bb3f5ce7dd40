"""A value function that says nothing is caught, and one that says something passes."""

from dataclasses import replace

import numpy as np
import pytest

from recap_learner.value.gates import GateError, Gates, judge_value
from recap_learner.value.returns import Normalizer, monte_carlo_returns, n_step_advantages

NORM = Normalizer(750)
COUNT = 40


def attempts(seed: int = 0):
    """Lengths, outcomes, and the tick at which each failure is lost: a second and a half before its end."""
    rng = np.random.default_rng(seed)
    lengths, success = rng.integers(200, 700, COUNT), np.arange(COUNT) % 2 == 0
    return rng, lengths, success, np.where(success, -1, lengths - 75)


def expectation(rng, length, won, lost_at, odds=0.5):
    """What can be known: how far the attempt has come, as if all took 450 ticks, and, from `lost_at`, that it
    is lost; before that one in two will be."""
    left = 450 * (1 - np.arange(length) / length)
    chance = np.full(length, odds)
    if not won:
        chance[lost_at:] = 1.0
    return -(left + chance * NORM.fail_cost) / NORM.scale + rng.normal(0, 0.01, length)


def judge(make_value, success=None, corrections=None, marks=True, drop=()):
    rng, lengths, won, lost_at = attempts()
    won = won if success is None else success
    kept = [i for i in range(COUNT) if i not in drop]
    values = [make_value(rng, lengths[i], won[i], lost_at[i]).astype(np.float32) for i in kept]
    returns = [monte_carlo_returns(lengths[i], bool(won[i]), NORM) for i in kept]
    steps = [n_step_advantages(v, bool(won[i]), 50, NORM) for v, i in zip(values, kept, strict=True)]
    failed_at = [int(lost_at[i]) if marks else -1 for i in kept]
    return judge_value(values, returns, [bool(won[i]) for i in kept], steps, 50, corrections, failed_at)


def test_a_good_value_passes():
    report = judge(expectation)
    assert report.problems() == []
    report.check()
    assert report.outcome_auc > 0.95 and report.spearman > 0.4 and report.fast_auc > 0.9
    assert report.fall_auc > 0.95 and report.fall > 0.15
    # five seconds before the end nothing is lost yet
    assert report.outcome_auc_by_time["0.5"] > 0.95 and report.outcome_auc_by_time["5"] < 0.8


def test_a_constant_value_is_caught():
    report = judge(lambda rng, length, won, lost: np.full(length, -0.4))
    assert any("nearly constant" in problem for problem in report.problems())
    with pytest.raises(GateError, match=r"the value in x fails \d of its gates .* constant: spread is 0"):
        report.check(what="the value in x")


def test_a_shuffled_value_is_caught():
    problems = judge(lambda rng, length, won, lost: rng.uniform(-1, 0, length)).problems()
    assert any("hardly follows the return" in problem for problem in problems)
    assert any("cannot tell success from failure" in problem for problem in problems)
    assert any("does not fall where attempts were marked" in problem for problem in problems)


def test_a_value_that_knows_the_clock_alone_is_caught():
    """It rises with the return over all frames, but sees neither failures nor what was fast."""
    problems = judge(lambda rng, length, won, lost: np.linspace(-0.7, -0.2, length)).problems()
    assert any("outcome_auc is" in problem for problem in problems)
    assert any("fall_auc is" in problem for problem in problems)


def test_a_value_that_is_off_by_a_constant_is_caught_by_its_calibration():
    problems = judge(lambda *of: np.clip(expectation(*of) - 0.3, -1, 0)).problems()
    assert len(problems) == 1 and "what it predicts is not what comes: calibration is 0." in problems[0]


def test_calibration_by_hand():
    """Twenty frames in tenths of two: each is 0.1 too high, but for the last, 0.3 too low."""
    truth = np.repeat(np.linspace(-0.9, -0.4, 10), 2)
    value = truth + 0.1
    value[18:] -= 0.4
    value[18:] = -0.05  # still the greatest
    gap = (9 * 0.1 + 0.35) / 10
    found = judge_value([value] * 3, [truth] * 3, [True] * 3, [truth] * 3, 1)
    assert found.calibration == pytest.approx(gap)


def test_corrections_are_told_from_what_they_corrected():
    """Within successes: after tick 100 a person goes on and the value rises twice as fast, or not at all."""
    _, lengths, _, _ = attempts()
    corrected = [np.arange(n) >= 100 for n in lengths]

    def with_slope(good):
        def value(rng, length, won, lost):
            rise = np.where(np.arange(length) < 100, 1.0, 2.0 if good else 0.0)
            return np.clip(-0.8 + rise.cumsum() / 2000, -1, 0)

        return judge(value, corrections=corrected).correction_auc

    assert with_slope(True) > 0.95 and with_slope(False) < 0.2
    assert np.isnan(judge(expectation, corrections=[np.zeros(n, bool) for n in lengths]).correction_auc)


def test_what_cannot_be_measured_is_said_and_fails_nothing():
    _, _, won, _ = attempts()
    report = judge(lambda *of: expectation(*of, odds=0), marks=False, drop=np.flatnonzero(~won).tolist())
    assert report.problems() == []
    told = " / ".join(report.unmeasured())
    assert "outcome_auc: 20 successes and 0 failures" in told and "recap label mark" in told
    assert report.to_dict()["outcome_auc"] is None and report.to_dict()["fall"] is None


def test_data_without_a_success_fails():
    report = judge(expectation, success=np.zeros(COUNT, bool), marks=False)
    assert "no success among 40 episodes" in report.problems()[0]


def test_gates_are_settings():
    report = judge(lambda rng, length, won, lost: np.full(length, -0.4))
    assert report.problems(Gates(*[None] * 8)) == []
    strict = replace(Gates(), spearman=0.99)
    assert "spearman is" in judge(expectation).problems(strict)[0]


def test_one_episode_says_nothing_and_fails_nothing_but_a_constant():
    report = judge(expectation, drop=range(1, COUNT))
    assert report.episodes == 1 and report.problems() == []
    assert "spearman: 1 episodes" in report.unmeasured()
    constant = judge(lambda rng, length, won, lost: np.full(length, -0.4), drop=range(1, COUNT))
    assert [p.split(":")[0] for p in constant.problems()] == ["the output is nearly constant"]


def test_nothing_to_judge_is_refused():
    with pytest.raises(ValueError, match="no held-out episode"):
        judge_value([], [], [], [], 50)
