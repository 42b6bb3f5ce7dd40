"""Second part of the report: other ways to learn from the same data, other ways to ask the same policy."""

from __future__ import annotations

from html import escape
from itertools import pairwise

from recap.report import evaluation_figures, page
from recap.report.missing import Missing
from recap.report.result import reset_remark
from recap.report.run import Run
from recap.report.style import GREEN, GREY, VERMILLION, method_color
from recap.results import Result, arms, conditions, sweep
from recap_learner.evaluation.evaluation import compare
from recap_learner.evaluation.statistics import holm

_ASKED = {"positive": GREEN, "none": GREY, "negative": VERMILLION}


def show(run: Run) -> str:
    return page.part(lambda: _arms(run), "Ways to learn from the same data") + page.pair(
        page.part(lambda: _conditions(run), "Asked for positive, nothing, negative"),
        page.part(lambda: _sweep(run), "Guidance β"),
    )


def _arms(run: Run) -> str:
    found = arms(run.results)
    if not found:
        raise Missing(
            "No other way to learn from the same data was evaluated (arms/METHOD/eval.json of an iteration)."
        )
    colored = [(r.title, r.summary, method_color(r.method)) for r in found]
    return page.pair(
        page.picture(
            evaluation_figures.intervals(colored),
            "Success and throughput of each method",
            f"Each learned from the data of iteration {found[0].iteration}; the highest throughput first. "
            f"Bars: 95 % interval. {reset_remark(found)}",
            "Ways to learn from the same data",
        ),
        _against_recap(found),
    )


def _against_recap(found: list[Result]) -> str:
    own = next((r for r in found if r.method == "recap"), None)
    if own is None:
        return page.note("RECAP's own policy of this iteration was not evaluated.")
    others = [r for r in found if r is not own]
    compared = [compare(own.evaluation, r.evaluation) for r in others]
    rows = []
    for r, c, p in zip(others, compared, holm([c["p"] for c in compared]), strict=True):
        points = page.interval(c["success_difference_ci95"], 100)
        ratio = "–" if c["throughput_ratio"] is None else f"{c['throughput_ratio']:.2f}"
        rows.append(
            [
                escape(r.title),
                f"{100 * c['success_difference']:+.0f} <span class=muted>[{points}]</span>".replace("-", "−"),
                f"{ratio} <span class=muted>[{page.interval(c['throughput_ratio_ci95'], digits=2)}]</span>",
                f"{p:.2g}",
            ]
        )
    heads = ("against RECAP", "success [points]", "throughput ×", "p")
    test = " and ".join(sorted({c["test"] for c in compared}))
    return (
        "<h3>Against RECAP</h3>"
        + page.table(heads, rows, frozenset({1, 2, 3}))
        + page.remark(f"p: {test} test of success, adjusted for the number of comparisons (Holm).")
    )


def _conditions(run: Run) -> str:
    found = conditions(run.results)
    if not found:
        raise Missing(
            "Not evaluated. To see whether the policy tells good from bad: "
            "./recap eval POLICY --indicator positive,none,negative"
        )
    rows = [(r.indicator, r.summary, _ASKED[r.indicator]) for r in found]
    order = [s["success"] for _, s, _ in rows]
    held = all(a >= b for a, b in pairwise(order))
    return page.picture(
        evaluation_figures.intervals(rows),
        "Success and throughput by what the policy was asked for",
        f"{escape(found[0].title)}, asked for each label. A policy that has learned what the labels mean "
        f"succeeds more often the better it is asked to: here it {'does' if held else 'does <b>not</b>'}.",
        "Asked for positive, nothing, negative",
    )


def _sweep(run: Run) -> str:
    found = sweep(run.results)
    if not found:
        raise Missing("Not evaluated. To see what guidance does: ./recap eval POLICY --beta 1,1.5,2,2.5")
    return page.picture(
        evaluation_figures.over({found[0].title: [(r.beta, r.summary) for r in found]}, "guidance β"),
        "Success and throughput over the guidance",
        f"{escape(found[0].title)} asked for <i>positive</i>, the more strongly the further right; 1 is "
        "conditioning alone. Much guidance pushes actions to the edge of what was seen.",
        "Guidance β",
    )
