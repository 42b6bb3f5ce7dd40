"""A bag played into the graph and a bag converted give the same ticks, bit for bit."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from graph import free_domain

from recap.doctor import has_launch
from recap_learner.data.episodes import Episode, load_episode, read_bag
from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task

pytestmark = pytest.mark.alone

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch/replay.launch.py"
STATION, TASK = load_station("aloha"), load_task("handover_insert")
START, TICKS = 1_700_000_000_000_000_000, 200
COLUMNS = (
    "time_ns", "state", "command", "policy_command", "teleop_command", "source", "correction", "stage", "gap",
    "mode",
)  # fmt: skip


def write_bag(path: Path) -> Path:
    """An attempt with a takeover, a silence of the robot, cameras out of step, and stamps that jitter."""
    rng = np.random.default_rng(0)
    names = STATION.joint_names
    with BagWriter(path, topics.recorded_topics(STATION), topics.LATCHED) as bag:
        for tick in range(TICKS):
            now = START + tick * 20_000_000
            stamp = now - int(rng.integers(0, 4_000_000))
            if tick in (3, TICKS - 5):
                fields = {"id": "one", "state": 1 if tick == 3 else 2, "outcome": 0 if tick == 3 else 1}
                bag.write(topics.EPISODE, now, serialize(topics.EPISODE_TYPE, stamp_ns=now, **fields))
            teleop = 80 <= tick < 120
            who = "teleop" if teleop else "policy"
            if tick % 25 == 0 or tick in (80, 120):
                fields = {"mode": 2 if teleop else 0, "source": who}
                bag.write(topics.CONTROL_MODE, now, serialize(topics.MODE_TYPE, stamp_ns=stamp, **fields))
            values = rng.normal(0, 0.3, STATION.dof)
            if not 50 <= tick < 65:
                bag.write(topics.JOINT_STATES, now, joint_state(stamp, names[::-1], values))
            bag.write(topics.JOINT_COMMAND, now, joint_state(stamp, names, values + 0.01, who))
            bag.write(topics.POLICY_COMMAND, now, joint_state(stamp, names, values + 0.02))
            if teleop:
                bag.write(topics.TELEOP_COMMAND, now, joint_state(stamp, names, values - 0.02))
            for k, camera in enumerate(STATION.camera_names):
                if tick % (2 + k) == 0:
                    jpeg = b"\xff\xd8\xff\xe0" + bytes(2000) + b"\xff\xd9"
                    bag.write(topics.image_topic(camera), now, compressed_image(stamp - k, jpeg, camera))
            stage = "reach" if tick < 70 else "lift"
            bag.write(topics.SIM_TRUTH, now, serialize(topics.TRUTH_TYPE, stamp_ns=stamp, stage=stage))
        contract = {"recap.task": json.dumps(TASK.to_dict()), "recap.station": json.dumps(STATION.to_dict())}
        bag.set_metadata({**contract, "recap.outcome": "success"})
    return path


@contextmanager
def node(module: str, **parameters: Any) -> Iterator[subprocess.Popen[bytes]]:
    given = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(free_domain()), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = subprocess.Popen([sys.executable, "-m", module, "--ros-args", *given], env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def assert_same_ticks(live: Episode, converted: Episode) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(live, name), getattr(converted, name), err_msg=name)
    assert live.image.keys() == converted.image.keys() == set(STATION.camera_names)
    for camera in live.image:
        np.testing.assert_array_equal(live.image[camera], converted.image[camera], err_msg=camera)
        np.testing.assert_array_equal(live.image_age[camera], converted.image_age[camera], err_msg=camera)


def test_a_bag_played_into_the_graph_gives_the_ticks_of_its_conversion(tmp_path: Path) -> None:
    bag, folder = write_bag(tmp_path / "one"), tmp_path / "live"
    converted = read_bag(bag, tmp_path)
    assert converted.gap.any() and converted.correction.any() and len(converted) > 150
    file = folder / "one.episode.parquet"
    with node("recap_learner.nodes.learner_node", ingest=folder):
        with node("recap_station.nodes.replay_node", bag=bag, rate=2.0, wait_s=120.0) as player:
            assert player.wait(120) == 0  # it ends by itself
        limit = time.monotonic() + 60.0
        while not file.is_file() and time.monotonic() < limit:
            time.sleep(0.1)
    live = load_episode(file)
    assert_same_ticks(live, converted)
    assert live.info.success and live.info.damage == "" and (live.image_at["base_camera"] == -1).all()


needs_launch = pytest.mark.skipif(not has_launch(), reason="needs ROS 2's launch")


@needs_launch
@pytest.mark.timeout(200)
@pytest.mark.parametrize("named", [["recap", LAUNCH_FILE.name], [str(LAUNCH_FILE)]], ids=["package", "path"])
def test_ros2_launch_plays_a_bag_and_ends_with_its_episode(tmp_path: Path, named: list[str]) -> None:
    bag = write_bag(tmp_path / "bags/one")
    given = ["bag:=bags/one", "episodes:=live", "rate:=2.0", "namespace:=cell"]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(free_domain()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["ros2", "launch", "--noninteractive", *named, *given], cwd=tmp_path, env=environment, timeout=150,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("process has finished cleanly") == 2, done.stdout
    live = load_episode(tmp_path / "live/one.episode.parquet")
    assert_same_ticks(live, read_bag(bag, tmp_path))
    assert live.info.damage == ""


@needs_launch
def test_ros2_launch_shows_the_arguments_of_replay(tmp_path: Path) -> None:
    arguments = runpy.run_path(str(LAUNCH_FILE))["ARGUMENTS"]
    command = ["ros2", "launch", "recap", LAUNCH_FILE.name]
    done = subprocess.run([*command, "--show-args"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(f"'{name}'" in done.stdout for name in arguments), done.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "bag" in done.stderr + done.stdout


class Recorded:
    """Stands for a class of launch or launch_ros and keeps what it was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def test_the_launch_file_starts_nodes_and_parameters_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    from recap_learner.nodes.learner_node import LearnerNode
    from recap_station.nodes.params import COMMON
    from recap_station.nodes.replay_node import ReplayNode

    members = {
        "launch": ("LaunchDescription",),
        "launch.actions": ("DeclareLaunchArgument", "Shutdown"),
        "launch.substitutions": ("LaunchConfiguration",),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
    }
    for name, classes in members.items():
        module = types.ModuleType(name)
        vars(module).update({one: type(one, (Recorded,), {}) for one in classes})
        monkeypatch.setitem(sys.modules, name, module)
    root = LAUNCH_FILE.parents[1]
    [described] = runpy.run_path(str(LAUNCH_FILE))["generate_launch_description"]().args
    *declared, learner, replay = described
    assert [one.args[0] for one in declared if one.kwargs["default_value"] is None] == ["bag"]
    for started, kind in ((learner, LearnerNode), (replay, ReplayNode)):
        known = {row.name for row in (*COMMON, *kind.PARAMETERS)}
        assert set(started.kwargs["parameters"][0]) <= known
        setup = (root / "src" / started.kwargs["package"] / "setup.py").read_text()
        assert f'"{started.kwargs["executable"]} = ' in setup
