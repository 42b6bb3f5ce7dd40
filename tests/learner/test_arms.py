"""Arms: each objective against numbers worked out by hand, and on a bandit whose optimum is known."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from bandit import BETTER, Flow, bandit, train

from recap_learner.arms import ARMS, AWR, PPO, ArmError, CloneBest, Judged, arm
from recap_learner.arms.ppo import spo

WEIGHT, NONE = torch.ones(2), torch.zeros(2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def judged() -> Judged:
    """Two demonstrations, one failed rollout, one that a person corrected: two frames each."""
    return Judged(
        advantage=np.array([0.2, -0.1, 0.0, 0.1, -0.3, -0.2, 0.1, 0.2], np.float32),
        positive=np.array([1, 0, 0, 1, 0, 0, 0, 1], bool),
        pretrained_positive=np.array([0, 1, 0, 1, 0, 0, 0, 0], bool),
        correction=np.array([0, 0, 0, 0, 0, 0, 0, 1], bool),
        demonstration=np.array([1, 1, 1, 1, 0, 0, 0, 0], bool),
        episode=np.repeat(np.arange(4), 2),
        score=np.array([-0.2, -0.4, -0.9, -0.1], np.float32),
        task=np.array(["a"] * 4),
    )


@pytest.mark.parametrize(
    ("name", "keep", "indicator"),
    [
        ("recap", [1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0, 0, 1]),
        ("supervised", [1, 1, 1, 1, 0, 0, 0, 0], [-1] * 8),
        ("rl_pretrained", [1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0, 0]),
        ("sft", [1, 1, 1, 1, 0, 0, 0, 0], [1] * 8),
        ("awr", [1] * 8, [-1] * 8),
        ("ppo", [1] * 8, [-1] * 8),
        ("clone_all", [1] * 8, [-1] * 8),
        ("clone_best", [1, 1, 0, 0, 0, 0, 1, 1], [-1] * 8),
        ("clone_positive", [1, 0, 0, 1, 0, 0, 0, 1], [-1] * 8),
        ("hg_dagger", [1, 1, 1, 1, 0, 0, 0, 1], [-1] * 8),
    ],
)
def test_which_frames_an_arm_learns_from_and_under_which_indicator(judged, name, keep, indicator) -> None:
    lesson = arm(name).lesson(judged)
    kept = np.array(keep, bool)
    np.testing.assert_array_equal(lesson.keep, kept)
    np.testing.assert_array_equal(lesson.indicator[kept], np.array(indicator)[kept])
    assert lesson.weight[kept].mean() == pytest.approx(1.0)


def test_every_arm_is_tested_here_and_unknown_ones_are_refused() -> None:
    [mark] = test_which_frames_an_arm_learns_from_and_under_which_indicator.pytestmark
    assert {row[0] for row in mark.args[1]} == set(ARMS)
    with pytest.raises(ArmError, match=r"no arm 'dagger' \(there are: recap, "):
        arm("dagger")


def test_the_weights_of_awr_are_the_exponentials_of_the_advantages(judged) -> None:
    # λ such that A / (σλ) is A itself; e^8 is more than 20.
    part = replace(judged, advantage=np.array([1, -1, 8, 0, 0, 0, 0, 0], np.float32))
    lesson = AWR(temperature=1 / float(part.advantage.std())).lesson(part)
    raw = np.array([math.e, 1 / math.e, 20, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(lesson.weight, raw / raw.mean(), rtol=1e-5)


def test_the_constraint_of_spo_is_the_square_and_its_best_ratio_one_plus_epsilon() -> None:
    # ρ = 1.02, A = 2, ε = 0.01: 2.04 − 2 / 0.02 · 0.0004 = 2.00; without the square it would be 0.04.
    one = torch.tensor
    assert float(spo(one(1.02), one(2.0), 0.01)) == pytest.approx(2.0, abs=1e-5)
    ratio = torch.linspace(0.9, 1.1, 2001)
    for advantage, best in ((3.0, 1.01), (-0.5, 0.99)):
        found = spo(ratio, one(advantage), 0.01)
        assert float(ratio[found.argmax()]) == pytest.approx(best, abs=1e-4)


def test_the_ratio_of_ppo_is_the_exponential_of_the_losses_difference() -> None:
    terms = {"flow": torch.tensor([0.5, 0.7]), "subtask": torch.tensor([0.1, 0.2])}
    before = {"flow": torch.tensor([0.6, 0.6]), "subtask": torch.tensor([9.0, 9.0])}
    advantage = torch.tensor([1.0, -1.0])
    found = PPO(trust=0.1).objective(terms, before, advantage, WEIGHT)
    up, down = math.exp(0.1), math.exp(-0.1)
    wanted = [-(up - 5 * (up - 1) ** 2), -(-down - 5 * (down - 1) ** 2)]
    torch.testing.assert_close(found["flow"], torch.tensor(wanted))
    torch.testing.assert_close(found["subtask"], terms["subtask"])  # imitated


def test_tokens_and_flow_have_a_constraint_each() -> None:
    terms = {"flow": torch.tensor([0.5, 0.5]), "fast": torch.tensor([2.0, 2.0]), "subtask": NONE}
    before = {"flow": torch.tensor([0.5, 0.5]), "fast": torch.tensor([2.5, 2.5]), "subtask": NONE}
    found = PPO(trust=1.0).objective(terms, before, torch.tensor([1.0, 1.0]), WEIGHT)
    ratio = math.exp(0.5)
    torch.testing.assert_close(found["flow"], torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(found["fast"], torch.full((2,), -(ratio - 0.5 * (ratio - 1) ** 2)))


def test_the_best_episodes_are_chosen_within_each_task() -> None:
    data = Judged(
        *(np.zeros(4, np.float32), *(np.zeros(4, bool) for _ in range(4))),
        episode=np.arange(4),
        score=np.array([-0.1, -0.2, -0.8, -0.9]),
        task=np.array(["easy", "easy", "hard", "hard"]),
    )
    np.testing.assert_array_equal(CloneBest(share=0.5).lesson(data).keep, [True, False, True, False])


def test_an_arm_without_anything_to_learn_from_says_so(judged) -> None:
    nobody = replace(judged, correction=np.zeros(8, bool))
    with pytest.raises(ArmError, match=r"hg_dagger: no correction among 8 frames of 4 episodes; .*takeovers"):
        arm("hg_dagger").lesson(nobody)
    with pytest.raises(ArmError, match="clone_positive: no positive frame"):
        arm("clone_positive").lesson(replace(judged, positive=np.zeros(8, bool)))
    with pytest.raises(ArmError, match="supervised: no demonstration"):
        arm("supervised").lesson(replace(judged, demonstration=np.zeros(8, bool)))


# The data's policy takes the better action with probability 0.3; 500 steps come within a few points.


@pytest.fixture(scope="module")
def cloned() -> Flow:
    return train(ARMS["clone_all"], bandit(), 500)


def test_cloning_does_what_the_data_do(cloned: Flow) -> None:
    assert cloned.better("") == pytest.approx(BETTER, abs=0.06)


def test_recap_takes_the_better_action_when_asked_and_the_datas_when_not() -> None:
    model = train(ARMS["recap"], bandit(), 500)
    assert model.better("positive") > 0.95
    assert model.better("") == pytest.approx(BETTER, abs=0.08)


def test_awr_comes_to_the_optimum_of_its_weights() -> None:
    game = bandit()
    a = ARMS["awr"].lesson(game.data).advantage
    good, bad = BETTER * math.exp(a.max()), (1 - BETTER) * math.exp(a.min())
    optimum = good / (good + bad)
    assert optimum > 0.75
    assert train(ARMS["awr"], game, 500).better("") == pytest.approx(optimum, abs=0.06)


def test_ppo_goes_to_the_better_action_and_hardly_within_a_tiny_trust_region(cloned: Flow) -> None:
    wide = train(PPO(trust=0.3), bandit(), 600, cloned, rate=3e-4).better("")
    tiny = train(PPO(trust=0.01), bandit(), 600, cloned, rate=3e-4).better("")
    assert wide > 0.85
    assert cloned.better("") < tiny < 0.6


def test_the_best_two_fifths_of_the_episodes_are_three_quarters_good() -> None:
    assert train(ARMS["clone_best"], bandit(), 500).better("") == pytest.approx(BETTER / 0.4, abs=0.07)


@pytest.mark.parametrize(("name", "asked"), [("supervised", ""), ("sft", "positive"), ("sft", "")])
def test_learning_from_demonstrations_does_what_they_do_whatever_is_asked(name: str, asked: str) -> None:
    assert train(ARMS[name], bandit(), 500).better(asked) == pytest.approx(BETTER, abs=0.08)


def test_the_pretrained_policy_takes_the_better_action_when_asked() -> None:
    assert train(ARMS["rl_pretrained"], bandit(), 500).better("positive") > 0.95


def test_cloning_positive_frames_takes_the_better_action() -> None:
    assert train(ARMS["clone_positive"], bandit(), 500).better("") > 0.95


def test_hg_dagger_adds_corrections_to_demonstrations_and_nothing_else() -> None:
    game = bandit(corrected=True)
    kept = game.data.demonstration | game.data.correction
    optimum = float(game.data.positive[kept].mean())
    assert optimum > BETTER + 0.05
    assert train(ARMS["hg_dagger"], game, 500).better("") == pytest.approx(optimum, abs=0.07)
