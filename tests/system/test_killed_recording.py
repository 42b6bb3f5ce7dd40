"""A recorder killed in a bag of several files: `./recap label` and `./recap convert` take what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recap.cli import app
from recap_learner.data.bag_images import EpisodeImages
from recap_learner.data.episodes import load_episode
from recap_learner.data.store import Store

pytestmark = pytest.mark.alone

RECORDER = """
import sys, time
sys.path[:0] = {path!r}
import cv2, numpy as np
from recap_station import topics
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task
from recap_teleop.recorder import EpisodeRecorder
import json

station = load_station("aloha")
task = json.dumps(load_task("handover_insert").to_dict())
recorder = EpisodeRecorder({bags!r}, station, split_s=1.0)
recorder.start({{"recap.episode": "killed", "recap.task": task}})
tick = 0
while True:
    now = 10**18 + tick * 20_000_000
    values = [tick / 1000] * station.dof
    for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
        recorder.write(topic, now, joint_state(now, station.joint_names, values, "policy"))
    if tick % 2 == 0:
        picture = np.full((48, 64, 3), tick % 200 + 20, np.uint8)
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        for camera in station.camera_names:
            recorder.write(topics.image_topic(camera), now, compressed_image(now, jpeg, camera))
    tick += 1
    print(tick, flush=True)
    time.sleep(0.002)
"""


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, int]:
    """The bag, several files and a part of one, and how many ticks its recorder had written."""
    code = RECORDER.format(path=sys.path, bags=str(tmp_path / "bags"))
    recorder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert recorder.stdout
    written = 0
    while written < 185:
        written = int(recorder.stdout.readline())
    recorder.kill()
    written = int((recorder.stdout.read().split() or [written])[-1])
    recorder.wait()
    return tmp_path / "bags" / "killed", written


def run(*words: str) -> dict[str, object]:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_split_bag_is_converted_as_far_as_it_goes(killed: tuple[Path, int], tmp_path: Path) -> None:
    bag, written = killed
    assert not (bag / "metadata.yaml").exists()
    assert len(list(bag.glob("killed_*.mcap"))) >= 4
    store = tmp_path / "store"
    found = run("convert", str(bag), "--store", str(store))
    assert found["without_outcome"] == [str(store / "killed.episode.parquet")]
    run("label", str(bag), "--outcome", "failure")  # which writes the metadata.yaml that it never came to
    run("convert", str(bag), "--store", str(store))
    episode = load_episode(store / "killed.episode.parquet")
    assert episode.info.outcome == "failure" and len(episode.info.files) >= 4
    assert written - 60 <= len(episode) <= written + 1  # at most the last second is lost
    np.testing.assert_allclose(episode.state[:, 0], np.arange(len(episode)) / 1000, atol=1e-6)
    assert not episode.gap.any() and "not closed by its recorder" in episode.info.damage
    last = len(episode) - 1
    shown = EpisodeImages(episode, store).read(episode.info.station.camera_names[0], last)
    assert shown.mean() == pytest.approx(last // 2 * 2 % 200 + 20, abs=1.5)
    assert [entry.id for entry in Store(store).index()[0]] == ["killed"]


def test_a_file_that_the_killed_recorder_had_only_begun_is_no_obstacle(
    killed: tuple[Path, int], tmp_path: Path
) -> None:
    bag, _ = killed
    number = len(list(bag.glob("killed_*.mcap")))
    for name, content in ((f"killed_{number}.mcap", b""), (f"killed_{number + 1}.mcap", b"\x89MCAP0\r\n")):
        (bag / name).write_bytes(content)
    run("label", str(bag), "--outcome", "success")
    run("convert", str(bag), "--store", str(tmp_path / "store"))
    episode = load_episode(tmp_path / "store" / "killed.episode.parquet")
    assert len(episode) >= 125 and not episode.gap.any()
