"""Bags of other recorders: joints in any order and over several topics, arrays, trajectories, raw images,
several attempts in one bag. What cannot be used is told, and nothing is made up."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from mcap.writer import CompressionType

sys.path.append(str(Path(__file__).parent))
from foreign_bags import (
    JOINTS,
    START,
    STEP,
    TICKS,
    Row,
    array,
    at,
    cell,
    command,
    event,
    expected,
    picture,
    read,
    state,
    trajectory,
    values,
    whole,
    write,
)

from recap_learner.data.bag_images import EpisodeImages
from recap_learner.data.collect import _takes_turns
from recap_learner.data.episodes import (
    ConversionError,
    convert_bags,
    load_episode,
    read_attempts,
)
from recap_station import topics
from recap_station.bag_reader import BagReader
from recap_station.cdr import compressed_image, joint_state, serialize, typestore
from recap_station.contract import ContractError
from recap_station.streams import FLOAT_ARRAY_TYPE, RAW_IMAGE_TYPE


@pytest.mark.parametrize("compression", CompressionType)
def test_a_single_file_of_another_recorder(tmp_path: Path, compression: CompressionType) -> None:
    file = write(tmp_path / "log 日.mcap", whole(), compression)
    files, problems = convert_bags([file], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    assert problems == []
    episode = load_episode(files[0])
    np.testing.assert_array_equal(episode.state, expected())
    assert episode.info.outcome == "unknown" and episode.info.id == "log 日" and episode.info.damage == ""
    shown = EpisodeImages(episode, tmp_path / "store")
    assert [round(shown.read("eye", tick).mean()) for tick in (0, 4, 7, 59)] == [0, 0, 10, 110]


def test_without_a_contract_the_station_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "log.mcap", whole())
    _, problems = convert_bags([file], tmp_path / "store")
    assert "--station" in problems[0]


def test_states_in_any_order_over_several_topics(tmp_path: Path) -> None:
    rows, kind = [], topics.JOINT_STATE_TYPE
    for tick in range(TICKS):
        a, b, c = values(tick)
        rows += [
            ("/left", kind, at(tick), joint_state(at(tick), ["c", "other", "a"], [c, 9.0, a])),
            ("/right", kind, at(tick), joint_state(at(tick), ["b"], [b])),
            command(tick),
        ]
    split = [{"topic": "/left", "joints": ["a", "c"]}, {"topic": "/right"}]
    np.testing.assert_array_equal(read(rows, tmp_path, state=split).state, expected())
    with pytest.raises(ConversionError, match="no state of joint 'b'"):
        read(rows, tmp_path, state=split[:1])
    with pytest.raises(ContractError, match="unknown joint 'other'"):
        read(rows, tmp_path, state=[{"topic": "/left"}, {"topic": "/right"}])


def test_drivers_of_two_arms_share_a_topic(tmp_path: Path) -> None:
    rows = []
    for tick in range(TICKS):
        kind, now = topics.JOINT_STATE_TYPE, at(tick)
        rows.append(("/joint_states", kind, now, joint_state(now, ["a", "b"], values(tick)[:2])))
        rows.append(("/joint_states", kind, now, joint_state(now, ["c"], values(tick)[2:])))
        rows.append(command(tick))
    episode = read(rows, tmp_path)
    np.testing.assert_array_equal(episode.state, expected())
    assert not episode.gap.any()


def test_commands_as_an_array_are_placed_by_receipt(tmp_path: Path) -> None:
    rows = []
    for tick in range(TICKS):
        a, b, c = values(tick)
        rows += [state(tick), array(tick, [c, a, b])]
    episode = read(rows, tmp_path, command={"topic": "go", "joints": ["c", "a", "b"]})
    np.testing.assert_array_equal(episode.command, expected())
    with pytest.raises(ContractError, match="3 numbers, wanted 2"):
        read(rows, tmp_path, command={"topic": "go", "joints": ["c", "a"]})


def test_commands_as_trajectories_hold_each_point_until_it_is_to_be_reached(tmp_path: Path) -> None:
    sent = {tick: [trajectory(tick)] for tick in range(0, TICKS, 6)}
    rows = [row for tick in range(TICKS) for row in (state(tick), *sent.get(tick, []))]
    episode = read(rows, tmp_path, command={"topic": "go"})
    # Points of 3 ticks each, and after 6 ticks the next trajectory has begun: two of four come to pass.
    wanted = [6 * (tick // 6) + (tick % 6) // 3 / 10 for tick in range(len(episode))]
    np.testing.assert_allclose(episode.command[:, 0], wanted, rtol=1e-6)
    assert len(episode) == 58  # the last one's second point too, but not those after the last state
    assert "2 × a trajectory's point after the last state on go" in episode.info.damage


def test_a_single_trajectory_is_followed_to_its_end(tmp_path: Path) -> None:
    episode = read([trajectory(0), *map(state, range(TICKS))], tmp_path, command={"topic": "go"})
    np.testing.assert_allclose(episode.command[:, 0], np.arange(10) // 3 / 10, rtol=1e-6)
    assert episode.info.damage == "no image of eye (eye/image_raw/compressed)"


def test_one_array_of_another_length_is_left_out(tmp_path: Path) -> None:
    rows = []
    for tick in range(TICKS):
        rows += [state(tick), array(tick, values(tick)[: 2 if tick == 30 else 3])]
    episode = read(rows, tmp_path, command={"topic": "go", "joints": list(JOINTS)})
    wanted = expected()
    wanted[30] = wanted[29]
    np.testing.assert_array_equal(episode.command, wanted)
    assert "1 × another number of joints on go (first 2, wanted 3)" in episode.info.damage


@pytest.mark.parametrize(("encoding", "channels"), [("rgb8", 3), ("bgr8", 3), ("mono8", 1)])
def test_raw_images_are_read(tmp_path: Path, encoding: str, channels: int) -> None:
    pixels = np.arange(6 * 8 * channels, dtype=np.uint8).reshape(6, 8, channels)
    padded = np.zeros((6, 32), np.uint8)
    padded[:, : 8 * channels] = pixels.reshape(6, -1)
    fields = {"height": 6, "width": 8, "encoding": encoding, "step": 32, "data": padded.reshape(-1)}

    def raw(tick: int) -> list[Row]:
        cdr = serialize(RAW_IMAGE_TYPE, stamp_ns=at(tick), **fields)
        return [("/cam", RAW_IMAGE_TYPE, at(tick), cdr)]

    episode = read(whole(raw), tmp_path, images={"eye": {"topic": "cam", "type": RAW_IMAGE_TYPE}})
    grey = pixels.repeat(3, axis=2)[..., :3]
    wanted = {"rgb8": pixels, "bgr8": pixels[..., ::-1], "mono8": grey}
    np.testing.assert_array_equal(EpisodeImages(episode, tmp_path).read("eye", 9), wanted[encoding])
    np.testing.assert_array_equal(episode.image["eye"], np.arange(TICKS))


def test_depth_images_are_skipped_with_a_word(tmp_path: Path) -> None:
    fields = {"height": 6, "width": 8, "encoding": "16UC1", "step": 16, "data": bytes(96)}
    fields["data"] = np.zeros(96, np.uint8)
    depth = serialize(RAW_IMAGE_TYPE, stamp_ns=START, **fields)
    rows = whole(lambda tick: [("/cam", RAW_IMAGE_TYPE, at(tick), depth)])
    episode = read(rows, tmp_path, images={"eye": {"topic": "cam"}})
    assert (episode.image["eye"] == -1).all() and np.isinf(episode.image_age["eye"]).all()
    assert "60 × an image encoded as '16UC1', which is skipped" in episode.info.damage


def test_compressed_depth_is_no_picture(tmp_path: Path) -> None:
    png = cv2.imencode(".png", np.full((6, 8), 1000, np.uint16))[1].reshape(-1)
    fields = {"format": "16UC1; png compressed", "data": png}
    depth = serialize(topics.IMAGE_TYPE, stamp_ns=at(2), **fields)
    spoil = [("/eye/image_raw/compressed", topics.IMAGE_TYPE, at(2), depth)]
    episode = read(whole(lambda tick: spoil if tick == 2 else []), tmp_path)
    np.testing.assert_array_equal(episode.image["eye"], np.arange(TICKS) // 5)
    wanted = "1 × an image encoded as '16UC1', which is skipped on eye/image_raw/compressed"
    assert episode.info.damage == wanted


def test_two_cameras_on_one_topic_are_told(tmp_path: Path) -> None:
    def other(tick: int) -> list[Row]:
        topic, kind, now, _ = picture(tick)
        jpeg = cv2.imencode(".jpg", np.full((12, 16, 3), 250, np.uint8))[1].tobytes()
        return [(topic, kind, now, compressed_image(now, jpeg, "other"))] if tick % 7 == 3 else []

    episode = read(whole(other), tmp_path)
    told = "images of 2 frame_ids on eye/image_raw/compressed, wanted one: '' 12 ×, 'other' 9 ×"
    assert episode.info.damage == told


def test_images_of_no_size_and_cut_jpegs_leave_the_one_before(tmp_path: Path) -> None:
    bad = (b"", picture(0)[3][-300:-100], b"\xff\xd8\xff\xe0 cut", b"GIF89a")

    def spoil(tick: int) -> list[Row]:
        cdr = compressed_image(at(tick), bad[tick % 4])
        return [("/eye/image_raw/compressed", topics.IMAGE_TYPE, at(tick), cdr)] if tick % 5 == 2 else []

    episode = read(whole(spoil), tmp_path)
    np.testing.assert_array_equal(episode.image["eye"], np.arange(TICKS) // 5)
    np.testing.assert_allclose(episode.image_age["eye"], np.arange(TICKS) % 5 * 0.02, atol=1e-6)
    assert "ends too early" in episode.info.damage and "without bytes" in episode.info.damage
    png = cv2.imencode(".png", np.full((6, 8, 3), 9, np.uint8))[1].tobytes()
    shown = [("/eye/image_raw/compressed", topics.IMAGE_TYPE, at(0), compressed_image(at(0), png))]
    episode = read([*shown, *(row for tick in range(9) for row in (state(tick), command(tick)))], tmp_path)
    assert EpisodeImages(episode, tmp_path).read("eye", 3).mean() == 9


def test_a_camera_that_is_absent_is_told(tmp_path: Path) -> None:
    rows = [row for row in whole() if row[1] != topics.IMAGE_TYPE]
    episode = read(rows, tmp_path)
    assert (episode.image["eye"] == -1).all() and "no image of eye" in episode.info.damage


def test_attempts_in_one_bag_are_cut_by_their_events(tmp_path: Path) -> None:
    events = [
        event(2, "zero", False, 2),  # latched, of before the bag
        event(5, "one", True), event(5, "one", True), event(19, "one", False, 1, "in"),
        event(25, "two", True), event(30, "three", True), event(44, "three", False, 1, "?"),
        event(50, "three", False, 2, "peg dropped"),
    ]  # fmt: skip
    file = write(tmp_path / "long.mcap", sorted([*whole(), *events], key=lambda row: row[2]))
    files, problems = convert_bags([file], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    assert problems == []
    episodes = [load_episode(f) for f in files]
    assert [e.info.id for e in episodes] == [f"long_attempt{k}" for k in (1, 2, 3)]
    assert [(e.info.outcome, e.info.reason) for e in episodes] == [
        ("success", "in"), ("unknown", ""), ("failure", "peg dropped"),
    ]  # fmt: skip
    spans = [(e.time_ns[0], e.time_ns[-1]) for e in episodes]
    assert spans == [(at(5), at(19)), (at(25), at(30)), (at(30), at(44))]
    again, _ = convert_bags([file], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    assert again == files
    known, problems = convert_bags([file], tmp_path / "store", cell=cell(tmp_path))
    assert known == [files[0], files[2]] and "no outcome" in problems[0]


def test_alignment_of_a_stream_is_as_declared(tmp_path: Path) -> None:
    rows = [row for row in whole() if row[1] != topics.JOINT_STATE_TYPE or row[0] != "/joint_command"]
    rows += [command(0), command(1), *(command(tick) for tick in range(20, TICKS))]
    rows.sort(key=lambda row: row[2])
    for align, last in (("hold", 19), ("asof(0.1)", 6), ("drop", 1)):
        episode = read(rows, tmp_path, command={"topic": "joint_command", "align": align})
        held = np.isfinite(episode.command[:, 0])
        assert held[: last + 1].all() and held[20:].all() and not held[last + 1 : 20].any(), align
        assert episode.gap[7:20].all() and not episode.gap[20:].any()
    with pytest.raises(ContractError, match="wanted hold, asof"):
        cell(tmp_path, command={"topic": "joint_command", "align": "nearest"})
    with pytest.raises(ContractError, match="unknown stream 'comand'"):
        cell(tmp_path, comand={"topic": "joint_command"})
    with pytest.raises(ContractError, match=r"is a sensor_msgs/msg/JointState in the bag"):
        read(rows, tmp_path, command={"topic": "joint_command", "type": FLOAT_ARRAY_TYPE})


def test_a_foreign_topic_that_is_named_as_one_of_ours_is_passed_over(tmp_path: Path) -> None:
    said, number = "std_msgs/msg/String", "std_msgs/msg/Int32"

    def foreign(tick: int) -> list[Row]:
        return [
            ("/episode", said, at(tick), serialize(said, data="pick")),
            ("/control_mode", number, at(tick), serialize(number, data=3)),
        ]

    episode = read(whole(foreign), tmp_path)
    np.testing.assert_array_equal(episode.state, expected())
    assert (episode.mode == -1).all()
    for kind, wanted, topic in (
        (number, topics.MODE_TYPE, "control_mode"),
        (said, topics.EPISODE_TYPE, "episode"),
    ):
        told = f"60 × a {kind} (wanted {wanted}), which is passed over, on {topic}"
        assert told in episode.info.damage
    rows = [("/mine" if row[0] == "/episode" else row[0], *row[1:]) for row in whole(foreign)]
    with pytest.raises(ContractError, match="topic mine is a std_msgs/msg/String, wanted recap_interfaces"):
        read(rows, tmp_path, episode={"topic": "mine"})


@pytest.mark.parametrize(
    "speaks",
    [lambda tick: True, lambda tick: tick % 4 == 0, lambda tick: tick % 12 < 5],
    ids=["as often", "less often", "in bursts"],
)
def test_two_publishers_on_one_topic_are_told(tmp_path: Path, speaks: Callable[[int], bool]) -> None:
    def other(tick: int) -> list[Row]:
        now = at(tick + 0.5)
        said = (*command(tick)[:2], now, joint_state(now, JOINTS, [-1.0, -1.0, -1.0]))
        return [said] if speaks(tick) else []

    assert "two publishers take turns on joint_command" in read(whole(other), tmp_path).info.damage


def test_one_publisher_that_is_fast_noisy_or_errs_once_is_not_two() -> None:
    rng, time_s = np.random.default_rng(0), np.arange(1000)[:, None] * 0.02
    shaking = 0.5 * np.sin(2 * np.pi * 3.0 * time_s + np.arange(3))
    noisy = np.sin(time_s + np.arange(3)) + rng.normal(scale=0.05, size=(1000, 3))
    erring = np.sin(time_s + np.arange(3))
    erring[[100, 500]] += 1.0
    toggling = np.repeat(rng.random((40, 3)) < 0.5, 25, axis=0).astype(float)
    for numbers in (shaking, noisy, erring, toggling):
        assert not _takes_turns(numbers.astype(np.float32))


def test_no_message_at_all_is_one_line(tmp_path: Path) -> None:
    for rows in ([], [state(0)], [picture(0)]):
        with pytest.raises(ConversionError, match="wanted at least 2 of each"):
            read(rows, tmp_path)


def test_a_split_bag_is_one_and_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    rows = whole()
    for k in range(12):
        part = [row for row in rows if at(5 * k) <= row[2] < at(5 * k + 5)]
        write(tmp_path / "bag" / f"bag_{k}.mcap", part)
    [episode] = read_attempts(tmp_path / "bag", tmp_path, cell(tmp_path))
    np.testing.assert_array_equal(episode.state, expected())
    assert episode.info.files == tuple(f"bag_{k}.mcap" for k in range(12)) and episode.info.damage == ""
    assert round(EpisodeImages(episode, tmp_path).read("eye", 57).mean()) == 110
    for k in (4, 5):
        (tmp_path / "bag" / f"bag_{k}.mcap").unlink()
    information = {"relative_file_paths": [f"bag_{k}.mcap" for k in range(12)], "version": 9}
    described = tmp_path / "bag" / "metadata.yaml"
    described.write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    [episode] = read_attempts(tmp_path / "bag", tmp_path, cell(tmp_path))
    assert episode.info.damage == "bag_4.mcap is missing; bag_5.mcap is missing"
    np.testing.assert_array_equal(np.flatnonzero(episode.gap), np.arange(25, 30))


@pytest.mark.parametrize("version", [8, 9])
@pytest.mark.parametrize("mode", ["NONE", "FILE", "MESSAGE"])
@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
def test_bags_written_by_rosbags(tmp_path: Path, version: int, mode: str, storage: str) -> None:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
    from rosbags.rosbag2 import Writer as Rosbag2

    plugin = StoragePlugin[storage]
    writer = Rosbag2(tmp_path / "bag", version=version, storage_plugin=plugin)  # type: ignore[arg-type]
    if mode != "NONE":
        writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, kind, received, cdr in whole():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=typestore())
            writer.write(connections[topic], received, cdr)
    for described in (True, False):
        if not described:
            (tmp_path / "bag" / "metadata.yaml").unlink()
        [episode] = read_attempts(tmp_path / "bag", tmp_path, cell(tmp_path))
        np.testing.assert_array_equal(episode.state, expected())
        assert episode.info.damage == ""
        assert round(EpisodeImages(episode, tmp_path).read("eye", 57).mean()) == 110


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6, 7, 10])
def test_metadata_of_other_versions(tmp_path: Path, version: int) -> None:
    """Version 2 lists the folder too; before 6 there is no custom data; 10 is of a recorder to come."""
    write(tmp_path / "bag" / "bag_0.mcap", whole())
    listed = ["bag/bag_0.mcap"] if version == 2 else ["bag_0.mcap"]
    information = {"version": version, "storage_identifier": "mcap", "relative_file_paths": listed}
    if version >= 6:
        information["custom_data"] = {"recap.outcome": "failure"}
    described = tmp_path / "bag" / "metadata.yaml"
    described.write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    [episode] = read_attempts(tmp_path / "bag", tmp_path, cell(tmp_path))
    assert episode.info.damage == "" and len(episode) == TICKS
    assert episode.info.outcome == ("failure" if version >= 6 else "unknown")


@pytest.mark.parametrize("split", [1, 3])
def test_databases_of_humble_are_read(tmp_path: Path, split: int) -> None:
    """Humble's files have two tables and its metadata is of version 5, without the types' definitions."""
    rows = whole()
    names = [f"bag_{part}.db3" for part in range(split)]
    (tmp_path / "bag").mkdir()
    for part, name in enumerate(names):
        with closing(sqlite3.connect(tmp_path / "bag" / name)) as database:
            database.execute(
                "CREATE TABLE topics(id INTEGER PRIMARY KEY,name TEXT NOT NULL,type TEXT NOT NULL,"
                "serialization_format TEXT NOT NULL,offered_qos_profiles TEXT NOT NULL)"
            )
            database.execute(
                "CREATE TABLE messages(id INTEGER PRIMARY KEY,topic_id INTEGER NOT NULL,"
                "timestamp INTEGER NOT NULL, data BLOB NOT NULL)"
            )
            database.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
            numbers: dict[str, int] = {}
            for topic, kind, received, cdr in rows[
                part * len(rows) // split : (part + 1) * len(rows) // split
            ]:
                if topic not in numbers:
                    numbers[topic] = len(numbers) + 1
                    said = (numbers[topic], topic, kind, "cdr", "- history: 3\n  depth: 0")
                    database.execute("INSERT INTO topics VALUES(?, ?, ?, ?, ?)", said)
                message = (numbers[topic], received, cdr)
                database.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)", message)
            database.commit()
    information = {
        "version": 5,
        "storage_identifier": "sqlite3",
        "duration": {"nanoseconds": TICKS * STEP},
        "starting_time": {"nanoseconds_since_epoch": START},
        "message_count": len(rows),
        "topics_with_message_count": [],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": names,
        "files": [{"path": name, "message_count": len(rows) // split} for name in names],
    }
    described = tmp_path / "bag" / "metadata.yaml"
    described.write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    for given in (True, False):
        if not given:
            described.unlink()
        [episode] = read_attempts(tmp_path / "bag", tmp_path, cell(tmp_path))
        np.testing.assert_array_equal(episode.state, expected())
        assert episode.info.damage == "" and episode.info.unchecked
        assert round(EpisodeImages(episode, tmp_path).read("eye", 57).mean()) == 110


def test_two_workers_make_what_one_makes(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write(tmp_path / "bags" / f"{name}.mcap", whole())
    bags, three = [tmp_path / "bags"], cell(tmp_path)
    alone, _ = convert_bags(bags, tmp_path / "alone", cell=three, unknown=True)
    pair, _ = convert_bags(bags, tmp_path / "pair", cell=three, workers=2, unknown=True)
    assert [file.name for file in alone] == [file.name for file in pair] and len(alone) == 3
    for one, other in zip(alone, pair, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_messages_are_found_again_by_their_places(tmp_path: Path) -> None:
    reader = BagReader(write(tmp_path / "bag.mcap", whole(), CompressionType.LZ4))
    kept = [(place, bytes(data)) for _, _, data, place in reader.scan()]
    for place, data in reversed(kept):
        assert reader.read(place) == data


def test_the_same_bag_with_another_station_is_converted_anew(tmp_path: Path) -> None:
    file = write(tmp_path / "log.mcap", whole())
    [made], _ = convert_bags([file], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    first = made.stat().st_mtime_ns
    convert_bags([file], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    assert made.stat().st_mtime_ns == first
    other = cell(tmp_path, command={"topic": "joint_command", "align": "drop"})
    convert_bags([file], tmp_path / "store", cell=other, unknown=True)
    assert made.stat().st_mtime_ns != first
    assert json.loads(json.dumps(load_episode(made).info.streams.to_dict()))["command"][0]["align"] == "drop"  # type: ignore[union-attr]
