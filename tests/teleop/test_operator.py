import numpy as np
import pytest

from recap_station.contract import load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import FAST, Expert
from recap_teleop.operator import Habits, Operator

STATION, TASK = load_station("aloha"), load_task("handover_insert")


@pytest.fixture(scope="module")
def cell():
    return Cell(STATION, TASK)


def watched(cell, seed, policy, operator, limit_s=15.0):
    """Presses as (time, reason), share of ticks pressed, and the largest step at a press."""
    cell.reset(seed)
    operator.reset()
    presses, was, ticks, jump = [], False, 0, 0.0
    while cell.time_s < limit_s and not (cell.truth().success or cell.truth().failure):
        state = cell.state()
        seen = operator.update(cell.truth(), state, cell.time_s)
        assert seen.pressed == (seen.command is not None)
        if seen.pressed and not was:
            presses.append((cell.time_s, seen.reason))
            jump = max(jump, float(np.abs(seen.command - state)[~STATION.is_gripper].max()))
        was = seen.pressed
        ticks += was
        cell.step(seen.command if seen.pressed else policy(cell, cell.state()))
    return presses, ticks / max(cell.ticks, 1), jump


def test_a_clean_attempt_is_left_alone(cell):
    operator = Operator(STATION, TASK, 0)
    for seed in range(4):
        expert = Expert(STATION, TASK, FAST, seed)
        presses, _, _ = watched(cell, seed, lambda c, s, e=expert: e.act(c.truth(), s), operator)
        assert presses == [] and cell.truth().success


def test_a_policy_that_stands_still_is_taken_over_after_patience_and_helped_on(cell):
    operator = Operator(STATION, TASK, 0)
    presses, share, jump = watched(cell, 0, lambda c, s: STATION.home, operator, limit_s=6.5)
    assert len(presses) >= 1
    time_s, reason = presses[0]
    assert 2.5 < time_s < 4.0 and "reach" in reason
    assert jump < 0.02
    assert 0 < share < 1


def test_it_lets_go_once_the_peg_is_safely_lifted(cell):
    operator = Operator(STATION, TASK, 0)
    last = {"command": None}

    def frozen(c, s):
        if last["command"] is None or c.truth().stage == "reach":
            last["command"] = s
        return np.where(STATION.is_gripper & (last["command"] < 0.5), 0.0, last["command"])

    cell.reset(0)
    pressed_stages = []
    released_in = None
    while cell.time_s < 10.0 and released_in is None:
        seen = operator.update(cell.truth(), cell.state(), cell.time_s)
        if seen.pressed:
            pressed_stages.append(cell.truth().stage)
        elif pressed_stages:
            released_in = cell.truth().stage
        cell.step(seen.command if seen.pressed else frozen(cell, cell.state()))
    assert pressed_stages[0] == "reach"
    assert released_in in ("lift", "pass")


def test_a_dropped_peg_is_noticed_at_once(cell):
    operator = Operator(STATION, TASK, 0)
    expert = Expert(STATION, TASK, FAST, 0)

    def dropping(c, s):
        command = expert.act(c.truth(), s)
        if c.time_s > 1.4:
            command[[6, 13]] = 1.0
        return command

    presses, _, _ = watched(cell, 0, dropping, operator, limit_s=4.0)
    assert presses and "dropped" in presses[0][1] and presses[0][0] < 3.0


def test_its_share_is_capped(cell):
    operator = Operator(STATION, TASK, 0, Habits(max_share=0.1))
    _, share, _ = watched(cell, 0, lambda c, s: STATION.home, operator)
    assert 0.05 < share < 0.12


def test_same_seed_gives_the_same_takeovers(cell):
    runs = [watched(cell, 2, lambda c, s: STATION.home, Operator(STATION, TASK, 5)) for _ in range(2)]
    assert runs[0] == runs[1]
