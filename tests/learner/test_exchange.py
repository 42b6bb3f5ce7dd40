"""store → LeRobot → store keeps every number; a data set of others becomes demonstrations.

Needs requirements-exchange.txt; without it only the errors are tested.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap_learner.data.episodes import ConversionError, convert_bags, read_images
from recap_learner.data.image_index import locate_images
from recap_learner.data.inspection import inspect_store
from recap_learner.data.store import Store
from recap_learner.exchange import video
from recap_learner.exchange.lerobot_export import KEPT, RECAP, export_lerobot
from recap_learner.exchange.lerobot_import import import_lerobot
from recap_learner.exchange.video import ExchangeError
from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task
from recap_station.streams import Stream

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START, STEP, TICKS = 1_700_000_000_000_000_000, 20_000_000, 60
COLUMNS = (
    "time_ns", "state", "command", "policy_command", "teleop_command", "source", "correction", "stage", "gap",
    "mode",
)  # fmt: skip


def make_bag(folder: Path, number: int) -> Path:
    """A person commands from tick 20 to 40; images come late and, of the last camera, only from tick 7; one
    message is damaged."""
    bag, rng = folder / f"attempt{number}", np.random.default_rng(number)
    with BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED) as writer:
        for tick in range(TICKS):
            now = START + tick * STEP + number
            names, values = STATION.joint_names, rng.normal(size=STATION.dof)
            who = "teleop" if 20 <= tick < 40 else "policy"
            writer.write(topics.JOINT_STATES, now, joint_state(now, names, values))
            writer.write(topics.JOINT_COMMAND, now, joint_state(now, names, values + 1, who))
            writer.write(topics.POLICY_COMMAND, now, joint_state(now, names, values + 2))
            if tick in (0, 20, 40):
                mode = serialize(topics.MODE_TYPE, stamp_ns=now, mode=2 if who == "teleop" else 1, source=who)
                writer.write(topics.CONTROL_MODE, now, mode)
            if tick == 30:
                writer.write(topics.JOINT_STATES, now, joint_state(now, names, [np.nan] * STATION.dof))
            if who == "teleop":
                writer.write(topics.TELEOP_COMMAND, now, joint_state(now, names, values + 1))
            if tick % 3 == 0:
                stage = "reach" if tick < 30 else "lift"
                writer.write(topics.SIM_TRUTH, now, serialize(topics.TRUTH_TYPE, stamp_ns=now, stage=stage))
                for camera in STATION.camera_names:
                    if camera == STATION.camera_names[-1] and tick < 7:
                        continue
                    picture = np.full((64, 96, 3), 2 * tick + 40, np.uint8)
                    cv2.circle(picture, (30 + tick, 32), 12, (200, 80, 40), -1)
                    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
                    stamp = now - 7_000_000 if tick else now
                    writer.write(topics.image_topic(camera), now, compressed_image(stamp, jpeg, camera))
        contract = {"recap.station": json.dumps(STATION.to_dict()), "recap.task": json.dumps(TASK.to_dict())}
        outcome = ("success", "failure")[number % 2]
        writer.set_metadata({**contract, "recap.outcome": outcome, "recap.checkpoint": "policy 7"})
    return bag


@pytest.fixture
def store(tmp_path: Path) -> Store:
    bags = [make_bag(tmp_path / "bags", number) for number in range(2)]
    _, problems = convert_bags(bags, tmp_path / "store")
    assert not problems
    made, rng = Store(tmp_path / "store"), np.random.default_rng(0)
    for number in range(2):
        columns = {"value": rng.normal(size=TICKS), "advantage": rng.normal(size=TICKS)}
        flags = {"indicator": rng.random(TICKS) > 0.5, "forced": rng.random(TICKS) > 0.5}
        made.save_labels("run1", f"attempt{number}", {**columns, **flags}, {})
    return made


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_round_trip_keeps_states_commands_masks_and_labels(store, tmp_path, codec):
    pytest.importorskip("av")
    assert export_lerobot(store, tmp_path / "dataset", codec=codec) == 2
    back = Store(tmp_path / "back")
    assert import_lerobot(tmp_path / "dataset", back) == ["attempt0", "attempt1"]
    for name in ("attempt0", "attempt1"):
        before, after = store.load(name), back.load(name)
        for column in COLUMNS:
            was, now = getattr(before, column), getattr(after, column)
            np.testing.assert_array_equal(now, was, err_msg=column)
            assert now.dtype == was.dtype
        for kept in KEPT:
            assert getattr(after.info, kept) == getattr(before.info, kept), kept
        assert "not finite" in after.info.damage and set(after.mode) == {1, 2}
        assert after.info.bag == f"imported/{name}"
        labels = back.load_labels("run1", name)
        for column, values in store.load_labels("run1", name).items():
            np.testing.assert_array_equal(labels[column], values, err_msg=column)
        for camera in STATION.camera_names:
            np.testing.assert_array_equal(after.image_age[camera], before.image_age[camera])
            np.testing.assert_array_equal(after.image[camera] < 0, before.image[camera] < 0)
            of = [i[i >= 0] for i in (before.image[camera], after.image[camera])]
            was = list(read_images(store.folder / before.info.bag, camera, of[0]))
            now = list(read_images(back.folder / after.info.bag, camera, of[1]))
            assert len(was) == len(now) >= 15
            off = np.abs(np.array(was).astype(float) - np.array(now))
            assert off.mean() < 4.0  # the codec's loss, of video and JPEG; the next image is 6 off
            table = locate_images(after, back.folder)[camera]  # in the bag, not copied once more
            assert {file.parent for file in table.files} == {back.folder / after.info.bag}


def test_a_data_set_comes_back_into_this_stacks_own_topics(store, tmp_path):
    """Whatever topics and types a cell had: how its streams meet the ticks is kept."""
    pytest.importorskip("av")
    for name in ("attempt0", "attempt1"):
        episode = store.load(name)
        was = episode.info.streams
        assert was is not None
        state = (Stream("left", align="asof", tolerance_s=0.5), Stream("right", time="receive"))
        store.add(replace(episode, info=replace(episode.info, streams=replace(was, state=state))))
    export_lerobot(store, tmp_path / "dataset")
    back = Store(tmp_path / "back")
    import_lerobot(tmp_path / "dataset", back)
    after = back.load("attempt0").info.streams
    assert after is not None and after.state == (
        Stream(topics.JOINT_STATES, topics.JOINT_STATE_TYPE, align="asof", tolerance_s=0.5),
    )
    assert not [f for f in inspect_store(back).findings if f.kind == "unreadable"]


def test_the_data_set_has_what_the_format_wants(store, tmp_path):
    pytest.importorskip("av")
    export_lerobot(store, tmp_path / "dataset")
    info = json.loads((tmp_path / "dataset/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 50, 2 * TICKS)
    table = pq.read_table(tmp_path / "dataset/data")
    assert set(table.column_names) - {"chunk", "file"} == {
        name for name, feature in info["features"].items() if feature["dtype"] != "video"
    }
    np.testing.assert_array_equal(np.sort(table["index"].to_numpy()), np.arange(2 * TICKS))
    stats = json.loads((tmp_path / "dataset/meta/stats.json").read_text())
    states = np.concatenate([store.load(f"attempt{n}").state for n in range(2)])
    np.testing.assert_allclose(stats["observation.state"]["mean"], states.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["std"], states.std(0), rtol=1e-5)
    assert np.array(stats["observation.images.base_camera"]["mean"]).shape == (3, 1, 1)


def _lerobot():
    """LeRobot's own reader, where it is installed and works with this PyTorch."""
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except Exception as error:  # of what it needs, each fails in its own way
        pytest.skip(f"needs lerobot: {error}")
    return LeRobotDataset


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_lerobots_own_reader_gives_what_the_store_has(store, tmp_path, codec):
    pytest.importorskip("av")
    reader = _lerobot()
    export_lerobot(store, tmp_path / "dataset", codec=codec)
    ahead = {"action": [k / 50 for k in range(5)]}
    data = reader("recap/test", root=tmp_path / "dataset", video_backend="pyav", delta_timestamps=ahead)
    assert (len(data), data.num_episodes, data.fps) == (2 * TICKS, 2, 50)
    for number in range(2):
        episode, labels = store.load(f"attempt{number}"), store.load_labels("run1", f"attempt{number}")
        for tick in (0, 1, 25, 41, TICKS - 1):
            row = data[number * TICKS + tick]
            np.testing.assert_array_equal(row["observation.state"], episode.state[tick])
            later = np.minimum(tick + np.arange(5), TICKS - 1)  # never into the next episode
            np.testing.assert_array_equal(row["action"], episode.command[later])
            assert row["action_is_pad"].tolist() == [tick + k >= TICKS for k in range(5)]
            np.testing.assert_array_equal(row["teleop_action"], episode.teleop_command[tick])
            assert row["is_intervention"].item() == episode.correction[tick]
            assert row["control_mode"].item() == episode.mode[tick]
            assert (row["task"], row["outcome"]) == (TASK.prompt, episode.info.outcome)
            assert row["advantage"].item() == labels["advantage"][tick]
            for camera, index in episode.image.items():
                shown = 255 * row[f"observation.images.{camera}"].numpy().transpose(1, 2, 0)
                image = np.zeros((64, 96, 3))
                if index[tick] >= 0:
                    [image] = read_images(store.folder / episode.info.bag, camera, [index[tick]])
                assert np.abs(shown - image).mean() < 4.0
    states = np.concatenate([store.load(f"attempt{n}").state for n in range(2)])
    np.testing.assert_allclose(data.meta.stats["observation.state"]["mean"], states.mean(0), atol=1e-6)
    assert {"q01", "q99"} <= set(data.meta.stats["action"])


def test_a_data_set_of_others_becomes_demonstrations(store, tmp_path):
    pytest.importorskip("av")
    export_lerobot(store, tmp_path / "dataset")
    (tmp_path / "dataset" / RECAP).unlink()  # now it is anybody's
    with pytest.raises(ExchangeError, match="--station and --task"):
        import_lerobot(tmp_path / "dataset", Store(tmp_path / "back"))
    back = Store(tmp_path / "back")
    names = import_lerobot(tmp_path / "dataset", back, STATION, TASK)
    assert names == ["dataset_000000", "dataset_000001"]
    before, after = store.load("attempt0"), back.load(names[0])
    np.testing.assert_array_equal(after.state, before.state)
    np.testing.assert_array_equal(after.command, before.command)
    assert after.info.source == "demonstration" and after.info.success and not after.correction.any()
    assert np.isnan(after.policy_command).all()
    camera = STATION.camera_names[0]
    shown = list(read_images(back.folder / after.info.bag, camera, after.image[camera]))
    was = dict(
        zip(
            np.unique(before.image[camera]),
            read_images(store.folder / before.info.bag, camera, before.image[camera]),
            strict=True,
        )
    )
    off = [np.abs(a.astype(float) - was[i]).mean() for a, i in zip(shown, before.image[camera], strict=True)]
    assert max(off) < 4.0


def others_data_set(folder: Path, lengths: tuple[int, ...], fps: int, videos: bool) -> None:
    """As other recorders lay it out: all episodes in one file, and either all of a camera in one video or its
    images in the rows. The gray of an image tells which one it is: 2 a row, counted over all episodes."""
    total, keys = sum(lengths), [f"observation.images.{camera}" for camera in STATION.camera_names]
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    values = (np.arange(total)[:, None] + 0.01 * np.arange(STATION.dof)).astype(np.float32)
    pictures = [np.full((32, 48, 3), 2 * row + 20, np.uint8) for row in range(total)]
    columns = {
        "observation.state": pa.array(values.tolist(), pa.list_(pa.float32(), STATION.dof)),
        "action": pa.array((values + 0.5).tolist(), pa.list_(pa.float32(), STATION.dof)),
        "episode_index": episode, "frame_index": frame, "timestamp": frame / fps,
        "task_index": np.zeros(total, int),
    }  # fmt: skip
    about: dict[str, list] = {
        "episode_index": list(range(len(lengths))), "length": list(lengths),
        "data/chunk_index": [0] * len(lengths), "data/file_index": [0] * len(lengths),
    }  # fmt: skip
    for key in keys:
        if videos:
            path = folder / f"videos/{key}/chunk-000/file-000.mp4"
            path.parent.mkdir(parents=True)
            writer = video.VideoWriter(path, fps, (32, 48), "h264")
            for picture in pictures:
                writer.write(picture)
            writer.close()
            about |= {f"videos/{key}/{place}_index": [0] * len(lengths) for place in ("chunk", "file")}
            about[f"videos/{key}/from_timestamp"] = [sum(lengths[:i]) / fps for i in range(len(lengths))]
        else:
            cells = [{"bytes": cv2.imencode(".png", p)[1].tobytes(), "path": None} for p in pictures]
            columns[key] = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    features = {
        name: {"dtype": "float32", "shape": [STATION.dof]} for name in ("observation.state", "action")
    }
    features |= {key: {"dtype": "video" if videos else "image", "shape": [32, 48, 3]} for key in keys}
    info = {
        "codebase_version": "v3.0", "fps": fps, "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    for path in ("data/chunk-000", "meta/episodes/chunk-000"):
        (folder / path).mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    pq.write_table(pa.table(columns), folder / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.table(about), folder / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": [0], "task": ["put the peg into the hole"]})
    pq.write_table(tasks, folder / "meta/tasks.parquet")


@pytest.mark.parametrize("videos", [False, True])
def test_a_data_set_in_others_layout_is_read(tmp_path: Path, videos: bool) -> None:
    if videos:
        pytest.importorskip("av")
    lengths, fps = (12, 30), 10
    others_data_set(tmp_path / "theirs", lengths, fps, videos)
    back = Store(tmp_path / "back")
    names = import_lerobot(tmp_path / "theirs", back, STATION, TASK)
    assert names == ["theirs_000000", "theirs_000001"]
    for name, rows, first in zip(names, lengths, (0, lengths[0]), strict=True):
        episode = back.load(name)
        row = np.arange(len(episode)) * fps // int(STATION.control_rate_hz)
        assert len(episode) == (rows - 1) * STATION.control_rate_hz / fps + 1
        np.testing.assert_allclose(episode.state[:, 0], first + row)
        np.testing.assert_allclose(episode.command[:, 0], first + row + 0.5)
        assert episode.info.task.prompt == "put the peg into the hole"
        for camera in STATION.camera_names:
            shown = read_images(episode.info.bag_in(back.folder), camera, episode.image[camera])
            gray = np.array([image.mean() for image in shown])[episode.image[camera]]  # each image once
            assert np.abs(gray - (2 * (first + row) + 20)).max() <= 1.5


def test_a_row_without_its_image_is_named(tmp_path: Path) -> None:
    others_data_set(tmp_path / "theirs", (5,), 10, videos=False)
    file, key = (
        tmp_path / "theirs/data/chunk-000/file-000.parquet",
        f"observation.images.{STATION.camera_names[0]}",
    )
    rows = pq.read_table(file).to_pylist()
    rows[3][key] = {"bytes": b"no image", "path": None}
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(ExchangeError, match=f"episode 0 has no {key} in row 3"):
        import_lerobot(tmp_path / "theirs", Store(tmp_path / "back"), STATION, TASK)


def test_a_camera_that_was_absent_is_black_and_comes_back_absent(store, tmp_path):
    pytest.importorskip("av")
    camera, one = STATION.camera_names[1], store.load("attempt0")
    store.remove("attempt1")
    nothing = np.full(TICKS, -1, np.int32)
    store.add(replace(one, image={**one.image, camera: nothing}))

    export_lerobot(store, tmp_path / "dataset")
    back = Store(tmp_path / "back")
    import_lerobot(tmp_path / "dataset", back)

    after = back.load("attempt0")
    assert (after.image[camera] == -1).all() and (after.image[STATION.camera_names[0]] >= 0).all()
    info = json.loads((tmp_path / "dataset/meta/info.json").read_text())
    said = STATION.camera(camera)
    assert info["features"][f"observation.images.{camera}"]["shape"] == [said.height, said.width, 3]


def test_names_in_a_data_set_lead_nowhere_else(store, tmp_path):
    pytest.importorskip("av")
    export_lerobot(store, tmp_path / "dataset")
    file = tmp_path / "dataset" / RECAP
    whole, info = json.loads(file.read_text()), tmp_path / "dataset/meta/info.json"
    for name in ("../../stolen", "/stolen", "a/b"):
        file.write_text(json.dumps({**whole, "episodes": [{**e, "id": name} for e in whole["episodes"]]}))
        with pytest.raises(ConversionError, match="wanted a name without '/'"):
            import_lerobot(tmp_path / "dataset", Store(tmp_path / "deep" / "back"))
    file.write_text(json.dumps(whole))
    about = json.loads(info.read_text())
    for name in ("data_path", "video_path"):
        info.write_text(json.dumps({**about, name: "../elsewhere/" + about[name]}))
        with pytest.raises(ExchangeError, match="is outside the data set"):
            import_lerobot(tmp_path / "dataset", Store(tmp_path / "deep" / "back"))
    assert not (tmp_path / "stolen").exists() and not list((tmp_path / "deep").rglob("*.parquet"))


def test_a_killed_import_goes_on_and_another_episode_is_kept(store, tmp_path):
    pytest.importorskip("av")
    export_lerobot(store, tmp_path / "dataset")
    back = Store(tmp_path / "back")
    names = import_lerobot(tmp_path / "dataset", back)
    back.remove("attempt1")  # as if killed when its bag was written and the episode was not
    (tmp_path / "back/imported/attempt1/metadata.yaml").unlink()

    assert import_lerobot(tmp_path / "dataset", back) == names == ["attempt0", "attempt1"]

    assert not [f for f in inspect_store(back).findings if f.kind == "unreadable"]
    mine = back.load("attempt0")
    back.add(replace(mine, state=mine.state + 1))
    with pytest.raises(FileExistsError, match="has another episode 'attempt0'"):
        import_lerobot(tmp_path / "dataset", back)
    np.testing.assert_array_equal(back.load("attempt0").state, mine.state + 1)


def test_a_rerun_recording_holds_every_image_and_joint(store, tmp_path):
    pytest.importorskip("rerun")
    from recap_learner.exchange.rerun_export import export_rerun

    [file] = export_rerun(store, tmp_path / "out", episodes=["attempt1"])
    content = file.read_bytes()
    assert file.name == "attempt1.rrd" and content[:3] == b"RRF"
    said = subprocess.run(
        [sys.executable, "-m", "rerun_cli", "rrd", "print", str(file)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    for entity in ("/camera/base_camera", "/labels/advantage", "/policy_command", "/correction", "/stage"):
        assert entity in said.stdout


def test_without_pyav_it_says_how_to_install_it(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ExchangeError, match=r"requirements-exchange\.txt"):
        video.pyav()
    with pytest.raises(ExchangeError, match=r"requirements-exchange\.txt"):
        export_lerobot(store, tmp_path / "dataset")


def test_what_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "meta").mkdir()
    with pytest.raises(ExchangeError, match="no LeRobot data set"):
        import_lerobot(tmp_path, Store(tmp_path / "store"))
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(ExchangeError, match=r"'v2\.1', wanted 'v3\.0'"):
        import_lerobot(tmp_path, Store(tmp_path / "store"))


def test_an_export_overwrites_nothing(store, tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        export_lerobot(store, tmp_path / "dataset")


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_an_episode_is_found_within_a_video_of_several(tmp_path, codec):
    pytest.importorskip("av")
    writer = video.VideoWriter(tmp_path / "all.mp4", 30, (64, 64), codec)
    for shade in range(0, 200, 4):
        writer.write(np.full((64, 64, 3), shade, np.uint8))
    writer.close()
    frames = [f.mean() for f in video.read_frames(tmp_path / "all.mp4", 30, 17 / 30, 12)]
    np.testing.assert_allclose(frames, np.arange(17, 29) * 4, atol=2.5)
    with pytest.raises(ExchangeError, match=r"10 frames from 1\.33"):
        list(video.read_frames(tmp_path / "all.mp4", 30, 40 / 30, 12))
