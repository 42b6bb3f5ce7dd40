"""What is looked at after every attempt keeps its error; what is not made for it does not."""

import numpy as np
import pytest

from recap_learner.evaluation.sequential import Stopping, confidence_sequence, sequential_p
from recap_learner.evaluation.statistics import mcnemar_p, wilson_interval

ALPHA, TRIALS, LONGEST = 0.05, 400, 200


def test_confidence_sequence_by_hand():
    # One success: B(2, 1) = 1/2, so every rate with (1/2)/rate < 20 is allowed.
    assert confidence_sequence(1, 1) == pytest.approx((0.025, 1.0))
    assert confidence_sequence(0, 0) == (0.0, 1.0)
    # Two successes, one failure: B(3, 2) = 1/12 against rate² (1 − rate)
    low, high = confidence_sequence(2, 3)
    for rate in (low, high):
        assert (1 / 12) / (rate**2 * (1 - rate)) == pytest.approx(20.0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.85])
def test_confidence_sequence_holds_at_every_look_at_once_and_wilson_does_not(rate):
    bounds = {
        interval: np.array(
            [
                [interval(s, n) if s <= n else (0, 1) for s in range(LONGEST + 1)]
                for n in range(1, LONGEST + 1)
            ]
        )
        for interval in (confidence_sequence, wilson_interval)
    }
    rng = np.random.default_rng(0)
    wins = np.cumsum(rng.random((TRIALS, LONGEST)) < rate, axis=1)
    missed = {}
    for interval, table in bounds.items():
        seen = table[np.arange(LONGEST)[None], wins]
        missed[interval] = float(((seen[..., 0] > rate) | (seen[..., 1] < rate)).any(1).mean())
    assert missed[confidence_sequence] <= ALPHA
    assert missed[wilson_interval] > 3 * ALPHA


def test_sequential_p_by_hand():
    # Five start states that the second alone solved: mixture B(6, 1) = 1/6 against (1/2)^5.
    assert sequential_p([False] * 5, [True] * 5) == pytest.approx(6 / 32)
    assert sequential_p([True, False], [True, False]) == 1.0
    # What went against it later does not take back what had been found.
    assert sequential_p([False] * 5 + [True], [True] * 5 + [False]) == pytest.approx(6 / 32)


def looked_at(rng: np.random.Generator, first: float, second: float, test) -> bool:
    """Whether looking after every attempt ever finds a difference between two policies of these rates."""
    a, b = rng.random(LONGEST) < first, rng.random(LONGEST) < second
    return any(test(a[:n], b[:n]) <= ALPHA for n in range(5, LONGEST + 1, 5))


def fixed(a, b):
    return mcnemar_p(int((a & ~b).sum()), int((b & ~a).sum()))


def test_stopping_on_a_difference_keeps_its_error_under_peeking_and_has_power():
    rng = np.random.default_rng(1)
    none = [looked_at(rng, 0.6, 0.6, sequential_p) for _ in range(TRIALS)]
    assert np.mean(none) <= ALPHA
    assert np.mean([looked_at(rng, 0.5, 0.75, sequential_p) for _ in range(100)]) > 0.8
    # The same looks at the test for a fixed number of attempts find differences that are not there.
    assert np.mean([looked_at(rng, 0.6, 0.6, fixed) for _ in range(TRIALS)]) > 2 * ALPHA


def test_stopping_says_why_and_only_when_it_was_asked_to():
    good, bad = [True] * 40, [False] * 40
    assert Stopping().reason([bad, good]) == "" and not Stopping().early
    assert "told from the first" in Stopping(decided=True).reason([bad, good])
    assert Stopping(decided=True).reason([bad, good, bad]) == ""
    assert Stopping(decided=True).reason([bad]) == "" == Stopping(width=0.2).reason([[]])
    assert "at most 0.2 wide" in Stopping(width=0.2).reason([good, bad])
    assert Stopping(width=0.05).reason([good, bad]) == ""
    with pytest.raises(ValueError, match=r"wanted more than 0 and less than 1, found 1.5"):
        Stopping(width=1.5)


def test_more_comparisons_ask_for_more():
    """Bonferroni: what decides one comparison does not decide it among five."""
    first, second = [False] * 9, [True] * 9
    assert 0.01 < sequential_p(first, second) <= 0.05
    assert Stopping(decided=True).reason([first, second])
    assert not Stopping(decided=True).reason([first, *[second] * 5])
