"""Episode control: one attempt at a time, ended with an outcome by truth, time or a person."""

from __future__ import annotations

import pytest

from recap_station.cdr import typestore
from recap_station.contract import load_task
from recap_teleop.episode import RELABEL_S, EpisodeControl, EpisodeError, Outcome, Phase, episode_id

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


def test_failed_preparation_leaves_the_way_free() -> None:
    control = EpisodeControl(TASK)
    control.prepare("one", 0)
    assert control.abandon("no station").phase is Phase.IDLE
    assert control.prepare("two", 0).id == "two"
