"""The recorder's core: one bag per attempt that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recap_station import topics
from recap_station.bags import BagReader, amend_metadata, joint_state
from recap_station.contract import ContractError, Station, load_station
from recap_teleop.recorder import EpisodeRecorder

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


def test_second_bag_of_an_episode_does_not_touch_the_first(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, STATION)
    first = recorder.start({"recap.episode": "one"})
    recorder.stop("unknown", "killed")
    second = recorder.start({"recap.episode": "one"})
    recorder.stop("success", "")
    assert (first.name, second.name) == ("one", "one_part2")
    assert BagReader(first).metadata["recap.outcome"] == "unknown"


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
