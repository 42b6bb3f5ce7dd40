"""The recorder's core: one bag per attempt that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rosbags.highlevel import AnyReader

from recap_station import topics
from recap_station.bags import BagReader, amend_metadata, joint_state
from recap_station.contract import ContractError, Station, load_station
from recap_teleop.recorder import EpisodeRecorder, Numbers, Tail

STATION = load_station("aloha")


def test_bag_carries_the_contract_and_the_outcome(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION)
    path = recorder.start({"recap.episode": "20261122T203000_0001", "recap.seed": "3"})
    assert BagReader(path).metadata["recap.outcome"] == "unknown"  # as after a crash
    recorder.write(topics.JOINT_COMMAND, 5, joint_state(5, STATION.joint_names, STATION.home, "hold"))
    assert recorder.stop("failure", "time limit", {"recap.dropped": "{}"}) == path
    bag = BagReader(path)
    assert bag.closed_cleanly and path.name == "20261122T203000_0001"
    assert bag.metadata["recap.outcome"] == "failure" and bag.metadata["recap.reason"] == "time limit"
    assert bag.metadata["recap.seed"] == "3" and bag.metadata["recap.dropped"] == "{}"
    assert Station.from_dict(json.loads(bag.metadata["recap.station"])).joint_names == STATION.joint_names
    assert set(bag.topics) == set(topics.recorded_topics(STATION))


def test_outcome_put_right_later_wins(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION)
    recorder.start({"recap.episode": "one"})
    path = recorder.stop("success", "")
    amend_metadata(path, {"recap.outcome": "discarded"})
    bag = BagReader(path)
    assert bag.metadata["recap.outcome"] == "discarded" and bag.metadata["recap.episode"] == "one"


def command(tick: int) -> bytes:
    return joint_state(tick * 20_000_000, STATION.joint_names, STATION.home + tick, "hold")


def ticks_in(path: Path) -> list[int]:
    return [time_ns // 20_000_000 for _, time_ns, _ in BagReader(path).messages({topics.JOINT_COMMAND})]


def test_an_episode_goes_on_in_the_bag_that_its_killed_recorder_left(tmp_path: Path) -> None:
    killed = EpisodeRecorder(tmp_path, STATION)
    path = killed.start({"recap.episode": "one", "recap.seed": "3"})
    for tick in range(5):
        killed.write(topics.JOINT_COMMAND, tick * 20_000_000, command(tick))
    killed.note({"recap.dropped": '{"joint_command": 2}'})  # on disk; it never comes to close the bag
    with open(path / "one_0.mcap", "ab") as file:
        file.write(b"\x06\xff\xff\x00\x00\x00\x00\x00\x00 cut off")  # a chunk that it did not finish

    successor = EpisodeRecorder(tmp_path, STATION)
    assert successor.start({"recap.episode": "one"}) == path
    for tick in range(100, 103):
        successor.write(topics.JOINT_COMMAND, tick * 20_000_000, command(tick))
    successor.stop("success", "peg is in")

    bag = BagReader(path)
    assert [file.name for file in bag.files] == ["one_0.mcap", "one_1.mcap"]
    assert ticks_in(path) == [0, 1, 2, 3, 4, 100, 101, 102]
    assert bag.metadata["recap.outcome"] == "success" and bag.metadata["recap.resumed"] == "1"
    assert bag.metadata["recap.seed"] == "3" and bag.metadata["recap.dropped"] == '{"joint_command": 2}'
    assert not list(path.glob(".*reserve"))
    described = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert described["message_count"] == 8 and [f["message_count"] for f in described["files"]] == [5, 3]


def test_a_bag_that_was_closed_without_an_outcome_is_gone_on_with_too(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION)
    first = recorder.start({"recap.episode": "one"})
    recorder.write(topics.JOINT_COMMAND, 0, command(0))
    recorder.stop("unknown", "recorder was stopped")
    assert recorder.start({"recap.episode": "one"}) == first
    recorder.write(topics.JOINT_COMMAND, 9 * 20_000_000, command(9))
    assert not (first / "metadata.yaml").exists()  # killed now, it would hide the second file
    assert ticks_in(first) == [0]
    recorder.stop("failure", "")
    assert ticks_in(first) == [0, 9] and BagReader(first).metadata["recap.outcome"] == "failure"


def test_a_bag_with_an_outcome_or_of_another_episode_is_not_touched(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION)
    recorder.start({"recap.episode": "one"})
    first = recorder.stop("failure", "")
    (tmp_path / "two").mkdir()
    second = recorder.start({"recap.episode": "one"})
    recorder.stop("success", "")
    third = recorder.start({"recap.episode": "two"})
    recorder.stop("success", "")
    assert [path.name for path in (first, second, third)] == ["one", "one_part2", "two_part2"]
    assert BagReader(first).metadata["recap.outcome"] == "failure"


@pytest.mark.parametrize("options", [{"split_s": 1.0}, {"split_mb": 0.05}])
def test_a_long_attempt_is_split_into_files_of_one_bag(tmp_path: Path, options: dict[str, float]) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION, "robot1", **options)
    recorder.start({"recap.episode": "one"})
    for tick in range(600):
        recorder.write(topics.JOINT_COMMAND, tick * 20_000_000, command(tick))
    path = recorder.stop("success", "")
    bag = BagReader(path)
    assert bag.closed_cleanly and len(bag.files) >= 4
    if "split_s" in options:
        assert [file.name for file in bag.files] == [f"one_{number}.mcap" for number in range(12)]
    assert ticks_in(path) == list(range(600))
    with AnyReader([path]) as reader:  # somebody else's reader, by metadata.yaml
        assert reader.message_count == 600 and reader.duration == 599 * 20_000_000 + 1
        stamps = [time_ns for _, time_ns, _ in reader.messages()]
    assert stamps == [tick * 20_000_000 for tick in range(600)]

    (path / "metadata.yaml").unlink()  # as if killed: in the files' order, not the alphabet's
    assert ticks_in(path) == list(range(600))
    amend_metadata(path, {"recap.outcome": "failure"})
    described = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert described["relative_file_paths"] == [file.name for file in bag.files]
    assert described["message_count"] == 600 and BagReader(path).metadata["recap.outcome"] == "failure"


def test_calls_out_of_order_are_refused(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION)
    with pytest.raises(ContractError, match="no bag is open"):
        recorder.write(topics.JOINT_COMMAND, 0, b"")
    recorder.start({"recap.episode": "one"})
    with pytest.raises(ContractError, match="still open"):
        recorder.start({"recap.episode": "two"})
    with pytest.raises(ContractError, match="wanted one of unknown, success"):
        recorder.stop("won", "")
    recorder.stop("success", "")


def missing(numbers: list[int]) -> int:
    counted = Numbers()
    return sum(counted.missing_before(number) for number in numbers)


def test_what_never_came_is_counted_by_the_publishers_numbers() -> None:
    assert missing([7, 8, 9]) == 0  # heard from the middle on
    assert missing([7, 8, 12, 13, 15]) == 4
    assert missing([100, 101, 1, 2, 3]) == 0  # the publisher was killed, its successor begins at 1
    assert missing([100, 101, 1, 2, 5, 6]) == 2
    assert missing([100, 101, 4, 5, 6]) == 3  # its first words were said before it was found
    assert missing([100, 1, 101, 2, 102, 3, 106, 4]) == 3  # two publishers at a time
    assert missing([]) == 0


def test_publishers_that_come_and_go_are_not_kept_for_ever() -> None:
    counted = Numbers()
    assert not any(counted.missing_before(1 + n % 3) for n in range(300))
    assert len(counted._heads) <= Numbers.KEPT


def test_a_bag_stays_open_while_messages_from_before_its_end_come_in() -> None:
    tail = Tail(ended_ns=1000, now_s=5.0)
    for late in range(30):
        tail.heard(sent_ns=900 + late)
        assert not tail.is_in(now_s=5.0 + 0.1 * late)
    for after in range(Tail.QUIET - 1):
        tail.heard(sent_ns=1001 + after)
        closes = tail.is_in(now_s=8.1)
    assert closes


def test_a_bag_does_not_stay_open_for_ever_for_a_sender_whose_clock_is_behind() -> None:
    tail = Tail(ended_ns=1000, now_s=5.0)
    now, asked = 5.0, 0
    while not tail.is_in(now):
        tail.heard(sent_ns=0)
        now += 0.1
        asked += 1
    assert Tail.PATIENCE_S <= now - 5.0 < Tail.PATIENCE_S + 0.2 and asked > Tail.QUIET
