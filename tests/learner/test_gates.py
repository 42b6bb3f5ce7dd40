"""A value function that says nothing is caught."""

import numpy as np

from recap_learner.gates import judge_value
from recap_learner.returns import Normalizer, monte_carlo_returns, n_step_advantages

NORM = Normalizer(750)


def judge(make_value):
    rng = np.random.default_rng(0)
    lengths, success = rng.integers(200, 700, 40), np.arange(40) % 2 == 0
    returns = [monte_carlo_returns(n, bool(s), NORM) for n, s in zip(lengths, success, strict=True)]
    values = [make_value(rng, r).astype(np.float32) for r in returns]
    advantages = [n_step_advantages(v, bool(s), 50, NORM) for v, s in zip(values, success, strict=True)]
    return judge_value(values, returns, success.tolist(), advantages, 50)


def test_a_good_value_passes():
    report = judge(lambda rng, r: r + rng.normal(0, 0.03, len(r)))
    assert report.problems() == []
    assert report.outcome_auc > 0.95 and report.spearman > 0.9


def test_a_constant_value_is_caught():
    problems = judge(lambda rng, r: np.full(len(r), -0.4)).problems()
    assert any("nearly constant" in problem for problem in problems)


def test_a_shuffled_value_is_caught():
    problems = judge(lambda rng, r: rng.uniform(-1, 0, len(r))).problems()
    assert any("hardly follows the return" in problem for problem in problems)
    assert any("cannot tell success from failure" in problem for problem in problems)
