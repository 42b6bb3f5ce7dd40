"""Returns and advantages against their definitions, written out as loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_learner.value.returns import (
    Normalizer,
    advantages,
    check_same,
    correction_bound,
    monte_carlo_returns,
    n_step_advantages,
    renormalize,
    returns,
)

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


def test_the_end_rules_by_hand():
    """T = 5 ticks, T_max = 10, C_fail = 10: scale 20. V = −0.5, −0.4, −0.3, −0.2, −0.1; N = 3."""
    norm = Normalizer(10)
    values, one = np.array([-0.5, -0.4, -0.3, -0.2, -0.1]), np.array([0, 5])
    expected = {
        # t = 0: −3/20 + V_3 − V_0; t = 1: −3/20 + V_4 − V_1; then 2, 1, 0 steps and the end, 0 or −10
        ("sum", True): [0.15, 0.15, -0.1 + 0.3, -0.05 + 0.2, 0.1],
        ("sum", False): [0.15, 0.15, -0.6 + 0.3, -0.55 + 0.2, -0.5 + 0.1],
        # the last tick's value in place of what came; its own reward at that tick
        ("bootstrap", True): [0.15, 0.15, -0.1 - 0.1 + 0.3, -0.05 - 0.1 + 0.2, 0.1],
        ("bootstrap", False): [0.15, 0.15, -0.1 - 0.1 + 0.3, -0.05 - 0.1 + 0.2, -0.5 + 0.1],
    }
    for (end, success), wanted in expected.items():
        found = advantages(values, one, np.array([success]), 3, [norm], end=end)
        np.testing.assert_allclose(found, wanted, atol=1e-7, err_msg=f"{end} {success}")
    with pytest.raises(ValueError, match="end rule is 'mean', wanted one of sum, bootstrap"):
        advantages(values, one, np.array([True]), 3, [norm], end="mean")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 50), st.integers(0, 2**31))
def test_episodes_end_to_end_are_as_episodes_one_by_one(lengths, lookahead, seed):
    rng = np.random.default_rng(seed)
    starts, count = np.cumsum([0, *lengths]), len(lengths)
    values, won = rng.uniform(-1, 0, starts[-1]).astype(np.float32), rng.random(count) < 0.5
    correction = rng.random(starts[-1]) < 0.2
    norms = [Normalizer(int(m)) for m in rng.integers(40, 90, count)]
    flat = advantages(values, starts, won, lookahead, norms, correction_bound(correction, starts))
    flat_returns = returns(starts, won, norms)
    for i, (first, stop) in enumerate(pairwise(starts)):
        part = slice(first, stop)
        alone = n_step_advantages(values[part], bool(won[i]), lookahead, norms[i], correction[part])
        np.testing.assert_array_equal(flat[part], alone)
        np.testing.assert_array_equal(
            flat_returns[part], monte_carlo_returns(stop - first, bool(won[i]), norms[i])
        )


@given(st.integers(1, 120), st.integers(1, 150), st.integers(0, 2**31))
def test_no_lookahead_of_an_autonomous_tick_sees_into_a_correction(steps, lookahead, seed):
    rng = np.random.default_rng(seed)
    values, correction = rng.uniform(-1, 0, steps), rng.random(steps) < 0.1
    found = n_step_advantages(values, True, lookahead, NORM, correction)
    for t in np.flatnonzero(~correction):
        later = np.flatnonzero(correction[t:])
        until = t + min(lookahead, later[0] if len(later) else steps)
        come = -(min(until, steps - 1) - t) / NORM.scale + (values[until] if until < steps else 0)
        assert found[t] == pytest.approx(come - values[t], abs=1e-6)


def test_the_rules_of_c_fail_by_hand():
    """T_max = 10; a failure of 4 ticks, then a success of 3."""
    starts, won = np.array([0, 4, 7]), np.array([False, True])
    for rule, ratio, expected in (
        ("ordered", 1.0, [-13 / 20, -12 / 20, -11 / 20, -10 / 20, -2 / 20, -1 / 20, 0]),
        ("ordered", 3.0, [-33 / 40, -32 / 40, -31 / 40, -30 / 40, -2 / 40, -1 / 40, 0]),
        ("clipped", 1.0, [-1, -1, -1, -1, -0.2, -0.1, 0]),
        ("clipped", 0.8, [-1, -1, -0.9, -0.8, -0.2, -0.1, 0]),
    ):
        norm = Normalizer(10, ratio, rule)
        np.testing.assert_allclose(returns(starts, won, [norm] * 2), expected, atol=1e-7)
    with pytest.raises(ValueError, match="C_fail rule is 'huge', wanted one of ordered, clipped"):
        Normalizer(10, fail_rule="huge")


@given(
    st.floats(1, 5),
    st.sampled_from([("ordered", 0.5), ("ordered", 1), ("ordered", 4), ("clipped", 1), ("clipped", 2)]),
    st.integers(0, 2**31),
)
def test_a_distribution_over_returns_says_its_value_under_another_c_fail(ratio, other, seed):
    """Over random ends of an attempt, weighted: mean of the returns under the new rule, exactly."""
    rng = np.random.default_rng(seed)
    old, new = Normalizer(60, ratio), Normalizer(60, other[1], other[0])
    left, won, odds = rng.integers(0, 60, 30), rng.random(30) < 0.6, rng.dirichlet(np.ones(30))

    def come(norm: Normalizer) -> np.ndarray:
        return np.clip(-(left + np.where(won, 0, norm.fail_cost)) / norm.scale, -1, 0)

    value = np.array([odds @ come(old)])
    failed = np.array([[odds[~won].sum(), odds[~won] @ come(old)[~won]]])
    told, kept = renormalize(value, failed, old, new)
    assert told[0] == pytest.approx(odds @ come(new), abs=1e-5)
    np.testing.assert_allclose(kept, [[odds[~won].sum(), odds[~won] @ come(new)[~won]]], atol=1e-5)
    if new.fail_rule == "ordered":
        np.testing.assert_allclose(renormalize(told, kept, new, old)[0], value, atol=1e-5)


def test_values_that_do_not_say_it_are_refused():
    value, failed = np.array([-0.3]), np.array([[0.2, -0.15]])
    with pytest.raises(ValueError, match="kept without the probability of failure"):
        renormalize(value, None, Normalizer(60), Normalizer(60, 2.0))
    with pytest.raises(ValueError, match="'clipped' with ratio 1"):
        renormalize(value, failed, Normalizer(60, 1.0, "clipped"), Normalizer(60))
    with pytest.raises(ValueError, match="T_max = 60 ticks, wanted 90"):
        renormalize(value, failed, Normalizer(60), Normalizer(90))
    assert renormalize(value, None, Normalizer(60), Normalizer(60))[0] is value


def test_a_value_of_another_normalizer_is_refused():
    with pytest.raises(ValueError, match=r"lift: T_max = 60 .* wanted T_max = 90 ticks, C_fail = 1·T_max"):
        check_same({"lift": Normalizer(60)}, {"lift": Normalizer(90)}, "value")
    with pytest.raises(ValueError, match="one C_fail rule for all tasks, found clipped 1·T_max, ordered"):
        check_same({"lift": Normalizer(60)}, {"stack": Normalizer(60, 1.0, "clipped")}, "value")
    check_same({"lift": Normalizer(60)}, {"stack": Normalizer(90)}, "value")  # a task that is new
