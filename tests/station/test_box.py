import math

import mujoco
import numpy as np
import pytest

from recap_station.contract import load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import FAST, Expert
from recap_station.sim.scene import TruthReader
from recap_station.sim.script import up
from recap_station.sim.task import put_free_body
from recap_station.sim.tasks.box.scene import CAUGHT, FLAPS, IN_HAND, LATCHED, MAT, MEMORY, ON_BOX, OPEN, THIN
from recap_teleop.operator import Operator

STATION, TASK = load_station("aloha"), load_task("box")
FOLDED = {flap.name: LATCHED for flap in FLAPS}
LABELLED = {"label": ON_BOX, "pressed": 1.0}


@pytest.fixture(scope="module")
def cell():
    cell = Cell(STATION, TASK)
    yield cell
    cell.close()


def build(
    cell: Cell, place: np.ndarray, angles: dict[str, float], aside: float = 0.0, **memory: float
) -> None:
    """Start an attempt as if this had been done already: flaps at 90 degrees, or at `angles` where given."""
    cell.reset(0)
    put_free_body(cell.model, cell.data, "sheet", place, 0.0)
    for flap in FLAPS:
        angle = angles.get(flap.name, 0.5 * math.pi)
        cell.data.qpos[cell.model.joint(flap.name + "_flap").qposadr[0]] = angle
    cell.props.memory = np.array([{**FOLDED, **memory}.get(name, 0.0) for name in MEMORY])
    mujoco.mj_kinematics(cell.model, cell.data)
    cell._scene = None
    if "label" in memory:
        at = cell.scene().label_place + np.array([aside, 0.0, 0.0])
        put_free_body(cell.model, cell.data, "label", at, 0.0)


def wait(cell: Cell, seconds: float) -> None:
    for _ in range(round(seconds * STATION.control_rate_hz)):
        cell.step(STATION.home)


def drive(cell: Cell, expert: Expert, until, limit_s: float = 60.0) -> None:
    while not until(cell) and cell.time_s < limit_s:
        cell.step(expert.act(cell.truth(), cell.state()))


def over(cell: Cell) -> bool:
    return cell.truth().success or cell.truth().failure


def test_a_clean_expert_delivers_through_the_stages_in_order(cell):
    expert, stages, states, commands = Expert(STATION, TASK, FAST, 0), [], [], [STATION.home]
    cell.reset(0)
    while not over(cell) and cell.time_s < TASK.time_limit_s:
        truth = cell.truth()
        if not stages or stages[-1] != truth.stage:
            stages.append(truth.stage)
        states.append(truth.qpos)
        commands.append(expert.act(truth, cell.state()))
        cell.step(commands[-1])
    assert cell.truth().success and stages == list(TASK.stages)
    assert 18.0 < cell.time_s < 27.0
    assert (np.abs(np.diff(commands, axis=0)) / STATION.step_s <= STATION.max_velocity + 1e-9).all()
    assert np.abs(np.diff(commands, n=2, axis=0))[:, ~STATION.is_gripper].max() < 0.03
    # and again, bit for bit, in another cell
    other, expert = Cell(STATION, TASK), Expert(STATION, TASK, FAST, 0)
    other.reset(0)
    for state in states:
        assert (other.truth().qpos == state).all()
        other.step(expert.act(other.truth(), other.state()))
    assert other.truth().success


def test_truth_tells_the_scene_and_its_memory(cell):
    build(cell, MAT, {"left": 1.2}, left=CAUGHT, **LABELLED)
    wait(cell, 0.1)
    seen, told = cell.scene(), TruthReader(STATION, TASK).read(cell.truth().qpos)
    assert told.state == seen.state and told.state["left"] == CAUGHT
    assert np.abs(seen.features() - told.features()).max() < 1e-12
    assert seen.features().shape == (9 * len(cell.props.KEYPOINTS) + 12 + len(MEMORY) + len(FLAPS) + 2,)


@pytest.mark.parametrize("height", [0.0, 0.15])
def test_a_flap_pushed_too_little_springs_open_only_once_the_box_is_lifted(cell, height):
    build(cell, MAT + up(height), {"right": 1.25}, right=CAUGHT)
    wait(cell, 0.14)
    right, left = cell.scene().angles[1], cell.scene().angles[3]
    assert cell.scene().state["right"] == (OPEN if height else CAUGHT)
    assert (right < 1.1) == (height > 0) and abs(left - 0.5 * math.pi) < 0.05
    assert cell.truth().stage == ("fold" if height else "label")


@pytest.mark.parametrize(("pressed", "height"), [(0.5, 0.0), (0.5, 0.15), (1.0, 0.15)])
def test_a_label_pressed_too_shortly_falls_off_only_once_the_box_is_lifted(cell, pressed, height):
    build(cell, MAT + up(height), {}, label=ON_BOX, pressed=pressed)
    wait(cell, 0.06)
    scene = cell.scene()
    fell = pressed < 0.8 and height > 0
    assert (scene.state["label"] == ON_BOX) != fell
    place = scene.dispenser if fell else scene.label_place
    assert np.linalg.norm(scene.label.pos - place) < 0.004


@pytest.mark.parametrize(
    ("angles", "aside", "memory", "good"),
    [
        ({}, 0.0, LABELLED, True),
        ({}, 0.012, LABELLED, False),  # the label is askew
        ({}, 0.0, {}, False),  # it has none
        ({"back": 0.6}, 0.0, {**LABELLED, "back": OPEN}, False),
    ],
)
def test_what_was_done_badly_fails_only_when_the_box_is_delivered(cell, angles, aside, memory, good):
    build(cell, MAT, angles, aside, **memory)
    wait(cell, 0.3)
    assert not over(cell)
    crate = cell.scene().crate + up(THIN)
    build(cell, crate, angles, aside, **memory)
    wait(cell, 2.0)
    assert cell.truth().success == good and cell.truth().failure == (not good)


def test_a_flap_pushed_too_far_is_crushed(cell):
    build(cell, MAT, {"front": 2.1})
    wait(cell, 0.02)
    assert cell.truth().failure and not cell.truth().success


@pytest.mark.parametrize("after_s", [1.5, 3.7, 8.5, 12.5, 16.0, 18.0, 21.0])
def test_the_expert_takes_over_from_any_moment(cell, after_s):
    cell.reset(4)
    drive(cell, Expert(STATION, TASK, FAST, 0), lambda c: c.time_s >= after_s)
    second, start = Expert(STATION, TASK, FAST, 1), cell.state()
    assert np.abs(second.act(cell.truth(), start) - start)[~STATION.is_gripper].max() < 0.02
    drive(cell, second, over)
    assert cell.truth().success


def test_the_operator_leaves_a_clean_attempt_alone(cell):
    operator, expert = Operator(STATION, TASK, 0), Expert(STATION, TASK, FAST, 1)
    cell.reset(1)
    while not over(cell):
        assert not operator.update(cell.truth(), cell.state(), cell.time_s).pressed
        cell.step(expert.act(cell.truth(), cell.state()))
    assert cell.truth().success


def test_the_operator_latches_a_leaning_flap_and_hands_back(cell):
    operator = Operator(STATION, TASK, 0)
    build(cell, MAT, {"right": 1.25}, right=CAUGHT)
    reasons, was_pressed = set(), False
    while cell.time_s < 20.0:
        seen = operator.update(cell.truth(), cell.state(), cell.time_s)
        if was_pressed and not seen.pressed:
            break
        was_pressed = seen.pressed
        reasons |= {seen.reason} if seen.pressed else set()
        cell.step(seen.command if seen.pressed else STATION.home)
    assert reasons == {"the right flap is not latched"}
    assert min(cell.scene().flaps) == LATCHED and cell.time_s < 15.0


def test_random_scenes_show_every_keypoint_to_some_camera(cell):
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(cell.keypoints("base_camera"), 0)
    for _ in range(40):
        cell.randomize(rng)
        for camera in STATION.camera_names:
            for name, (xyz, _, visible) in cell.keypoints(camera).items():
                assert np.isfinite(xyz).all()
                seen[name] += visible
    assert min(seen.values()) > 20, seen


def test_the_operator_stops_a_label_that_is_about_to_land_askew():
    box, truth = Cell(STATION, TASK), []
    build(box, MAT, {}, label=ON_BOX)
    place = box.scene().label_place
    for x, y in ((0.012, -0.02), (0.0, -0.02), (0.012, -0.06)):
        put_free_body(box.model, box.data, "label", place + np.array([x, y, 0.0]), 0.0)
        mujoco.mj_kinematics(box.model, box.data)
        box.props.memory[MEMORY.index("label")] = IN_HAND
        box._scene = None
        truth.append(box.props.signs().trouble(box.scene(), 2, 2))
    assert truth == ["the label is askew", "", ""]
