from dataclasses import replace

import mujoco
import numpy as np
import pytest

from recap_station.contract import load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.cloth.layers import Layers
from recap_station.sim.cloth.mesh import LAYER, RADIUS, N, flat
from recap_station.sim.cloth.scatter import _turned_over
from recap_station.sim.cloth.scene import MAT
from recap_station.sim.expert import FAST, Expert
from recap_station.sim.scene import TruthReader
from recap_teleop.operator import Operator

STATION, TASK = load_station("aloha"), load_task("fold_shirt")
STRICT = load_task("fold_strict")


@pytest.fixture(scope="module")
def cell():
    cell = Cell(STATION, TASK)
    yield cell
    cell.close()


def folded(times: int, near: bool = True, askew: float = 0.0) -> np.ndarray:
    """Vertices of a cloth spread (0), folded once or twice, the near edge over the far one or the other way
    round; the first crease is `askew` by so many radians."""
    turn = np.array([[np.cos(askew), np.sin(askew), 0], [-np.sin(askew), np.cos(askew), 0], [0, 0, 1]])
    points = flat() if near else flat()[:, ::-1] * (1, -1, 1)
    if times > 0:
        points = _turned_over(points @ turn, 0.0, np.pi, LAYER) @ turn.T
    if times > 1:
        points = _turned_over(points, 0.055, np.pi, 2 * LAYER)
    return points if near else points[:, ::-1] * (1, -1, 1)


def lay(cell: Cell, vertices: np.ndarray, at: np.ndarray | float = 0.0) -> None:
    middle = vertices.reshape(-1, 3).mean(axis=0) * (1, 1, 0)
    cell.props.sheet.put(cell.model, cell.data, vertices - middle + at)
    mujoco.mj_forward(cell.model, cell.data)
    cell._scene = None


def over(cell: Cell) -> bool:
    return cell.truth().success or cell.truth().failure


def test_a_clean_expert_folds_in_order_and_repeatably_within_the_limits_and_the_operator_lets_it(cell):
    operator, expert, stages = Operator(STATION, TASK, 0), Expert(STATION, TASK, FAST, 0), []
    cell.reset(3)
    states, commands = [], [cell.state()]
    while not over(cell) and cell.time_s < 20.0:
        truth = cell.truth()
        if not stages or stages[-1] != truth.stage:
            stages.append(truth.stage)
        assert not operator.update(truth, cell.state(), cell.time_s).pressed
        states.append(truth.qpos)
        commands.append(expert.act(truth, cell.state()))
        cell.step(commands[-1])
    assert cell.truth().success and stages == list(TASK.stages)
    assert (np.abs(np.diff(commands, axis=0)) / STATION.step_s <= STATION.max_velocity + 1e-9).all()
    other, expert = Cell(STATION, TASK), Expert(STATION, TASK, FAST, 0)
    other.reset(3)
    for state in states[: round(3.5 * STATION.control_rate_hz)]:  # the first fold is under way
        assert (other.truth().qpos == state).all()
        other.step(expert.act(other.truth(), other.state()))
    assert max(other.scene().holds)


def test_truth_tells_the_scene(cell):
    cell.reset(5)
    lay(cell, folded(1))
    seen, told = cell.scene(), TruthReader(STATION, TASK).read(cell.truth().qpos)
    assert np.abs(seen.vertices - told.vertices).max() < 1e-9
    assert np.abs(seen.features() - told.features()).max() < 1e-6
    assert seen.features().shape == (9 * len(cell.props.KEYPOINTS) + 12 + 2,)
    assert told.halved and not told.over


def test_what_is_folded_over_lies_on_top():
    for times, most in ((0, 0), (1, 1), (2, 3)):
        layers = Layers().below(folded(times)).reshape(N, N)
        assert layers.max() == most and layers.min() == 0
        assert times == 0 or (layers[[0, -1], 0] > 0).all()


@pytest.mark.parametrize(
    ("times", "askew", "good"), [(2, 0.0, True), (2, 0.2, False), (1, 0.0, False), (0, 0.0, False)]
)
def test_only_a_neat_strip_on_the_mat_succeeds_and_another_fails_after_a_while(cell, times, askew, good):
    cell.reset(0)
    lay(cell, folded(times, askew=askew), MAT)
    for _ in range(round(0.5 * STATION.control_rate_hz)):
        cell.step(STATION.home)
    assert cell.truth().success == good and not cell.truth().failure
    for _ in range(round(1.5 * STATION.control_rate_hz)):
        cell.step(STATION.home)
    assert cell.truth().failure == (not good)


@pytest.mark.parametrize("near", [True, False])
def test_the_strict_shirt_must_show_its_print(near):
    cell = Cell(STATION, STRICT)
    cell.reset(0)
    lay(cell, folded(2, near=near), MAT)
    for _ in range(20):
        cell.step(STATION.home)
    assert cell.scene().halved and cell.scene().quartered and cell.scene().right_way == (not near)
    assert cell.truth().success == (not near)


def test_a_hand_holds_what_it_closes_on_and_the_hem_slips(cell):
    for error, way, held in (
        (0.0, 0.10, True),
        (0.016, 0.10, True),
        (0.016, 0.25, False),
        (0.05, 0.0, False),
    ):
        cell.reset(1)
        corner = cell.scene().vertices[0, 0]
        memory = np.zeros(4)
        tip = np.array([*(corner[:2] - error * np.array([0.7, 0.7])), 0.015])
        cell.props.sheet.hold(cell.model, cell.data, 0, tip, 0.0, 0.0, memory)
        cell.props.sheet.hold(cell.model, cell.data, 0, tip, 0.0, way, memory)
        assert bool(memory[0]) == held
        cell.props.sheet.hold(cell.model, cell.data, 0, tip, 0.09, 0.0, memory)
        assert not memory[0] and not cell.data.eq_active[cell.props.sheet._holds].any()


@pytest.mark.parametrize("after_s", [2.0, 5.5])
def test_the_expert_takes_over_from_any_moment(cell, after_s):
    cell.reset(4)
    first, second = Expert(STATION, TASK, FAST, 0), Expert(STATION, TASK, FAST, 1)
    while cell.time_s < after_s:
        cell.step(first.act(cell.truth(), cell.state()))
    start = cell.state()
    assert np.abs(second.act(cell.truth(), start) - start)[~STATION.is_gripper].max() < 0.02
    while not over(cell) and cell.time_s < 30.0:
        cell.step(second.act(cell.truth(), cell.state()))
    assert cell.truth().success


def test_the_operator_names_a_fold_askew(cell):
    operator = Operator(STATION, TASK, 0)
    cell.reset(2)
    lay(cell, folded(2, askew=0.2))
    reasons = set()
    while not over(cell) and cell.time_s < 2.0:
        seen = operator.update(cell.truth(), cell.state(), cell.time_s)
        reasons |= {seen.reason} if seen.pressed else set()
        cell.step(seen.command if seen.pressed else STATION.home)
    assert reasons & {"the first fold is askew", "the first fold has come open"}


def test_random_scenes_show_every_keypoint_to_some_camera(cell):
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(cell.keypoints("base_camera"), 0)
    for _ in range(40):
        cell.randomize(rng)
        assert cell.scene().vertices[..., 2].min() > 0.5 * RADIUS
        for camera in STATION.camera_names:
            for name, (xyz, _, visible) in cell.keypoints(camera).items():
                assert np.isfinite(xyz).all()
                seen[name] += visible
    assert min(seen.values()) > 20


def test_an_edge_that_lies_short_is_swung_to_its_place(cell):
    cell.reset(0)
    points = _turned_over(flat(), -0.0275, np.pi, LAYER)  # a square short of half way
    lay(cell, points)
    cell.step(STATION.home)
    assert cell.scene().half_errors.min() > 0.05 and cell.truth().stage == "fold"
    expert = Expert(STATION, TASK, FAST, 0)
    while not over(cell) and cell.truth().stage != "place" and cell.time_s < 12.0:
        cell.step(expert.act(cell.truth(), cell.state()))
    assert cell.scene().halved and cell.scene().over


def test_diverse_cloths_differ_and_are_spread_before_they_are_folded():
    task = replace(load_task("fold_diverse"), sim=load_task("fold_diverse").sim | {"hardness": (1.0, 1.0)})
    cell, expert, stages, shapes = Cell(STATION, task), Expert(STATION, task, FAST, 0), [], []
    for seed in (0, 1):
        cell.reset(seed)
        cell.step(STATION.home)
        shapes.append(cell.scene().shape)
        assert cell.truth().stage == "spread" and (cell.scene().spread_errors > 0.03).sum() == 2
    assert np.abs(shapes[0] - shapes[1]).max() > 0.002
    while not over(cell) and cell.time_s < 25.0:
        truth = cell.truth()
        if not stages or stages[-1] != truth.stage:
            stages.append(truth.stage)
        cell.step(expert.act(truth, cell.state()))
    assert cell.truth().success and stages == list(task.stages)
