"""Which evaluations a report shows of a run, and the parts of its figures that decide something."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from recap.cli import main
from recap.report import write_report
from recap.report.attempt_figure import key_moments
from recap.report.evaluation_figures import intervals, over
from recap.report.run import Run
from recap.report.style import INK, as_svg, themed
from recap.results import arms, conditions, find_results, main_line, sweep
from recap_learner.evaluation.evaluation import Attempt, Evaluation, save_attempts
from recap_station.files import write_json


def evaluation(wins: int, count: int = 20, **more) -> Evaluation:
    rows = [
        Attempt(90_000 + i, i < wins, "success" if i < wins else "failure", 5.0, 0, 0.0) for i in range(count)
    ]
    return Evaluation("", tuple(rows), **more)


def asked(indicator: str, beta: float = 1.0) -> dict[str, object]:
    return {"indicator": indicator, "beta": beta}


@pytest.fixture
def run(tmp_path) -> Path:
    """Two iterations after SFT, two arms, and the last policy asked in several ways."""
    evaluation(8).write(tmp_path / "iteration_00" / "eval.json")
    write_json(tmp_path / "iteration_01" / "eval.json", save_attempts(evaluation(12).attempts))
    evaluation(16).write(tmp_path / "iteration_02" / "eval.json")
    for arm, wins in (("awr", 11), ("my_own", 17)):
        evaluation(wins).write(tmp_path / "iteration_02" / "arms" / arm / "eval.json")
    for (indicator, beta), wins in {("none", 1.0): 13, ("negative", 1.0): 5, ("positive", 2.0): 15}.items():
        file = tmp_path / "iteration_02" / "evaluations" / f"{indicator}{beta}.json"
        evaluation(wins, settings=asked(indicator, beta)).write(file)
    return tmp_path


def test_evaluations_are_told_apart_by_place_and_setting(run):
    found, problems = find_results(run)
    assert not problems and len(found) == 8
    assert [(r.title, r.summary["successes"]) for r in main_line(found)] == [
        ("SFT", 8), ("RECAP 1", 12), ("RECAP 2", 16),
    ]  # fmt: skip
    assert [r.title for r in arms(found)] == ["my own", "RECAP 2", "AWR"]  # by throughput
    assert [(r.indicator, r.summary["successes"]) for r in conditions(found)] == [
        ("positive", 16), ("none", 13), ("negative", 5),
    ]  # fmt: skip
    assert [(r.beta, r.summary["successes"]) for r in sweep(found)] == [(1.0, 16), (2.0, 15)]


def test_an_evaluation_of_a_policy_that_was_trained_anew_since_is_not_shown(run):
    file = run / "iteration_02" / "evaluations" / "positive2.0.json"
    evaluation(1, settings=asked("positive", 2.0), identity="old", checkpoint="policy").write(file)
    write_json(run / "iteration_02" / "policy" / "config.json", {"identity": "new", "lineage": {}})
    assert sweep(find_results(run)[0]) == []


def test_an_arm_that_is_asked_for_nothing_is_shown_as_it_is_asked(run):
    folder = run / "iteration_02" / "arms" / "awr"
    write_json(folder / "policy" / "config.json", {"lineage": {"arm": {"name": "awr", "asked": ""}}})
    (result,) = (r for r in find_results(run)[0] if r.method == "awr")
    assert result.indicator == result.asked == "none" and result.plain


def test_a_larger_evaluation_beside_does_not_take_the_place_of_the_iteration_s_own(run):
    evaluation(1, 90, settings=asked("positive")).write(run / "iteration_02" / "evaluations" / "again.json")
    assert main_line(find_results(run)[0])[-1].summary["successes"] == 16
    (run / "iteration_02" / "eval.json").unlink()
    assert main_line(find_results(run)[0])[-1].summary["successes"] == 1


def test_a_file_that_cannot_be_read_is_named_and_the_rest_shown(run):
    (run / "iteration_01" / "eval.json").write_text("{")
    write_json(run / "iteration_02" / "evaluations" / "empty.json", [])
    html = write_report(run).read_text()
    assert "iteration_01/eval.json: cannot be read" in html and "empty.json: holds no attempt" in html
    assert "RECAP 2 succeeds more often than SFT." in html


def test_a_run_of_several_tasks_shows_each(tmp_path):
    for task, wins in (("fold", 18), ("insert", 3)):
        evaluation(9).write(tmp_path / task / "iteration_00" / "eval.json")
        evaluation(wins).write(tmp_path / task / "iteration_01" / "eval.json")
    found = Run(tmp_path)
    assert found.tasks == ["fold", "insert"]
    assert [r.summary["successes"] for r in found.of("insert").main_line] == [9, 3]
    html = write_report(tmp_path).read_text()
    assert "fold: RECAP 1 succeeds more often than SFT. insert: " in html
    assert html.count('<h2 class="task">') >= 2 * 5


def test_stages_are_read_from_a_manifest_where_there_is_one(tmp_path):
    value = {"spread": 0.25, "problems": []}
    stages = {
        "iteration_02.value": {"result": value, "seconds": 4.0, "inputs": {"episodes": "abc"}, "outputs": {}},
        "iteration_02.policy": {"result": {"frames": 3}, "seconds": 5.0, "code_version": "c0de"},
    }
    write_json(tmp_path / "manifest.json", {"format": 1, "stages": stages})
    found = Run(tmp_path)
    assert found.value_reports == {"of iteration 2": value} and found.code_version == "c0de"
    assert found.summary["seconds"] == {"iteration_02.value": 4.0, "iteration_02.policy": 5.0}


def test_key_moments_are_where_the_value_changes_fastest():
    value = np.zeros(400)
    value[130:160] = np.linspace(0, -0.5, 30)
    value[160:] = -0.5
    moments = key_moments(value, 400, 4, 0.02)
    assert 130 <= moments[1] <= 160
    assert all(100 * i <= m < 100 * (i + 1) for i, m in enumerate(moments))
    assert key_moments(np.empty(0), 400, 4, 0.02).tolist() == [50, 150, 250, 350]
    assert key_moments(np.zeros(3), 3, 10, 0.02).max() == 2  # shorter than the strip


def test_figures_take_the_colours_of_the_reader_s_ground():
    svg = intervals([("a", evaluation(5).summary(), INK)])
    assert "prefers-color-scheme:dark" in svg and "var(--ink)" in svg
    body = svg[svg.index("</style>") :]
    assert INK not in body and not re.search(r"#000000\b", body)  # nothing stays dark on dark
    assert themed(f"color:{INK.upper()}") == "color:var(--ink)"


@pytest.mark.parametrize("wins", [0, 20])
def test_figures_of_nothing_won_and_of_all_won_can_be_drawn(wins):
    s = evaluation(wins).summary()
    assert "<svg" in intervals([("a", s, INK)]) and "<svg" in over({"a": [(1.0, s)]}, "β")
    assert callable(as_svg)


def test_report_verb(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--json"])
    assert ended.value.code == 0 and str(run / "report.html") in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "nowhere")])
    shown = capsys.readouterr()
    assert ended.value.code == 1 and "no such run folder" in shown.err
