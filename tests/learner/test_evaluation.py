"""What attempts add up to, by hand; eval.json there and back; recorded attempts by checkpoint."""

import json
from dataclasses import replace

import pytest

from recap_learner.evaluation.evaluation import (
    Attempt,
    Evaluation,
    EvaluationError,
    compare,
    compare_all,
    read_evaluation,
    save_attempts,
    summarize,
    verdict,
)
from recap_learner.evaluation.sequential import confidence_sequence
from recap_learner.evaluation.statistics import mcnemar_p, wilson_interval
from recap_station.files import write_json

STAGES = ("reach", "lift", "pass", "insert")


def attempt(
    seed: int, won: bool, last: str = "insert", seconds: float = 6.0, correction: float = 0.0
) -> Attempt:
    entered = STAGES[: STAGES.index(last) + 1]
    reason = "success" if won else "time limit"
    stages = {name: float(i) for i, name in enumerate(entered)}
    return Attempt(seed, won, reason, seconds, int(correction > 0), correction, "", "", last, stages)


FOUR = [
    attempt(0, True),
    attempt(1, True, seconds=8.0, correction=0.5),
    attempt(2, False, "lift", 15.0),
    attempt(3, False, "insert", 15.0),
]


def evaluation(name: str, wins: list[bool], first: int = 90_000, **more) -> Evaluation:
    rows = [attempt(first + i, won, seconds=6.0 if won else 15.0) for i, won in enumerate(wins)]
    return Evaluation(name, tuple(rows), stages=STAGES, **more)


def test_a_summary_by_hand():
    s = summarize(FOUR, STAGES, reset_s=14.0)
    assert (s["attempts"], s["successes"], s["success"]) == (4, 2, 0.5)
    assert s["success_ci95"] == wilson_interval(2, 4)
    assert s["unaided_success"] == 0.25
    assert s["throughput_per_hour"] == pytest.approx(3600 * 2 / (44 + 4 * 14)) == pytest.approx(72.0)
    assert summarize(FOUR)["throughput_per_hour"] == pytest.approx(3600 * 2 / 44)
    assert (s["mean_s"], s["mean_success_s"]) == (11.0, 7.0)
    assert {k: (v["entered"], v["passed"]) for k, v in s["stages"].items()} == {
        "reach": (4, 4), "lift": (4, 3), "pass": (3, 3), "insert": (3, 2),
    }  # fmt: skip
    assert s["stages"]["lift"]["ci95"] == wilson_interval(3, 4)
    kinds = [(f["reason"], f["stage"], f["count"], f["share"]) for f in s["failures"]]
    assert kinds == [("time limit", "insert", 1, 0.25), ("time limit", "lift", 1, 0.25)]
    assert (s["takeovers_per_attempt"], s["correction_share"]) == (0.25, 0.125)
    low, high = s["correction_share_ci95"]
    assert low <= 0.125 <= high


def test_stages_that_were_not_seen_are_not_counted_and_nothing_is_nothing():
    assert summarize([replace(FOUR[0], stages=None)], STAGES)["stages"] is None
    assert summarize([attempt(0, False)])["mean_success_s"] is None
    with pytest.raises(EvaluationError, match="at least one attempt"):
        summarize([])


def test_a_stage_is_passed_by_whoever_got_into_a_later_one_even_if_it_fell_back():
    back = replace(FOUR[2], stage="reach")  # dropped after it was lifted
    assert back.passed("reach", STAGES) and not back.passed("lift", STAGES)


def test_comparison_is_paired_by_start_state():
    first = evaluation("a", [True, False, False, False, False, False, False, False])
    second = evaluation("b", [False, True, True, True, True, True, True, True])
    c = compare(first, second)
    assert c["paired"] and (c["only_first"], c["only_second"], c["test"]) == (1, 7, "exact McNemar")
    assert c["p"] == mcnemar_p(1, 7) == pytest.approx(2 * 9 / 256)
    assert c["success_difference"] == pytest.approx(6 / 8)
    assert c["throughput_ratio"] == pytest.approx((7 / 57) / (1 / 111))
    assert "No difference" in verdict(c)  # 0.07
    shuffled = replace(second, attempts=second.attempts[::-1])
    assert compare(first, shuffled) == c


def test_attempts_on_other_start_states_are_not_paired():
    first, second = evaluation("a", [False] * 9), evaluation("b", [True] * 9, first=0)
    c = compare(first, second)
    assert not c["paired"] and c["test"] == "Fisher's exact" and c["throughput_ratio"] is None
    assert verdict(c) == "b succeeds more often than a."
    assert verdict(compare(second, first)) == "a succeeds LESS often than b."
    twice = replace(first, attempts=first.attempts + first.attempts)  # one start state several times
    assert not compare(twice, first)["paired"]


def test_several_comparisons_are_adjusted_for_their_number():
    first, one, two = evaluation("a", [False] * 6), evaluation("b", [True] * 6), evaluation("c", [True] * 6)
    found = compare_all([first, one, two])
    assert [c["p_holm"] for c in found] == pytest.approx([2 * c["p"] for c in found])
    assert compare(first, one)["p"] < 0.05 and "No difference" in verdict(found[0])
    assert compare_all([first]) == []


def test_an_evaluation_that_might_have_stopped_early_says_so_in_its_interval_and_its_test():
    early = {"early": True}
    first, second = evaluation("a", [False] * 9, stopping=early), evaluation("b", [True] * 9, stopping=early)
    assert second.summary()["success_ci95"] == confidence_sequence(9, 9)
    assert compare(first, second)["test"] == "sequential McNemar"
    assert compare(first, second)["p"] == pytest.approx(10 / 512)


def test_eval_json_there_and_back(tmp_path):
    made = evaluation("a", [True, False], method="recap", iteration=1, settings={"beta": 1.5}, reset_s=3.0)
    path = tmp_path / "eval.json"
    made.write(path)
    assert read_evaluation(path) == made
    stored = json.loads(path.read_text())
    assert stored["summary"]["successes"] == 1 and stored["format"] == "recap-evaluation"
    write_json(path, {**stored, "new": 1, "attempts": [{**row, "new": 1} for row in stored["attempts"]]})
    assert read_evaluation(path) == made  # what a later version adds is passed over


def test_the_demo_s_bare_list_of_attempts_is_read_too(tmp_path):
    path = tmp_path / "iteration_00" / "eval.json"
    rows = save_attempts(FOUR)
    for row in rows:
        del row["stage"], row["stages"]
    write_json(path, rows)
    found = read_evaluation(path)
    assert found.name == "iteration_00" and [a.success for a in found.attempts] == [True, True, False, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ('{"a": 1}', "wanted an evaluation"),
        ('"text"', "found 'str'"),
        ('{"format": "recap-evaluation", "version": 2}', "version 2, wanted 1"),
        ('{"format": "recap-evaluation", "version": 1}', "'attempts'"),
        ('[{"seed": 1}]', "missing"),
    ],
)
def test_a_file_that_is_no_evaluation_is_one_readable_line(tmp_path, content, said):
    path = tmp_path / "eval.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match="eval") as error:
        read_evaluation(path)
    assert said in str(error.value) and "\n" not in str(error.value)
