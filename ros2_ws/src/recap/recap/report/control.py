"""Fifth part of the report: how steadily the robot was commanded."""

from __future__ import annotations

from html import escape

import numpy as np

from recap.report import figures, page
from recap.report.run import Missing, Run

# What the attempts client measures: (key, name, digits, unit, meaning); what it did not measure is left out.
_MEASURES = (
    ("attempts", "attempts", 0, "", "live, one bag each"),
    ("successes", "successes", 0, "", "with a person's help where it was needed"),
    ("takeovers", "takeovers", 0, "", "times that a person took over"),
    ("rate_hz", "control rate", 2, "Hz", "commands a second; wanted 50"),
    ("period_p50_ms", "period, median", 2, "ms", "from one command to the next; wanted 20"),
    ("period_p99_ms", "period, 99 of 100", 2, "ms", "99 of 100 commands came within this"),
    ("period_max_ms", "period, longest", 1, "ms", "the latest single command"),
    ("missed_ticks", "missed ticks", 0, "", "ticks without a command; wanted none"),
)


def show(run: Run) -> str:
    live = run.live_log()
    rows = [
        [
            f"{name}<br><span class=muted>{meaning}</span>",
            f"<b>{escape(page.number(live[key], digits, unit))}</b>",
        ]
        for key, name, digits, unit, meaning in _MEASURES
        if isinstance(live.get(key), int | float)
    ]
    rest = {key: value for key, value in live.items() if key not in {m[0] for m in _MEASURES}}
    numbers = "<h3>Measured live</h3>" + page.table((), rows, frozenset({1}))
    if rest:
        numbers += page.folded("Everything that was measured", rest)
    return page.pair(numbers, page.part(lambda: _periods(run)))


def _periods(run: Run) -> str:
    found = run.command_periods_ms()
    if not len(found):
        raise Missing("The live bags hold no commands.")
    wanted = 1000.0 * run.episodes[0].info.station.step_s
    late = int((found > 1.5 * wanted).sum())
    return page.picture(
        figures.periods(found, wanted),
        "Histogram of times between commands",
        f"{len(found):,} commands of the live attempts, by the stamps of <code>joint_command</code> in their "
        f"bags: half came within {np.median(found):.2f} ms, 99 of 100 within "
        f"{np.percentile(found, 99):.2f} ms, the longest took {found.max():.1f} ms; {late} came "
        "later than one and a half ticks. The count is logarithmic, so that a single late one can be seen. "
        f"Dotted: the {wanted:g} ms that are wanted.",
        "From one command to the next",
    )
