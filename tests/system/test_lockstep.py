"""Attempts on states of things: many at once come to what each comes to alone, and are learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recap.attempt import Rollouts, run_attempt
from recap.lockstep import in_lockstep
from recap.rollout import finished
from recap_learner.data.episode_file import load_episode
from recap_learner.data.frames import load_frames
from recap_learner.training.vision_training import VisionTraining, train_vision
from recap_policy.checkpoint import load_vision, save_policy
from recap_policy.runtime import Policy
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA
from recap_station.contract import ContractError, load_station, load_task
from recap_station.sim.cell import Cell

STATION, TASK = load_station("aloha"), load_task("handover_insert")
SEEDS = [40_001, 40_002, 40_003]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """An untrained policy whose commands stay near home."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("policy")
    train_vision("aloha", "handover_insert", folder / "vision", VisionTraining("tiny-state"), 0, {})
    shape = replace(vla_config("tiny-state"), vision=load_vision(folder / "vision").config)
    torch.manual_seed(0)
    model = VLA(shape, TinyTokenizer.fit([TASK.prompt, *TASK.stages], 128))
    state = torch.from_numpy(np.tile(STATION.home, (64, 1)).astype(np.float32))
    moved = state[:, None] + 0.02 * torch.randn(64, 50, STATION.dof).cumsum(1)
    model.fit_normalizers(
        moved, state + 0.1 * torch.randn(64, STATION.dof), torch.zeros(14, dtype=torch.bool)
    )
    save_policy(model, folder / "policy", {}, station=STATION)
    return folder


def rollouts(policy: Path, bags: Path, **options) -> Rollouts:
    given = {"checkpoint": policy / "policy", "bags": bags, "observation": "state", "lockstep": 2}
    return Rollouts("aloha", "handover_insert", **{**given, **options})


def test_an_attempt_comes_to_the_same_alone_and_beside_others(policy, tmp_path, monkeypatch):
    short = TASK.__class__(**{**TASK.__dict__, "time_limit_s": 1.6})
    model = Policy.load(policy / "policy", station=STATION, threads=1)
    together = rollouts(policy, tmp_path / "together")
    cells = [Cell(STATION, short), Cell(STATION, short)]

    made = in_lockstep(together, STATION, short, cells, model, SEEDS)

    assert [attempt.seed for attempt in made] == SEEDS
    commands = []
    for attempt in made:
        alone = run_attempt(
            rollouts(policy, tmp_path / "alone"), STATION, short, cells[0], model, attempt.seed
        )
        one, other = load_episode(Path(alone.bag)), load_episode(Path(attempt.bag))
        # Past the first chunks rounding may grow by contact; a mixed-up row would differ at once.
        assert np.abs(one.command - other.command).max() < 1e-3
        assert one.objects.shape == other.objects.shape == (len(one), 50)
        commands.append(one.command)
    assert np.abs(commands[0] - commands[1]).max() > 1e-2  # attempts do differ from each other


def test_demonstrations_on_states_become_frames_without_a_bag(policy, tmp_path):
    how = rollouts(policy, tmp_path / "bags", checkpoint=None, styles={"fast": 1.0}, source="demonstration")
    [(_, attempt)] = finished([how], [(0, 5)], workers=1)

    frames = load_frames([Path(attempt.bag)], policy / "vision")

    assert attempt.success and frames.episodes[0].info.success
    assert not frames.episodes[0].correction.any()  # a demonstration corrects nobody
    assert frames.tokens.shape == (len(frames), 1, 4, 117) and len(frames) == -(-len(frames.episodes[0]) // 5)
    assert set(frames.stages) == set(TASK.stages)


def test_a_policy_is_refused_under_the_other_observation(policy):
    how = rollouts(policy, None, observation="images")
    with pytest.raises(ContractError, match="not a policy for observation 'images'"):
        list(finished([how], [(0, 5)], workers=1))
    with pytest.raises(ValueError, match="observation is 'touch', wanted images or state"):
        list(finished([rollouts(policy, None, observation="touch")], [(0, 5)], workers=1))
