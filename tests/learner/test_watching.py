"""What a watching learner decides: which bags to take, when to train, what to offer, and where it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_learner.evaluation.evaluation import Attempt as Made
from recap_learner.evaluation.evaluation import Evaluation, compare
from recap_learner.lesson import FILE, Lesson, lesson, set_aside, trained
from recap_learner.offers import LOG, Offers, standing
from recap_learner.watching import Attempt, Seen, data_state, is_due, judge, to_convert

A, B, C = Path("bags/a"), Path("bags/b"), Path("bags/c")


def test_a_bag_is_taken_once_it_is_closed_and_again_when_it_changes() -> None:
    found = {B: Seen("1", True, 0.0), A: Seen("1", False, 2.0)}
    assert to_convert(found, {}) == {B: "1"}  # a is being written
    assert to_convert(found, {B: "1"}) == {}  # whether it could be used or not
    assert to_convert({**found, B: Seen("2", True, 0.0)}, {B: "1"}) == {B: "2"}
    assert to_convert({A: Seen("1", False, 31.0)}, {}) == {A: "1"}  # its recorder was killed


def attempts() -> list[Attempt]:
    return [
        Attempt("d1", "success", True, True, 30.0),
        Attempt("r1", "success", False, True, 20.0),
        Attempt("r2", "failure", False, False, 40.0),
        Attempt("r3", "discarded", False, False, 1000.0),
        Attempt("r4", "unknown", False, False, 10.0),
    ]


def test_what_is_counted_of_the_data() -> None:
    data = data_state(attempts(), {"d1", "r1"}, ["bags/x: broken"])
    assert (data.attempts, data.demonstrations, data.corrected) == (5, 1, 1)
    assert (data.successes, data.failures, data.discarded, data.unknown) == (2, 1, 1, 1)
    assert data.fresh == 1  # r2: without an outcome, or discarded, there is nothing to learn from
    assert data.hours == pytest.approx(100.0 / 3600)
    assert "1 without an outcome (./recap label gives one)" in data.text() and "bags/x: broken" in data.text()


@pytest.mark.parametrize(
    ("fresh", "train_after", "concurrent", "due"),
    [
        (9, 0, False, False),
        (9, 10, False, False),
        (10, 10, False, True),
        (1, 0, True, True),
        (0, 0, True, False),
    ],
)
def test_training_is_due_as_asked_for(fresh: int, train_after: int, concurrent: bool, due: bool) -> None:
    new = [Attempt(f"r{i}", "failure", False, False, 1.0) for i in range(fresh)]
    assert is_due(data_state(new, ()), train_after, concurrent) == due


def evaluation(name: str, outcomes: str, seconds: float = 10.0) -> Evaluation:
    made = [Made(seed, o == "1", "", seconds, 0, 0.0) for seed, o in enumerate(outcomes)]
    return Evaluation(name, tuple(made))


def test_a_checkpoint_is_good_unless_a_gate_fails_or_it_is_worse_beyond_the_interval() -> None:
    old, same, bad = "1" * 30 + "0" * 10, "1" * 28 + "0" * 12, "1" * 10 + "0" * 30
    assert judge([]).good and "not evaluated" in judge([]).text()
    assert judge([], compare(evaluation("old", old), evaluation("new", same))).good  # worse, within it
    verdict = judge([], compare(evaluation("old", old), evaluation("new", bad)))
    assert not verdict.good and "new succeeds less often than old: -50 points" in verdict.text()
    slow = judge([], compare(evaluation("old", old), evaluation("new", old, 20.0)))
    assert not slow.good and "new makes fewer successes an hour than old: 0.50 times" in slow.text()
    gate = judge(["the output is nearly constant: spread is 0.001, wanted at least 0.02"])
    assert gate.reasons == (
        "value function: the output is nearly constant: spread is 0.001, wanted at least 0.02",
    )
    swap = judge([], None, compare(evaluation("old", old), evaluation("now", bad)))
    assert not swap.good and "the last new policy was no gain" in swap.text()


def test_no_success_on_either_side_says_nothing() -> None:
    assert judge([], compare(evaluation("old", "0" * 8), evaluation("new", "0" * 8))).good


def test_a_person_decides_by_name_and_reason_and_it_is_kept(tmp_path: Path) -> None:
    offers = Offers(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint is withheld"):
        offers.decide("", True, "Ada", "looks good")
    offers.add("ended", checkpoint="it/policy", error="")
    offers.add("judged", checkpoint="it/policy", reasons=["value function: constant"], notes=[])
    assert offers.now.withheld == "it/policy" and not offers.now.to_offer
    with pytest.raises(ValueError, match="wanted who decides and why, found who '', why 'x'"):
        offers.decide("", True, "", "x")
    with pytest.raises(ValueError, match="wanted one that this run has judged"):
        offers.decide("other/policy", True, "Ada", "x")
    assert offers.decide("", False, "Ada", "shakes") == "it/policy"
    assert not offers.now.withheld and not offers.now.to_offer
    offers.decide("it/policy", True, "Ada", "tried by hand")  # thought better of
    assert offers.now.to_offer == "it/policy"
    last = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert (last["who"], last["why"], last["accept"]) == ("Ada", "tried by hand", True) and last["when"]


def test_a_log_that_a_crash_cut_off_is_mended_and_one_that_is_damaged_is_told(tmp_path: Path) -> None:
    Offers(tmp_path).add("asked", bags=["x"])
    with (tmp_path / LOG).open("a") as file:
        file.write('{"event": "ended", "check')
    again = Offers(tmp_path)
    assert again.now.asked is not None and again.now.asked["bags"] == ["x"]  # goes on with it
    again.add("ended", checkpoint="p", error="")
    assert Offers(tmp_path).now.to_judge == "p"
    (tmp_path / LOG).write_text("nonsense\n" + (tmp_path / LOG).read_text())
    with pytest.raises(ValueError, match=r"learner\.jsonl: line 1 cannot be read"):
        Offers(tmp_path)


EVENTS = st.lists(
    st.one_of(
        st.just({"event": "asked", "bags": []}),
        st.builds(lambda c: {"event": "ended", "checkpoint": c}, st.sampled_from("ab")),
        st.builds(
            lambda c, r: {"event": "judged", "checkpoint": c, "reasons": r},
            st.sampled_from("ab"), st.lists(st.just("bad"), max_size=1),
        ),
        st.builds(
            lambda c, y: {"event": "decided", "checkpoint": c, "accept": y},
            st.sampled_from("ab"), st.booleans(),
        ),
        st.builds(lambda c: {"event": "offered", "checkpoint": c}, st.sampled_from("ab")),
    ),
    max_size=12,
)  # fmt: skip


@given(EVENTS)
def test_nothing_that_was_judged_bad_is_to_be_offered_without_a_word(events: list[dict]) -> None:
    """Of judgements and words on a checkpoint the last counts."""
    now = standing(events)
    if not now.to_offer:
        return
    about = [e for e in events if e.get("checkpoint") == now.to_offer and e["event"] in ("judged", "decided")]
    assert not about[-1]["reasons"] if about[-1]["event"] == "judged" else about[-1]["accept"]


def test_an_iteration_goes_on_with_its_attempts_and_a_failed_one_begins_with_all(tmp_path: Path) -> None:
    first = lesson(tmp_path, 1, attempts())
    assert first == Lesson((), ("d1", "r1", "r2"))
    more = [*attempts(), Attempt("r5", "success", False, False, 5.0)]
    assert lesson(tmp_path, 1, more) == first  # it was killed, and goes on
    assert trained(tmp_path) == {"d1", "r1", "r2"} and data_state(more, trained(tmp_path)).fresh == 1
    set_aside(tmp_path, 1)
    assert not (tmp_path / "iteration_01" / FILE).exists()
    assert data_state(more, trained(tmp_path)).fresh == 1  # no training again until there is something new
    assert lesson(tmp_path, 1, more) == Lesson(("d1", "r1", "r2"), ("r5",))
    with pytest.raises(ValueError, match="no attempt with an outcome"):
        lesson(tmp_path, 2, [Attempt("r4", "unknown", False, False, 1.0)])
