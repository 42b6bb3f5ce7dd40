"""What people say is kept, added up and can be taken back."""

import json
import multiprocessing
from pathlib import Path

import pytest

from recap_learner.data.judgements import LOG, JudgementError, Rubric, read_judgements, read_log, say, undo

RUBRIC = {
    "criteria": {"inserted": "?", "released": "?", "smooth": "?", "fast": "?"},
    "required": ["inserted", "released"],
    "pass_share": 0.5,
}


@pytest.mark.parametrize(
    ("met", "outcome"),
    [
        ({}, None),
        ({"inserted": False}, "failure"),  # settled, whatever the others are
        ({"inserted": True, "released": True}, None),
        ({"inserted": True, "released": True, "smooth": True}, "success"),
        ({"inserted": True, "released": True, "smooth": False}, None),
        ({"inserted": True, "released": True, "smooth": False, "fast": False}, "failure"),
        ({"smooth": True, "fast": True}, None),
    ],
)
def test_answers_add_up_to_an_outcome_as_soon_as_they_settle_it(met, outcome):
    assert Rubric.of(RUBRIC).outcome(met) == outcome


def test_a_rubric_that_requires_what_it_does_not_ask_is_refused():
    with pytest.raises(JudgementError, match="insertd"):
        Rubric.of({**RUBRIC, "required": ["insertd"]})


def test_the_last_word_counts_and_undo_brings_back_the_one_before(tmp_path):
    say(tmp_path, "ana", "e", "outcome", outcome="success")
    say(tmp_path, "ben", "e", "outcome", outcome="failure", reason="peg dropped")
    say(tmp_path, "ben", "other", "outcome", outcome="discarded")
    found = read_judgements(tmp_path)["e"]
    assert (found.outcome, found.reason, found.by) == ("failure", "peg dropped", ("ana", "ben"))
    assert undo(tmp_path, "ana", "e")["outcome"] == "failure"
    assert read_judgements(tmp_path)["e"].outcome == "success"
    undo(tmp_path, "ana", "e")
    assert read_judgements(tmp_path)["e"].outcome is None
    with pytest.raises(JudgementError, match="nothing was said"):
        undo(tmp_path, "ana", "e")
    assert read_judgements(tmp_path)["other"].outcome == "discarded"
    assert len(read_log(tmp_path / LOG)) == 5  # nothing is taken out


def test_criteria_and_marks_are_replayed(tmp_path):
    for name in ("inserted", "released"):
        say(tmp_path, "ana", "e", "criterion", name=name, met=True)
    say(tmp_path, "ana", "e", "criterion", name="smooth", met=True)
    say(tmp_path, "ana", "e", "stage", stage="pass", tick=90)
    say(tmp_path, "ana", "e", "stage", stage="lift", tick=40)
    say(tmp_path, "ana", "e", "failed", tick=120)
    found = read_judgements(tmp_path)["e"]
    assert found.outcome is None and found.outcome_for(RUBRIC) == "success" and found.outcome_for({}) is None
    assert found.stages == ((40, "lift"), (90, "pass")) and found.failed_tick == 120
    assert all(entry["who"] == "ana" and entry["when"].endswith("Z") for entry in found.log)


@pytest.mark.parametrize(
    ("kind", "what", "said"),
    [
        ("outcome", {"outcome": "won"}, "'won'"),
        ("outcome", {}, "wanted str, found None"),
        ("criterion", {"name": "smooth", "met": 1}, "wanted bool, found 1"),
        ("stage", {"stage": "lift", "tick": -1}, "found -1"),
        ("stage", {"stage": "lift", "tick": True}, "wanted int, found True"),
        ("guess", {}, "'guess'"),
    ],
)
def test_what_cannot_be_said_is_refused_and_not_written(tmp_path, kind, what, said):
    with pytest.raises(JudgementError, match=said):
        say(tmp_path, "ana", "e", kind, **what)
    assert read_log(tmp_path / LOG) == []


def test_a_line_that_a_crash_cut_off_is_no_entry_and_harms_none_after_it(tmp_path):
    say(tmp_path, "ana", "e", "outcome", outcome="success")
    whole = (tmp_path / LOG).read_bytes()
    say(tmp_path, "ana", "e", "outcome", outcome="failure")
    torn = (tmp_path / LOG).read_bytes()
    for end in range(len(whole), len(torn)):
        (tmp_path / LOG).write_bytes(torn[:end])
        assert read_judgements(tmp_path)["e"].outcome == "success"
    say(tmp_path, "ben", "e", "outcome", outcome="discarded")
    assert [entry.get("outcome") for entry in read_log(tmp_path / LOG)] == ["success", "discarded"]


def test_a_damaged_line_is_named(tmp_path):
    for _ in range(3):
        say(tmp_path, "ana", "e", "outcome", outcome="success")
    lines = (tmp_path / LOG).read_text().splitlines(keepends=True)
    (tmp_path / LOG).write_text(lines[0] + '{"id": 2}\n' + lines[2])
    with pytest.raises(JudgementError, match=rf"{LOG}:2: not an entry"):
        read_judgements(tmp_path)


def _say_many(store: Path, who: str) -> None:
    for _ in range(20):
        say(store, who, "e", "outcome", outcome="success")


def test_two_people_at_a_time_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    people = [context.Process(target=_say_many, args=(tmp_path, who)) for who in ("ana", "ben")]
    for person in people:
        person.start()
    for person in people:
        person.join()
    entries = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [entry["id"] for entry in entries] == list(range(1, 41))
