from dataclasses import replace
from multiprocessing import get_context

import mujoco
import numpy as np
import pytest

from recap_station.contract import Camera, ContractError, load_station, load_task
from recap_station.sim.arms import Unreachable, arms_of, reach_down
from recap_station.sim.cell import Cell
from recap_station.sim.model import build_model
from recap_station.sim.task import put_free_body

STATION, TASK = load_station("aloha"), load_task("handover_insert")


@pytest.fixture(scope="module")
def cell():
    cell = Cell(STATION, TASK)
    yield cell
    cell.close()


def wander(cell: Cell, seed: int, ticks: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cell.reset(seed)
    for _ in range(ticks):
        cell.step(np.clip(STATION.home + rng.normal(0, 0.1, 14), STATION.lower, STATION.upper))
    return cell.truth().qpos


def _wander_elsewhere(seed: int) -> np.ndarray:
    return wander(Cell(STATION, TASK), seed)


def test_same_seed_and_commands_give_the_same_bits(cell):
    first = wander(cell, 3)
    wander(cell, 4)
    assert (wander(cell, 3) == first).all()
    assert (wander(Cell(STATION, TASK), 3) == first).all()


def test_a_spawned_process_gets_the_same_bits(cell):
    with get_context("spawn").Pool(1) as pool:
        assert (pool.apply(_wander_elsewhere, (5,)) == wander(cell, 5)).all()


def test_home_is_held_still(cell):
    cell.reset(0)
    for _ in range(50):
        cell.step(STATION.home)
    assert np.abs(cell.state() - STATION.home).max() < 1e-3


def test_joints_follow_a_command_within_a_few_hundredths_of_a_second(cell):
    cell.reset(0)
    goal = STATION.home + 0.1 * ~STATION.is_gripper
    for _ in range(20):
        cell.step(goal)
    assert np.abs(cell.state() - goal).max() < 0.01


def test_seeds_move_peg_and_socket_within_the_dials(cell):
    starts = []
    for seed in range(40):
        cell.reset(seed)
        starts.append(np.concatenate([cell.scene().center[:2], cell.scene().mouth[:2]]))
    low, high = np.min(starts, axis=0), np.max(starts, axis=0)
    dials = cell.props.dials
    ranges = np.array([dials.peg_x, dials.peg_y, dials.socket_x, dials.socket_y])
    assert (low >= ranges[:, 0] - 1e-9).all() and (high <= ranges[:, 1] + 1e-9).all()
    assert (high - low > 0.7 * (ranges[:, 1] - ranges[:, 0])).all()


def test_a_command_that_is_not_finite_or_too_short_changes_nothing(cell):
    cell.reset(0)
    before = cell.truth().qpos
    bad = STATION.home
    bad[3] = np.nan
    with pytest.raises(ContractError, match="left_forearm_roll"):
        cell.step(bad)
    with pytest.raises(ContractError, match=r"\(13,\)"):
        cell.step(STATION.home[:13])
    assert (cell.truth().qpos == before).all() and cell.time_s == 0


def test_images_have_the_contracts_size_and_show_the_peg(cell):
    cell.reset(1)
    image = cell.render("base_camera")
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    red = (image[..., 0] > 120) & (image[..., 1] < 60) & (image[..., 2] < 60)
    blue = (image[..., 2] > 120) & (image[..., 0] < 60)
    assert red.sum() > 60 and blue.sum() > 40
    (_, (u, v), seen) = cell.keypoints("base_camera")["peg_center"]
    rows, columns = np.nonzero(red)
    assert seen and abs(columns.mean() / 96 - u) < 0.04 and abs(rows.mean() / 96 - v) < 0.04


def test_rendering_works_again_after_close(cell):
    first = cell.render("left_wrist_camera").copy()
    cell.close()
    assert (cell.render("left_wrist_camera") == first).all()


def test_an_unknown_camera_or_task_or_dial_names_the_nearest(cell):
    with pytest.raises(ContractError, match="did you mean 'base_camera'"):
        cell.render("base_camra")
    with pytest.raises(ContractError, match="did you mean 'handover_insert'"):
        Cell(STATION, replace(TASK, name="handover_inser"))
    with pytest.raises(ContractError, match=r"sim\.peg_z"):
        Cell(STATION, replace(TASK, sim={"peg_z": [0, 1]}))
    with pytest.raises(ContractError, match="low, high"):
        Cell(STATION, replace(TASK, sim={"peg_x": [0.1, -0.1]}))


def test_a_station_that_cannot_be_simulated_is_refused():
    with pytest.raises(ContractError, match="two arms of 6 joints"):
        Cell(replace(STATION, joints=STATION.joints[:7]), TASK)
    with pytest.raises(ContractError, match="is 4x96"):
        Cell(replace(STATION, cameras=(Camera("c", 4, 96, 30.0),)), TASK)


def test_inverse_kinematics_puts_the_tip_where_it_was_asked():
    model = build_model(STATION, TASK)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(0)
    for arm in arms_of(STATION):
        addresses = [model.joint(joint.name).qposadr[0] for joint in arm.joints]
        for _ in range(50):
            goal = rng.uniform([-0.1, -0.15, 0.01], [0.1, 0.15, 0.15])
            yaw = rng.uniform(-1.0, 1.0)
            data.qpos[addresses] = reach_down(arm, goal, yaw, 0.0)
            mujoco.mj_kinematics(model, data)
            site = data.site(arm.tip_site)
            assert np.abs(site.xpos - goal).max() < 1e-9
            frame = site.xmat.reshape(3, 3)
            assert frame[2, 0] < -0.999999  # fingers down
            assert abs(frame[:, 1] @ [np.cos(yaw), np.sin(yaw), 0.0]) < 1e-9  # they close across the bar
        with pytest.raises(Unreachable):
            reach_down(arm, np.array([0.0, 0.9, 0.1]), 0.0, 0.0)


def test_random_scenes_show_every_keypoint_to_some_camera(cell):
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(cell.keypoints("base_camera"), 0)
    for _ in range(40):
        cell.randomize(rng)
        for camera in STATION.camera_names:
            for name, (xyz, (u, v), visible) in cell.keypoints(camera).items():
                assert np.isfinite(xyz).all()
                if visible:
                    seen[name] += 1
                    assert xyz[2] > 0 and 0 <= u <= 1 and 0 <= v <= 1
    assert min(seen.values()) > 20


def test_a_peg_off_the_table_is_a_failure(cell):
    cell.reset(0)
    put_free_body(cell.model, cell.data, "peg", np.array([0.0, -0.5, 0.0]), 0.0)
    for _ in range(100):
        cell.step(STATION.home)
    assert cell.truth().failure and not cell.truth().success


def test_a_peg_that_the_hole_holds_deep_enough_is_a_success(cell):
    cell.reset(0)
    mouth = cell.scene().mouth
    put_free_body(cell.model, cell.data, "peg", mouth + np.array([0.06, 0.0, -0.008]), 0.0)
    for _ in range(20):
        cell.step(STATION.home)
    assert cell.truth().success and cell.truth().stage == "insert"
