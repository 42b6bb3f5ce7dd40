from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recap_station.contract import ContractError, Station, Task, load_station, load_task


def test_the_default_station_has_fourteen_numbers_in_aloha_order():
    station = load_station("aloha")
    assert station.dof == 14
    assert [i for i, gripper in enumerate(station.is_gripper) if gripper] == [6, 13]
    assert station.joint_names[0] == "left_waist" and station.joint_names[7] == "right_waist"
    assert station.camera_names == ("base_camera", "left_wrist_camera", "right_wrist_camera")
    assert (station.lower <= station.home).all() and (station.home <= station.upper).all()


def test_a_vector_is_put_in_the_stations_order():
    station = load_station("aloha")
    values = np.arange(14.0)
    shuffled = np.random.default_rng(0).permutation(14)
    names = [station.joint_names[i] for i in shuffled]
    assert (station.vector(names, values[shuffled]) == values).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda names: [*names[:-1], "right_griper"], "did you mean 'right_gripper'"),
        (lambda names: names[:-1], "13 joint names with 14 values"),
        (lambda names: [*names[:-1], names[0]], "right_gripper"),
    ],
)
def test_a_wrong_joint_list_is_refused_by_name(change, says):
    station = load_station("aloha")
    with pytest.raises(ContractError, match=says):
        station.vector(change(list(station.joint_names)), [0.0] * 14)


def test_a_misspelt_task_or_station_suggests_the_nearest():
    with pytest.raises(ContractError, match="did you mean 'handover_insert'"):
        load_task("handover_inser")
    with pytest.raises(ContractError, match="did you mean 'aloha'"):
        load_station("alhoa")


def test_station_and_task_survive_the_bag_metadata():
    station, task = load_station("aloha"), load_task("handover_insert")
    assert Station.from_dict(station.to_dict()) == station
    assert Task.from_dict(task.to_dict()) == task


def test_the_fingerprint_changes_with_a_camera_size():
    station = load_station("aloha")
    cameras = (replace(station.cameras[0], width=128), *station.cameras[1:])
    assert replace(station, cameras=cameras).fingerprint != station.fingerprint


def test_a_home_outside_its_limits_is_refused(tmp_path: Path):
    (tmp_path / "bent.yaml").write_text(
        "name: bent\ncontrol_rate_hz: 50\ncameras: []\narms:\n  - prefix: a_\n    joints:\n"
        "      - {name: j, lower: -1, upper: 1, max_velocity: 1, max_acceleration: 1, home: 2}\n"
    )
    with pytest.raises(ContractError, match="home of a_j is 2"):
        load_station(tmp_path / "bent.yaml")


def test_a_task_with_an_impossible_time_limit_is_refused(tmp_path: Path):
    (tmp_path / "t.yaml").write_text("name: t\nprompt: p\ntime_limit_s: 20\nmax_episode_s: 10\nstages: [a]\n")
    with pytest.raises(ContractError, match="time_limit_s <= max_episode_s"):
        load_task(tmp_path / "t.yaml")


YAML = (
    "name: bent\ncontrol_rate_hz: 50\ncameras: []\narms:\n  - prefix: a_\n    joints:\n"
    "      - {{name: j, lower: -1, upper: 1, max_velocity: {}, home: 0}}\n"
)


def test_without_an_acceleration_limit_full_speed_is_reached_in_a_tenth_of_a_second(tmp_path: Path):
    (tmp_path / "bent.yaml").write_text(YAML.format("2.5"))
    station = load_station(tmp_path / "bent.yaml")
    assert station.joints[0].max_acceleration == 25.0
    assert Station.from_dict(station.to_dict()) == station


@pytest.mark.parametrize("velocity", ["0", "-1", ".nan", ".inf"])
def test_a_velocity_limit_that_is_none_is_refused(tmp_path: Path, velocity: str):
    (tmp_path / "bent.yaml").write_text(YAML.format(velocity))
    with pytest.raises(ContractError, match=r"max_velocity of a_j is .*, wanted more than 0"):
        load_station(tmp_path / "bent.yaml")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("control_rate_hz: -50", "control_rate_hz is -50, wanted 1 .. 1000"),
        ("control_rate_hz: .nan", "control_rate_hz is nan, wanted 1 .. 1000"),
        ("control_rate_hz: 1e7", "control_rate_hz is"),
        ("control_rate_hz: fast", "not a station: could not convert string to float: 'fast'"),
    ],
)
def test_a_rate_that_is_none_is_refused_with_its_file(tmp_path: Path, line: str, told: str):
    text = YAML.format("2.5")
    found = next(one for one in text.splitlines() if one.startswith("control_rate_hz"))
    (tmp_path / "bent.yaml").write_text(text.replace(found, line))
    with pytest.raises(ContractError, match=f"bent.yaml: {told}"):
        load_station(tmp_path / "bent.yaml")


def test_text_for_a_number_and_what_is_no_text_are_refused_with_their_file(tmp_path: Path):
    (tmp_path / "bent.yaml").write_text(YAML.format("quick"))
    with pytest.raises(
        ContractError, match=r"bent.yaml: not a station: max_velocity of a_j is 'quick', wanted a number"
    ):
        load_station(tmp_path / "bent.yaml")
    (tmp_path / "bent.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ContractError, match=r"bent.yaml: not YAML"):
        load_station(tmp_path / "bent.yaml")
