"""Returns and advantages against their definitions, written out as loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_learner.returns import Normalizer, monte_carlo_returns, n_step_advantages

NORM = Normalizer(max_steps=200)


def rewards(steps: int, success: bool) -> np.ndarray:
    reward = -np.ones(steps)
    reward[-1] = 0.0 if success else -NORM.fail_cost
    return reward / NORM.scale


@given(st.integers(1, 200), st.booleans())
def test_return_is_the_sum_of_rewards_to_the_end(steps, success):
    expected = np.cumsum(rewards(steps, success)[::-1])[::-1]
    np.testing.assert_allclose(monte_carlo_returns(steps, success, NORM), expected, atol=1e-6)


@given(st.integers(1, 120), st.booleans(), st.integers(1, 150), st.integers(0, 2**31))
def test_advantage_follows_its_definition(steps, success, lookahead, seed):
    values = np.random.default_rng(seed).uniform(-1, 0, steps)
    reward = rewards(steps, success)
    expected = [
        reward[t : t + lookahead].sum()
        + (values[t + lookahead] if t + lookahead < steps else 0.0)
        - values[t]
        for t in range(steps)
    ]
    np.testing.assert_allclose(n_step_advantages(values, success, lookahead, NORM), expected, atol=1e-6)


def test_successes_lie_above_failures_and_are_ordered_by_length():
    won, lost = monte_carlo_returns(200, True, NORM), monte_carlo_returns(200, False, NORM)
    assert won.min() >= -0.5 >= lost.max()
    assert monte_carlo_returns(50, True, NORM)[0] > won[0]
    assert len(np.unique(lost)) == len(lost)  # no two frames of a failure look the same


def test_the_lookahead_ends_where_a_correction_begins():
    values = np.linspace(-0.9, -0.1, 100)
    correction = np.zeros(100, bool)
    correction[40:60] = True
    found = n_step_advantages(values, True, 30, NORM, correction)
    assert found[25] == pytest.approx(-15 / NORM.scale + values[40] - values[25])
    free = n_step_advantages(values, True, 30, NORM)
    untouched = np.r_[0:11, 40:100]
    np.testing.assert_allclose(found[untouched], free[untouched])


def test_a_perfect_value_has_no_advantage():
    values = monte_carlo_returns(80, True, NORM)
    np.testing.assert_allclose(n_step_advantages(values, True, 10, NORM), 0.0, atol=1e-6)


def test_a_lookahead_of_nothing_is_refused():
    with pytest.raises(ValueError, match="lookahead is 0"):
        n_step_advantages(np.zeros(5), True, 0, NORM)
