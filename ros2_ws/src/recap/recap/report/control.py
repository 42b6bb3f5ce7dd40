"""Fifth part of the report: how steadily the robot was commanded."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from recap.report import figures, page
from recap.report.missing import Missing
from recap.report.result import REASONS
from recap.report.run import Run

# What recap.nodes.attempts_node measures of a command topic: (key, name, digits, unit).
_MEASURES = (
    ("rate_hz", "commands a second", 2, "Hz"),
    ("period_p50_ms", "from one to the next: half within", 2, "ms"),
    ("period_p99_ms", "99 of 100 within", 2, "ms"),
    ("period_max_ms", "the longest", 1, "ms"),
    ("missed_ticks", "ticks without a command", 0, ""),
    ("messages", "commands", 0, ""),
)


def show(run: Run) -> str:
    return page.pair(
        page.part(lambda: _measured(run.live_log()), "Rate and periods")
        + page.part(lambda: _attempts(run.live_log()), "Live attempts"),
        page.part(lambda: _periods(run), "From one command to the next"),
    )


def _measured(live: dict[str, Any]) -> str:
    policy = live.get("policy_command") or {}
    rows = [
        [
            escape(name),
            f"<b>{page.number(live[key], digits, unit)}</b>",
            page.number(policy.get(key), digits, unit),
        ]
        for key, name, digits, unit in _MEASURES
        if live.get(key) is not None
    ]
    heads = ("heard from outside", "to the robot", "of the policy")
    shown = "<h3>Rate and periods</h3>" + page.table(heads, rows, frozenset({1, 2}))
    if live.get("press_to_command_p50_ms") is not None:
        half, longest = live["press_to_command_p50_ms"], live["press_to_command_max_ms"]
        shown += page.remark(
            f"From the pedal to the person's first command: <b>{half:.0f} ms</b> in the middle of all "
            f"takeovers, <b>{longest:.0f} ms</b> at most."
        )
    return shown


def _attempts(live: dict[str, Any]) -> str:
    rows = [
        [
            str(e["seed"]),
            escape("success" if e["outcome"] == "success" else REASONS.get(e["reason"], e["reason"])),
            str(e["takeovers"]),
            page.number(float(e["duration_s"]), 1, "s"),
        ]
        for e in live.get("episodes", ())
    ]
    summed = f"{page.count(live['attempts'], 'attempt')}, {page.count(live['takeovers'], 'takeover')}"
    if live.get("holds"):
        summed += f"; {page.count(live['holds'], 'time')} the arbiter held the robot still"
    shown = f"<h3>Live attempts</h3><p>{summed}.</p>"
    if rows:
        shown += page.table(("start state", "outcome", "takeovers", "time"), rows, frozenset({2, 3}))
    return shown


def _periods(run: Run) -> str:
    wanted = 1000.0 * run.episodes[0].info.station.step_s
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    caption = ""
    if counted := run.live_log().get("period_histogram"):
        counts = np.array(counted["counts"])
        series["as heard by another process"] = (
            counted["from_ms"] + counted["bin_ms"] * np.arange(len(counts) + 1),
            counts,
        )
    try:
        found = run.command_periods_ms()
        edges = np.arange(0.0, max(60.0, float(found.max(initial=0.0)) + 0.5), 0.5)
        series["by the stamps in the bags"] = (edges, np.histogram(found, edges)[0])
        late = int((found > 1.5 * wanted).sum())
        caption = (
            f" By the stamps of <code>joint_command</code> in the bags, 99 of 100 came within "
            f"{np.percentile(found, 99):.2f} ms, the longest took {found.max():.1f} ms, and {late} of "
            f"{len(found):,} came later than one and a half ticks."
        )
    except Missing as missing:
        caption = f" {escape(str(missing))}"
        if not series:
            raise
    return page.picture(
        figures.periods(series, wanted),
        "Histogram of times between commands",
        f"Dotted: the {wanted:g} ms that are wanted. The count is logarithmic, so that a single late command "
        f"can be seen.{caption}",
        "From one command to the next",
    )
