"""Episode control: one attempt at a time, ended with an outcome by truth, time or a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from recap_station.cdr import typestore
from recap_station.contract import load_task
from recap_teleop.episode import RELABEL_S, EpisodeControl, EpisodeError, Outcome, Phase, episode_id
from recap_teleop.running import Running, boot_id, load_running, save_running, state_file

TASK = load_task("handover_insert")


def running() -> EpisodeControl:
    control = EpisodeControl(TASK)
    control.prepare("one", seed=7)
    control.run(100.0, seed=7)
    return control


def test_numbers_are_those_of_the_message() -> None:
    message = typestore().types["recap_interfaces/msg/Episode"]
    for value in (*Phase, *Outcome):
        assert getattr(message, value.name) == value


def test_ids_sort_by_start_and_differ_within_a_second() -> None:
    start = 1_795_379_523_000_000_000
    assert episode_id(start, 1) == "20261122T203203_0001"
    assert episode_id(start, 1) < episode_id(start, 2) < episode_id(start + 10**9, 1)


@pytest.mark.parametrize(("success", "outcome"), [(True, Outcome.SUCCESS), (False, Outcome.FAILURE)])
def test_truth_ends_the_attempt(success: bool, outcome: Outcome) -> None:
    control = running()
    assert not control.judge(101.0)
    assert control.judge(103.5, success=success, failure=not success)
    episode = control.episode
    assert (episode.phase, episode.outcome, episode.reason) == (Phase.ENDED, outcome, outcome.name.lower())
    assert episode.elapsed_s(500.0) == 3.5
    assert not control.judge(104.0, failure=True)  # it has ended; nothing changes it by itself


def test_time_limit_is_a_failure() -> None:
    control = running()
    assert not control.judge(100.0 + TASK.time_limit_s - 0.01)
    assert control.judge(100.0 + TASK.time_limit_s)
    assert control.episode.outcome is Outcome.FAILURE and control.episode.reason == "time limit"


def test_outcome_can_be_put_right_for_ten_seconds() -> None:
    control = running()
    control.end(105.0, Outcome.SUCCESS, "")
    assert control.end(105.0 + RELABEL_S, Outcome.FAILURE, "slipped out").outcome is Outcome.FAILURE
    assert control.episode.reason == "slipped out" and control.episode.elapsed_s(0.0) == 5.0
    with pytest.raises(EpisodeError, match="can be changed for 10 s"):
        control.end(105.1 + RELABEL_S, Outcome.SUCCESS, "")


def test_requests_that_do_not_fit_are_refused_in_words() -> None:
    control = EpisodeControl(TASK)
    with pytest.raises(EpisodeError, match="no episode is running"):
        control.end(0.0, Outcome.SUCCESS, "")
    control.prepare("one", 0)
    with pytest.raises(EpisodeError, match="one is being prepared"):
        control.prepare("two", 0)
    with pytest.raises(EpisodeError, match="one does not run yet"):
        control.end(0.0, Outcome.SUCCESS, "")
    control.run(0.0, 0)
    with pytest.raises(EpisodeError, match="one is running"):
        control.prepare("two", 0)
    with pytest.raises(EpisodeError, match="found 0"):
        control.end(1.0, Outcome.UNKNOWN, "")
    with pytest.raises(EpisodeError, match=r"wanted outcome 1 \(success\), .*found 7"):
        control.end(1.0, 7, "")
    assert control.episode.phase is Phase.RUNNING


def test_the_last_label_can_be_taken_back_for_ten_seconds() -> None:
    control = running()
    with pytest.raises(EpisodeError, match="no outcome to take back"):
        control.undo(101.0)
    control.end(105.0, Outcome.SUCCESS, "")
    control.end(106.0, Outcome.FAILURE, "slipped out")
    assert control.undo(107.0).outcome is Outcome.SUCCESS and control.episode.reason == "success"
    assert control.undo(108.0).outcome is Outcome.UNKNOWN
    assert control.episode.phase is Phase.ENDED and control.episode.reason == "label taken back"
    with pytest.raises(EpisodeError, match="no outcome to take back"):
        control.undo(109.0)
    assert control.end(110.0, Outcome.DISCARDED, "").outcome is Outcome.DISCARDED
    with pytest.raises(EpisodeError, match="can be changed for 10 s"):
        control.undo(105.1 + RELABEL_S)


def test_labels_of_the_episode_before_cannot_be_taken_back() -> None:
    control = running()
    control.end(105.0, Outcome.SUCCESS, "")
    control.prepare("two", 0)
    control.run(106.0, 0)
    with pytest.raises(EpisodeError, match="no outcome to take back"):
        control.undo(106.5)


def test_a_person_marks_the_stages_one_by_one_or_by_name() -> None:
    control = EpisodeControl(TASK)
    with pytest.raises(EpisodeError, match="no episode is running"):
        control.mark("lift")
    control = running()
    assert [control.mark().stage for _ in TASK.stages] == list(TASK.stages)
    with pytest.raises(EpisodeError, match="insert is the last of the stages"):
        control.mark()
    assert control.mark("reach").stage == "reach"  # it was dropped
    with pytest.raises(EpisodeError, match="no stage 'lifd', did you mean 'lift'"):
        control.mark("lifd")
    control.end(101.0, Outcome.FAILURE, "")
    control.prepare("two", 0)
    assert control.run(102.0, 0).stage == ""


def test_an_attempt_that_waits_for_a_person_says_so_and_can_be_discarded() -> None:
    control = EpisodeControl(TASK)
    episode = control.prepare("one", -1, "put the peg back")
    assert (episode.phase, episode.message) == (Phase.RESETTING, "put the peg back")
    assert not control.judge(1e9)  # time does not run yet
    with pytest.raises(EpisodeError, match="being prepared"):
        control.end(0.0, Outcome.SUCCESS, "")
    control.end(0.0, Outcome.DISCARDED, "")
    assert (control.episode.phase, control.episode.message) == (Phase.IDLE, "")
    control.prepare("two", -1, "put the peg back")
    assert control.run(5.0, -1).message == ""


def test_a_running_episode_is_taken_up_as_it_was_left(tmp_path: Path) -> None:
    control = running()
    control.mark("lift")
    file = state_file(str(tmp_path), "/robot1/")
    assert file.name.endswith("-robot1.json")
    save_running(file, Running(control.episode, TASK.name, "abc", "0102", boot_id()))
    before = load_running(file)
    assert before is not None and before.checkpoint == "abc" and before.arbiter == "0102"
    successor = EpisodeControl(TASK)
    successor.recover(before.episode)
    assert successor.episode == control.episode
    assert successor.judge(100.0 + TASK.time_limit_s)  # the same clock
    with pytest.raises(EpisodeError, match="cannot be taken up"):
        running().recover(before.episode)


def test_what_is_not_of_this_boot_or_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    file = state_file(str(tmp_path), "/")
    assert load_running(file) is None
    control = running()
    save_running(file, Running(control.episode, TASK.name, "", "", "another boot"))
    assert load_running(file) is None
    file.write_text("{")
    assert load_running(file) is None
    save_running(file, None)
    assert not file.exists()


def test_failed_preparation_leaves_the_way_free() -> None:
    control = EpisodeControl(TASK)
    control.prepare("one", 0)
    assert control.abandon("no station").phase is Phase.IDLE
    assert control.prepare("two", 0).id == "two"
