"""A bag with a correction becomes an episode; bags that cannot be used say why."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from recap_learner.data import episodes
from recap_learner.data.episodes import ConversionError, convert_bags, load_episode, read_bag, read_images
from recap_learner.data.store import Store
from recap_station import topics
from recap_station.bags import BagWriter, amend_metadata
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START, STEP = 1_700_000_000_000_000_000, 20_000_000
TICKS, PRESS, RELEASE = 100, 40, 70


def picture(index: int) -> bytes:
    image = np.full((96, 96, 3), 2 * index, np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def make_bag(
    folder: Path, outcome: str = "success", source: str = "rollout", gap: bool = False, start: int = START
) -> Path:
    bag = folder / "attempt"
    names, dof = STATION.joint_names, STATION.dof
    with BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED) as writer:
        for tick in range(TICKS):
            now = start + tick * STEP
            if tick in (0, TICKS - 1):
                state = 1 if tick == 0 else 2
                writer.write(topics.EPISODE, now, serialize(topics.EPISODE_TYPE, stamp_ns=now, state=state))
            if not (gap and 20 <= tick < 35):
                # Another joint order than the contract's: names decide.
                writer.write(
                    topics.JOINT_STATES, now, joint_state(now, names[::-1], [tick / 100] * (dof - 1) + [0.5])
                )
            who = "teleop" if PRESS <= tick < RELEASE else "policy"
            command = [0.5 if who == "teleop" else 0.25] * dof
            writer.write(topics.JOINT_COMMAND, now, joint_state(now, names, command, who))
            writer.write(topics.POLICY_COMMAND, now, joint_state(now, names, [0.25] * dof))
            if who == "teleop":
                writer.write(topics.TELEOP_COMMAND, now, joint_state(now, names, [0.5] * dof))
            if tick % 5 == 0:
                for camera in STATION.camera_names:
                    image = compressed_image(now, picture(tick), camera)
                    writer.write(topics.image_topic(camera), now, image)
                truth = serialize(topics.TRUTH_TYPE, stamp_ns=now, stage="reach" if tick < 50 else "lift")
                writer.write(topics.SIM_TRUTH, now, truth)
        metadata = {
            "recap.episode": "attempt",
            "recap.task": json.dumps(TASK.to_dict()),
            "recap.station": json.dumps(STATION.to_dict()),
            "recap.source": source,
        }
        if outcome:
            metadata["recap.outcome"] = outcome
        writer.set_metadata(metadata)
    return bag


def test_every_tick_knows_its_state_command_and_who_commanded(tmp_path):
    episode = read_bag(make_bag(tmp_path), tmp_path)
    assert len(episode) == TICKS
    np.testing.assert_array_equal(np.diff(episode.time_ns), STEP)
    np.testing.assert_allclose(episode.state[:, 1], np.arange(TICKS) / 100, atol=1e-6)
    np.testing.assert_allclose(episode.state[:, 0], 0.5)
    expected = np.zeros(TICKS, bool)
    expected[PRESS:RELEASE] = True
    np.testing.assert_array_equal(episode.correction, expected)
    np.testing.assert_allclose(episode.command[:, 3], np.where(expected, 0.5, 0.25))
    assert not np.isnan(episode.policy_command).any()  # the policy's wish is kept while a person commands
    assert np.isnan(episode.teleop_command[:PRESS]).all()
    assert list(episode.stage[[0, 49, 50]]) == ["reach", "reach", "lift"]
    assert episode.info.success and not episode.gap.any()


def test_images_stay_in_the_bag_and_are_found_from_the_ticks(tmp_path):
    bag = make_bag(tmp_path)
    episode = read_bag(bag, tmp_path)
    camera = STATION.camera_names[1]
    index = episode.image[camera]
    np.testing.assert_array_equal(index, np.arange(TICKS) // 5)
    shown = [round(image.mean()) for image in read_images(bag, camera, index[[0, 50, 99]])]
    assert shown == [0, 100, 190]


def test_demonstrations_have_no_corrections(tmp_path):
    assert not read_bag(make_bag(tmp_path, source="demonstration"), tmp_path).correction.any()


def test_silence_of_the_robot_is_marked_as_a_gap(tmp_path):
    gap = read_bag(make_bag(tmp_path, gap=True), tmp_path).gap
    assert not gap[:24].any() and gap[26:35].all() and not gap[35:].any()


def write_attempt(writer: BagWriter, ticks: range, stages: dict[int, str]) -> None:
    """Both streams of a person's correction, and the stages that a person marked."""
    names, stage = STATION.joint_names, ""
    for tick in ticks:
        now = START + tick * STEP
        if tick in (0, 99) or tick in stages:
            stage = stages.get(tick, stage)
            state = 2 if tick == 99 else 1
            message = serialize(topics.EPISODE_TYPE, stamp_ns=now, id="one", state=state, stage=stage)
            writer.write(topics.EPISODE, now, message)
        writer.write(topics.JOINT_STATES, now, joint_state(now, names, STATION.home))
        if not 40 <= tick < 60:
            who = "teleop" if tick < 60 else "policy"
            writer.write(topics.JOINT_COMMAND, now, joint_state(now, names, STATION.home, who))


ABOUT = {
    "recap.episode": "one", "recap.task": json.dumps(TASK.to_dict()), "recap.outcome": "success",
    "recap.station": json.dumps(STATION.to_dict()),
}  # fmt: skip


def test_an_arbiter_that_dies_in_mid_press_leaves_no_correction_open(tmp_path):
    with BagWriter(tmp_path / "one", topics.recorded_topics(STATION)) as writer:
        writer.set_metadata(ABOUT)
        write_attempt(writer, range(100), {})
    episode = read_bag(tmp_path / "one", tmp_path)
    assert episode.correction[:45].all() and not episode.correction[45:].any()  # STALE_S after its last word
    assert set(episode.source[46:60]) == {"hold"} and episode.gap[46:60].all()


def test_an_attempt_of_two_recorders_is_one_episode_and_stages_are_a_persons_marks(tmp_path):
    writer = BagWriter(tmp_path / "one", topics.recorded_topics(STATION))
    writer.set_metadata({**ABOUT, "recap.outcome": "unknown"})
    write_attempt(writer, range(70), {0: "", 30: "lift"})
    writer.flush()  # killed here
    with BagWriter(tmp_path / "one", topics.recorded_topics(STATION), resume=True) as successor:
        write_attempt(successor, range(80, 100), {80: "pass"})
        successor.set_metadata({"recap.outcome": "success"})
    files, problems = convert_bags([tmp_path / "one"], tmp_path / "store")
    assert not problems and len(files) == 1
    episode = load_episode(files[0])
    assert len(episode) == 100 and episode.info.success
    assert list(episode.stage[[29, 30, 79, 80, 99]]) == ["", "lift", "lift", "pass", "pass"]
    assert episode.gap[76:80].all() and not episode.gap[61:74].any()


def test_an_episode_comes_back_from_disk(tmp_path):
    files, problems = convert_bags([make_bag(tmp_path / "bags")], tmp_path / "store")
    assert not problems
    made, back = read_bag(tmp_path / "bags" / "attempt", tmp_path / "store"), load_episode(files[0])
    assert back.info == made.info
    for name in ("time_ns", "state", "command", "teleop_command", "correction", "stage", "gap"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name), err_msg=name)
    assert back.image.keys() == made.image.keys()


def test_a_bag_without_outcome_is_refused_and_the_others_go_on(tmp_path):
    make_bag(tmp_path / "a", outcome="")
    make_bag(tmp_path / "b")
    files, problems = convert_bags([tmp_path / "a", tmp_path / "b"], tmp_path / "store")
    assert len(files) == 1 and len(problems) == 1
    assert "no outcome" in problems[0] and "./recap label" in problems[0]


def test_a_damaged_bag_costs_no_other(tmp_path):
    damaged = make_bag(tmp_path / "bags")
    file = damaged / "attempt_0.mcap"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    unknown = tmp_path / "bags" / "unknown joint"
    with BagWriter(unknown, topics.recorded_topics(STATION)) as writer:
        writer.write(topics.JOINT_STATES, START, joint_state(START, ["left_wiast"], [0.0]))
        contract = {"recap.task": json.dumps(TASK.to_dict()), "recap.station": json.dumps(STATION.to_dict())}
        writer.set_metadata({**contract, "recap.outcome": "success"})
    (tmp_path / "bags" / "wrong").mkdir()
    (tmp_path / "bags" / "wrong" / "wrong_0.mcap").write_bytes(b"no MCAP")
    make_bag(tmp_path / "good")
    files, problems = convert_bags([tmp_path / "bags", tmp_path / "good"], tmp_path / "store")
    assert len(files) == 1 and len(problems) == 3
    assert "checksum" in problems[0] and "not an MCAP file" in problems[2]
    assert "'left_wiast', did you mean 'left_waist'" in problems[1]
    assert not any("\n" in problem for problem in problems)


def test_a_new_outcome_is_converted_anew_and_nothing_else(tmp_path):
    bag, store = make_bag(tmp_path / "bags"), tmp_path / "store"
    [file], _ = convert_bags([bag], store)
    first = file.stat().st_mtime_ns
    convert_bags([bag], store)
    assert file.stat().st_mtime_ns == first
    amend_metadata(bag, {"recap.outcome": "failure"})
    convert_bags([bag], store)
    assert load_episode(file).info.outcome == "failure"


def test_two_bags_of_one_name_are_not_taken_for_one(tmp_path):
    make_bag(tmp_path / "monday")
    make_bag(tmp_path / "tuesday", outcome="failure")
    files, problems = convert_bags([tmp_path / "monday", tmp_path / "tuesday"], tmp_path / "store")
    assert len(files) == 1 and load_episode(files[0]).info.outcome == "success"
    assert len(problems) == 1 and "rename one of the bags" in problems[0]


def test_two_bags_of_one_name_are_not_taken_for_one_when_converted_at_the_same_time(tmp_path, monkeypatch):
    both_read, real = threading.Barrier(2), episodes.read_attempts

    def read_attempts(*given):
        found = real(*given)
        both_read.wait(30)
        return found

    monkeypatch.setattr(episodes, "read_attempts", read_attempts)
    bags = [make_bag(tmp_path / "monday"), make_bag(tmp_path / "tuesday", outcome="failure")]
    with ThreadPoolExecutor(2) as both:
        answers = list(both.map(lambda bag: convert_bags([bag], tmp_path / "store"), bags))
    [[file]], [[problem]] = [f for f, _ in answers if f], [p for _, p in answers if p]
    assert "rename one of the bags" in problem
    refused = next(bag for bag, (_, problems) in zip(bags, answers, strict=True) if problems)
    assert load_episode(file).info.bag_in(tmp_path / "store").resolve() != refused.resolve()


def test_labels_stay_with_the_ticks_that_they_were_made_for(tmp_path):
    bag, store = make_bag(tmp_path / "bags"), Store(tmp_path / "store")
    [file], _ = convert_bags([bag], store.folder)
    ticks = len(load_episode(file))
    store.save_labels("run", "attempt", {"value": np.zeros(ticks)}, {})
    amend_metadata(bag, {"recap.outcome": "failure"})
    convert_bags([bag], store.folder)
    assert store.load("attempt").info.outcome == "failure"
    assert store.load_labels("run", "attempt") is not None
    shutil.rmtree(bag)
    make_bag(tmp_path / "bags", start=START + STEP)  # another attempt, as long, under the same name
    convert_bags([bag], store.folder)
    assert len(store.load("attempt")) == ticks and store.load_labels("run", "attempt") is None


def test_a_folder_without_bags_is_an_error(tmp_path):
    with pytest.raises(ConversionError, match="holds no bag"):
        convert_bags([tmp_path], tmp_path / "store")
