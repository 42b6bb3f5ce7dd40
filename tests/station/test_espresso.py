from dataclasses import replace

import numpy as np
import pytest

from recap_station.contract import ContractError, load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import FAST, Expert
from recap_station.sim.scene import TruthReader
from recap_station.sim.task import put_free_body
from recap_station.sim.tasks.espresso.scene import BUTTON, GROUP, HALF, MEMORY
from recap_teleop.operator import Operator

STATION, TASK = load_station("aloha"), load_task("espresso")


@pytest.fixture(scope="module")
def cell():
    cell = Cell(STATION, TASK)
    yield cell
    cell.close()


def remember(cell: Cell, **coffee: float) -> None:
    """Start an attempt as if this had been done already."""
    cell.props.memory = np.array([coffee.get(name, 0.0) for name in MEMORY])
    cell._scene = None


def drive(cell: Cell, expert: Expert, until, limit_s: float = 60.0) -> None:
    while not until(cell) and cell.time_s < limit_s:
        cell.step(expert.act(cell.truth(), cell.state()))


def over(cell: Cell) -> bool:
    return cell.truth().success or cell.truth().failure


def test_a_clean_expert_serves_through_the_stages_in_order(cell):
    expert, stages, states = Expert(STATION, TASK, FAST, 0), [], []
    cell.reset(0)
    while not over(cell) and cell.time_s < TASK.time_limit_s:
        truth = cell.truth()
        if not stages or stages[-1] != truth.stage:
            stages.append(truth.stage)
        states.append(truth.qpos)
        cell.step(expert.act(truth, cell.state()))
    assert cell.truth().success and stages == list(TASK.stages)
    assert 18.0 < cell.time_s < 27.0
    # and again, bit for bit, in another cell
    other, expert = Cell(STATION, TASK), Expert(STATION, TASK, FAST, 0)
    other.reset(0)
    for state in states:
        assert (other.truth().qpos == state).all()
        other.step(expert.act(other.truth(), other.state()))
    assert other.truth().success


def test_truth_tells_the_scene_and_its_memory(cell):
    cell.reset(3)
    remember(cell, dose=0.5, tamp=0.25)
    seen, told = cell.scene(), TruthReader(STATION, TASK).read(cell.truth().qpos)
    assert told.coffee == seen.coffee and told.coffee["dose"] == 0.5
    assert np.abs(seen.features() - told.features()).max() < 1e-12
    assert seen.features().shape == (9 * len(cell.props.KEYPOINTS) + 12 + len(MEMORY) + 4,)
    assert np.abs(seen.features()).max() < 4


@pytest.mark.parametrize(("coffee", "good"), [((1.0, 1.0), True), ((0.6, 1.0), False), ((1.0, 0.4), False)])
def test_too_little_coffee_or_tamp_fails_only_once_it_has_run(cell, coffee, good):
    cell.reset(0)
    place_for_brewing(cell, *coffee)
    for _ in range(20):
        cell.step(STATION.home)
    assert not over(cell) and cell.truth().stage == "brew"
    remember(cell, dose=coffee[0], tamp=coffee[1], engaged=1.0, locked=1.0, brewing=1.0)
    for _ in range(round(3.0 * STATION.control_rate_hz)):
        cell.step(STATION.home)
    assert cell.truth().failure == (not good)
    assert cell.truth().stage == "serve" and cell.scene().coffee["filled"] > 0.9  # full, of whatever it is


def place_for_brewing(cell: Cell, dose: float, tamp: float, aside: float = 0.0) -> None:
    put_free_body(cell.model, cell.data, "cup", np.array([GROUP[0] + aside, GROUP[1], HALF]), 2.3)
    remember(cell, dose=dose, tamp=tamp, engaged=1.0, locked=1.0)


def test_coffee_beside_the_cup_is_spilled(cell):
    cell.reset(0)
    place_for_brewing(cell, 1.0, 1.0, aside=0.03)
    remember(cell, dose=1.0, tamp=1.0, engaged=1.0, locked=1.0, brewing=1.0)
    for _ in range(100):
        cell.step(STATION.home)
    assert cell.truth().failure and cell.scene().coffee["filled"] == 0


def test_the_button_brews_once_it_is_pressed(cell):
    cell.reset(0)
    place_for_brewing(cell, 1.0, 1.0)
    expert = Expert(STATION, TASK, FAST, 0)
    drive(cell, expert, lambda c: c.scene().coffee["brewing"] > 0, 8.0)
    assert cell.scene().coffee["brewing"] and np.linalg.norm((cell.scene().tips[1] - BUTTON)[:2]) < 0.02


def test_a_dropped_portafilter_is_a_failure_only_with_coffee_in_it(cell):
    for dose, failure in ((0.0, False), (1.0, True)):
        cell.reset(0)
        put_free_body(cell.model, cell.data, "filter", np.array([-0.1, -0.1, 0.15]), 0.0, pitch=1.0)
        remember(cell, dose=dose)
        for _ in range(10):
            cell.step(STATION.home)
        assert cell.truth().failure == failure


@pytest.mark.parametrize("after_s", [2.0, 5.0, 6.9, 9.5, 13.0, 17.0, 20.0])
def test_the_expert_takes_over_from_any_moment(cell, after_s):
    cell.reset(4)
    drive(cell, Expert(STATION, TASK, FAST, 0), lambda c: c.time_s >= after_s)
    second, start = Expert(STATION, TASK, FAST, 1), cell.state()
    assert np.abs(second.act(cell.truth(), start) - start)[~STATION.is_gripper].max() < 0.02
    drive(cell, second, over)
    assert cell.truth().success


def test_the_operator_leaves_a_clean_attempt_alone_and_mends_a_cup_aside(cell):
    operator, expert = Operator(STATION, TASK, 0), Expert(STATION, TASK, FAST, 1)
    cell.reset(1)
    while not over(cell):
        assert not operator.update(cell.truth(), cell.state(), cell.time_s).pressed
        cell.step(expert.act(cell.truth(), cell.state()))
    cell.reset(1)
    operator.reset()
    place_for_brewing(cell, 1.0, 1.0, aside=0.03)
    reasons = set()
    while not cell.scene().cup_under and cell.time_s < 15.0:
        seen = operator.update(cell.truth(), cell.state(), cell.time_s)
        reasons |= {seen.reason} if seen.pressed else set()
        cell.step(seen.command if seen.pressed else STATION.home)
    assert cell.scene().cup_under and reasons == {"the cup stands aside"}


def test_random_scenes_show_every_keypoint_to_some_camera(cell):
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(cell.keypoints("base_camera"), 0)
    for _ in range(40):
        cell.randomize(rng)
        for camera in STATION.camera_names:
            for name, (xyz, _, visible) in cell.keypoints(camera).items():
                assert np.isfinite(xyz).all()
                seen[name] += visible
    assert min(seen.values()) > 20


def test_an_unknown_dial_is_named():
    with pytest.raises(ContractError, match=r"sim\.peg_x"):
        Cell(STATION, replace(TASK, sim={"peg_x": [0, 1]}))


def test_commands_keep_the_velocity_limits_and_do_not_jump(cell):
    expert = Expert(STATION, TASK, FAST, 1)
    cell.reset(1)
    commands = [cell.state()]
    while not over(cell):
        commands.append(expert.act(cell.truth(), cell.state()))
        cell.step(commands[-1])
    assert (np.abs(np.diff(commands, axis=0)) / STATION.step_s <= STATION.max_velocity + 1e-9).all()
    assert np.abs(np.diff(commands, n=2, axis=0))[:, ~STATION.is_gripper].max() < 0.03
