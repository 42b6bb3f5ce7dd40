"""First part of the report: is the last policy better than the first?"""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from typing import Any

from recap.report import evaluation_figures, figures, page
from recap.report.missing import Missing
from recap.report.run import Run
from recap.report.style import method_color
from recap.results import Result
from recap_learner.evaluation.evaluation import compare, verdict

# Reasons that attempts end for, in words.
REASONS = {"failure": "beyond recovery", "time limit": "out of time"}
MOST_KINDS = 5  # of failures, shown of each policy


def head(run: Run) -> str:
    """Title, verdict and what this is about."""
    config = run.summary.get("config") or {}
    about = [f"run {run.folder.resolve().name}"]
    about += [f"{name} {config[name]}" for name in ("task", "station", "seed") if name in config]
    if version := run.code_version:
        about.append(f"code {version}")
    about.append(time.strftime("%Y-%m-%d %H:%M"))
    return (
        f'<h1>RECAP</h1><div class="verdict">{escape(_verdict(run))}</div>'
        f'<p class="muted">{escape(" · ".join(about))}</p>'
        "<p>A policy learned from demonstrations (<b>SFT</b>) attempted the task, autonomously and with "
        "somebody who corrected it. A <b>value function</b> learned from all attempts how far from success "
        "each moment is. Moments after which things went better than it had expected were labelled "
        "<i>positive</i>, and another policy (<b>RECAP</b>) was trained to act as in those; that again, once "
        "an iteration. Below: whether it helped, and what lies behind it.</p>"
    )


def _verdict(run: Run) -> str:
    said = []
    for task in run.tasks:
        line = run.of(task).main_line
        if len(line) > 1:
            text = verdict(compare(line[0].evaluation, line[-1].evaluation))
            said.append(f"{task}: {text}" if len(run.tasks) > 1 else text)
    return " ".join(said) or "This run is not finished: what follows is what it has so far."


def show(run: Run) -> str:
    line = run.main_line
    problems = "".join(page.note(problem) for problem in run.result_problems)
    if not line:
        return page.note("Not there yet: an evaluation of a policy (./recap eval makes one).") + problems
    return (
        _tiles(line)
        + _change(line)
        + page.pair(
            _rates(line) + page.part(lambda: _durations(line), "How long the attempts took"),
            page.part(lambda: _stages(line), "Stage by stage")
            + page.part(lambda: _seed_by_seed(line), "The same start state, both policies")
            + page.part(lambda: _reasons(line), "Why attempts failed"),
        )
        + page.folded("Every number of these evaluations", _numbers(line))
        + problems
    )


def _tiles(line: list[Result]) -> str:
    numbers = []
    for r in _ends(line):
        s, main = r.summary, r is line[-1]
        low_high = page.interval(s["success_ci95"], 100)
        numbers.append(
            (f"{r.title}: success", page.percent(s["success"]), f"95 % interval {low_high} %", main)
        )
        beside = f"95 % interval {page.interval(s['throughput_ci95'])}"
        numbers.append((f"{r.title}: throughput", f"{s['throughput_per_hour']:.0f} an hour", beside, main))
    return page.tiles(numbers)


def _change(line: list[Result]) -> str:
    if len(line) < 2:
        return page.note("There is one evaluated policy only: nothing to compare it with yet.")
    first, last = line[0], line[-1]
    c = compare(first.evaluation, last.evaluation)
    low, high = (100 * v for v in c["success_difference_ci95"])
    how = "paired by start state" if c["paired"] else "not paired"
    points = f"{100 * c['success_difference']:+.1f} points"
    changes = [
        f"From {first.title} to {last.title} success changed by <b>{points}</b> (95 % interval {low:+.1f} to "
        f"{high:+.1f}, {how}; {c['test']} test, p = {c['p']:.2g})"
    ]
    if c["throughput_ratio"] is not None:
        within = page.interval(c["throughput_ratio_ci95"], digits=2)
        changes.append(
            f"throughput is <b>{c['throughput_ratio']:.2f} times</b> that of {first.title} ({within})"
        )
    failed = [1 - r.summary["success"] for r in (first, last)]
    if failed[0]:
        changes.append(f"failures are <b>{failed[1] / failed[0]:.2f} times</b> as many")
    return f"<p>{'; '.join(changes)}.</p>".replace("-", "−")


def _named(line: list[Result]) -> list[evaluation_figures.Named]:
    return [(r.title, r.summary, method_color(r.method)) for r in line]


def reset_remark(results: list[Result]) -> str:
    """What the throughputs count besides the attempts."""
    counted = sorted({r.evaluation.counted_reset_s for r in results})
    if counted == [0.0]:
        return "Throughput is successes per hour of attempting; resets between attempts are not counted."
    each = " or ".join(f"{s:.1f} s" for s in counted)
    return f"Throughput is successes per hour, with {each} for the reset after each attempt."


def _rates(line: list[Result]) -> str:
    same = len({tuple(a.seed for a in r.evaluation.attempts) for r in line}) == 1
    states = "The same start states for all" if same else "Start states differ"
    held = "" if any(_not_held_out(r) for r in line) else ", which no training is known to have seen"
    caption = (
        f"{states}{held}. Bars: 95 % interval. {reset_remark(line)} It rewards speed and success together."
    )
    names = {float(r.iteration or 0): r.title for r in line}
    if len(line) > 2:
        points = [(float(r.iteration or 0), r.summary) for r in line]
        svg = evaluation_figures.over({"": points}, "iteration", names)
    else:
        svg = evaluation_figures.intervals(_named(line))
    return page.picture(svg, "Success and throughput with 95 % intervals", caption, "Success and throughput")


def _not_held_out(r: Result) -> bool:
    return any("not a held-out" in note for note in r.evaluation.notes)


def _durations(line: list[Result]) -> str:
    rows = [
        (r.title, [(a.duration_s, a.success) for a in r.evaluation.attempts], method_color(r.method))
        for r in _ends(line)
    ]
    return page.picture(
        evaluation_figures.durations(rows),
        "Share of attempts that had succeeded by each time, and all durations",
        "A curve that rises earlier is faster; one that ends higher succeeds more often. "
        "Each dot is a success, each cross a failure.",
        "How long the attempts took",
    )


def _ends(line: list[Result]) -> list[Result]:
    return [line[0], line[-1]] if len(line) > 1 else line


def _stages(line: list[Result]) -> str:
    known = [r for r in _ends(line) if r.summary["stages"]]
    if not known:
        raise Missing("The evaluations do not say which stages the attempts passed.")
    return page.picture(
        evaluation_figures.stage_successes(_named(known)),
        "Share of attempts that passed each stage",
        "An attempt has passed a stage when it got into a later one, or succeeded. Where a curve falls is "
        "where attempts are lost.",
        "Stage by stage",
    )


def _seed_by_seed(line: list[Result]) -> str:
    if len(line) < 2:
        raise Missing("One policy only.")
    first, last = line[0], line[-1]
    c = compare(first.evaluation, last.evaluation)
    if not c["paired"]:
        raise Missing("The policies were not evaluated on the same start states.")
    won = [{a.seed: a.success for a in r.evaluation.attempts} for r in (first, last)]
    counts = Counter((won[0][seed], won[1][seed]) for seed in won[0] if seed in won[1])
    rows = [
        ("both succeeded", counts[True, True], figures.GREEN),
        (f"only {last.title}", counts[False, True], figures.BLUE),
        (f"only {first.title}", counts[True, False], figures.ORANGE),
        ("neither", counts[False, False], figures.GREY),
    ]
    return page.picture(
        figures.bars([(name, n, color, str(n)) for name, n, color in rows], "start states"),
        "Bars of start states by which policy succeeded",
        f"Of {counts.total()} start states, {last.title} alone won {counts[False, True]} and {first.title} "
        f"alone {counts[True, False]}: only these tell the policies apart.",
        "The same start state, both policies",
    )


def _reasons(line: list[Result]) -> str:
    rows = []
    for r in _ends(line):
        kinds = r.summary["failures"]
        for kind in kinds[:MOST_KINDS]:
            where = f", {kind['stage']}" if kind["stage"] else ""
            title = f"{r.title}: {REASONS.get(kind['reason'], kind['reason'])}{where}"
            text = f"{kind['count']} of {r.summary['attempts']}"
            rows.append((title, kind["share"], method_color(r.method), text))
        if rest := sum(kind["count"] for kind in kinds[MOST_KINDS:]):
            share = rest / r.summary["attempts"]
            rows.append(
                (f"{r.title}: otherwise", share, method_color(r.method), f"{rest} of {r.summary['attempts']}")
            )
    if not rows:
        return "<h3>Why attempts failed</h3><p>No attempt of either policy failed.</p>"
    return page.picture(
        figures.bars(rows, "share of the policy's attempts", share=True),
        "Bars of reasons for failure",
        "How they ended, and in which stage. “Beyond recovery” is the judgement of the simulator or of a "
        "person, for example a part that fell where no arm reaches it; “out of time” is an attempt that the "
        "time limit ended.",
        "Why attempts failed",
    )


def _numbers(line: list[Result]) -> str:
    """Every measure of every policy on the line, with its interval."""
    rows: list[tuple[str, str, str, float, int]] = [
        ("success", "success", "success_ci95", 100.0, 1),
        ("success without help", "unaided_success", "unaided_success_ci95", 100.0, 1),
        ("throughput [1/h]", "throughput_per_hour", "throughput_ci95", 1.0, 1),
        ("time of an attempt [s]", "mean_s", "mean_s_ci95", 1.0, 2),
        ("time of a success [s]", "mean_success_s", "mean_success_s_ci95", 1.0, 2),
        ("takeovers an attempt", "takeovers_per_attempt", "takeovers_per_attempt_ci95", 1.0, 2),
        ("commanded by a person", "correction_share", "correction_share_ci95", 100.0, 1),
    ]
    summaries = [r.summary for r in line]
    cells = [["attempts", *(str(s["attempts"]) for s in summaries)]]
    for title, value, interval, scale, digits in rows:
        unit = "\u202f%" if scale == 100.0 else ""
        cells.append([title, *(_cell(s, value, interval, scale, digits, unit) for s in summaries)])
    for stage in summaries[0]["stages"] or {}:
        row = [(s["stages"] or {}).get(stage) for s in summaries]
        cells.append(
            [f"passed {escape(stage)}", *(_cell(s, "share", "ci95", 100.0, 1, "\u202f%") for s in row)]
        )
    cells.append(["from", *(f"<code>{escape(r.file)}</code>" for r in line)])
    return page.table(["", *(escape(r.title) for r in line)], cells) + page.remark(
        "In brackets the 95 % interval: Wilson's for shares of attempts (a confidence sequence "
        "where an evaluation could stop early), a bootstrap over attempts for the rest."
    )


def _cell(s: dict[str, Any] | None, value: str, interval: str, scale: float, digits: int, unit: str) -> str:
    if s is None or s.get(value) is None:
        return "–"
    within = page.interval(s[interval], scale, digits)
    return f"{scale * s[value]:.{digits}f}{unit} <span class=muted>[{within}]</span>"
