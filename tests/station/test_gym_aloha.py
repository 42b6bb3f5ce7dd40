"""gym-aloha's tasks as cells: the same states, rewards and pictures as its own environment gives.

Wants gym-aloha, in a folder of its own: requirements-gym-aloha.txt.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from recap_station.contract import ContractError, load_station, load_task
from recap_station.sim.cells import make_cell
from recap_station.sim.gym_aloha import TASKS

MISSING = importlib.util.find_spec("gym_aloha") is None
wants_gym = pytest.mark.skipif(MISSING, reason="no gym-aloha: requirements-gym-aloha.txt")


@pytest.mark.skipif(not MISSING, reason="gym-aloha is there")
def test_without_gym_aloha_it_is_said_what_is_missing() -> None:
    with pytest.raises(ContractError, match=r"requirements-gym-aloha\.txt"):
        make_cell(load_station("gym_aloha"), load_task("aloha_insertion"))


@wants_gym
@pytest.mark.parametrize("name", TASKS)
def test_it_steps_and_judges_as_gym_aloha_does(name: str) -> None:
    from gym_aloha.env import AlohaEnv

    cell = make_cell(load_station("gym_aloha"), load_task(name))
    env = AlohaEnv(TASKS[name], "pixels_agent_pos")
    rng = np.random.default_rng(0)
    for seed in (3, 7):
        cell.reset(seed)
        seen, _ = env.reset(seed=seed)
        for _ in range(3):
            np.testing.assert_array_equal(cell.state(), seen["agent_pos"])
            command = cell.state() + rng.uniform(-0.05, 0.05, 14)
            cell.step(command)
            seen, reward, done, _, _ = env.step(command)
            assert cell.truth().stage == cell.task.stages[min(int(reward), 3)]
            assert cell.truth().success == done
        np.testing.assert_array_equal(cell.render("top"), seen["pixels"]["top"])
    assert cell.time_s == pytest.approx(0.06)


@wants_gym
def test_what_is_none_of_its_arms_is_refused() -> None:
    cell = make_cell(load_station("gym_aloha"), load_task("aloha_transfer_cube"))
    before = cell.state()
    for command in (np.zeros(13), np.full(14, np.nan)):
        with pytest.raises(ContractError, match="14 finite numbers"):
            cell.step(command)
    np.testing.assert_array_equal(cell.state(), before)
    with pytest.raises(ContractError, match="wanted 14 at 50 Hz"):
        make_cell(replace(cell.station, control_rate_hz=25), cell.task)
