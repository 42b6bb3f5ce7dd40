"""Figures of evaluations: numbers with their intervals, in, one SVG (as text) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from recap.report.style import BLUE, GREEN, GREY, HALF, INK, ORANGE, PURPLE, SKY, VERMILLION, as_svg

Named = tuple[str, Mapping[str, Any], str]  # name, summary (evaluation.summarize), colour
_MEASURES = (
    ("success", "success_ci95", "success"),
    ("throughput_per_hour", "throughput_ci95", "throughput [1/h]"),
)
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


@as_svg
def intervals(rows: Sequence[Named]) -> Figure:
    """Success and throughput of each, a point with its 95 % interval; rows from top to bottom."""
    fig = Figure((HALF, 1.0 + 0.36 * len(rows)), layout="constrained")
    for axis, (measure, interval, title) in zip(fig.subplots(1, 2, sharey=True), _MEASURES, strict=True):
        for y, (_, s, color) in enumerate(rows):
            low, high = s[interval]
            axis.plot([low, high], [-y, -y], color=color, linewidth=7, alpha=0.35, solid_capstyle="butt")
            axis.plot(
                [s[measure]] * 2, [-y - 0.28, -y + 0.28], color=INK, linewidth=2.2, solid_capstyle="butt"
            )
            text = f"{s[measure]:.0%}" if measure == "success" else f"{s[measure]:.0f}"
            right = measure == "success" and high > 0.88
            x, side, offset = (low, "right", -4) if right else (high, "left", 4)
            axis.annotate(text, (x, -y), xytext=(offset, 0), textcoords="offset points", va="center",
                          ha=side, fontsize=9.5, weight="bold")  # fmt: skip
        axis.set_title(title)
        axis.grid(False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", left=False, labelcolor=INK)
        _scale(axis, measure, max((s[interval][1] for _, s, _ in rows), default=1.0) * 1.18)
    fig.axes[0].set_yticks([-y for y in range(len(rows))], [name for name, *_ in rows])
    fig.axes[0].set_ylim(-len(rows) + 0.45, 0.55)
    return fig


@as_svg
def over(
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    xlabel: str,
    names: Mapping[float, str] | None = None,
) -> Figure:
    """Success and throughput with 95 % intervals over iterations, β, …: a line a method, (x, summary) each.

    names: of the x, where they are not numbers.
    """
    fig = Figure((HALF, 3.1), layout="constrained")
    colors = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, GREY)
    for axis, (measure, interval, title) in zip(fig.subplots(1, 2), _MEASURES, strict=True):
        top, gap = (
            1e-9,
            0.02 * max(1.0, max((x for points in lines.values() for x, _ in points), default=1.0)),
        )
        for index, (name, points) in enumerate(lines.items()):
            x = np.array([p for p, _ in points]) + gap * (index - (len(lines) - 1) / 2)
            y = np.array([s[measure] for _, s in points])
            bounds = np.array([s[interval] for _, s in points]).T
            spread = np.abs(np.stack([np.minimum(bounds[0], y), np.maximum(bounds[1], y)]) - y)
            axis.errorbar(
                x, y, spread, color=colors[index % 7], marker=_MARKS[index % 7], linewidth=2, capsize=4,
                markersize=6, elinewidth=1.3, label=name,
            )  # fmt: skip
            top = max(top, float(bounds.max()))
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        if names:
            axis.set_xticks(list(names), list(names.values()))
            axis.set_xlim(min(names) - 0.3, max(names) + 0.3)
        else:
            axis.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        if measure == "success":
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_ylim(0, 1.03 if measure == "success" else 1.12 * top)
    if len(lines) > 1:
        fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return fig


@as_svg
def stage_successes(rows: Sequence[Named]) -> Figure:
    """Share of all attempts that passed each stage, with 95 % intervals, the stages from left to right."""
    fig = Figure((HALF, 3.3), layout="constrained")
    axis = fig.add_subplot()
    stages = list(rows[0][1]["stages"])
    room = 0.5 / max(1, len(rows))
    for index, (name, s, color) in enumerate(rows):
        x = np.arange(len(stages)) + room * (index - (len(rows) - 1) / 2)
        y = np.array([s["stages"][stage]["share"] for stage in stages])
        low, high = np.array([s["stages"][stage]["ci95"] for stage in stages]).T
        axis.errorbar(
            x, y, np.abs(np.stack([y - low, high - y])), color=color, marker=_MARKS[index % 7], linewidth=1.2,
            linestyle=("-", "--", ":")[index % 3], capsize=3, markersize=6, label=name,
        )  # fmt: skip
    axis.set_xticks(range(len(stages)), stages)
    axis.tick_params(axis="x", labelcolor=INK)
    axis.set_ylim(0, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_title("attempts that passed the stage")
    axis.grid(False, axis="x")
    axis.legend(loc="lower left")
    return fig


@as_svg
def durations(attempts: Sequence[tuple[str, Sequence[tuple[float, bool]], str]]) -> Figure:
    """Share of attempts that had succeeded after t seconds, and every attempt as a mark below.

    attempts: (name, (duration [s], success) each, colour).
    """
    fig = Figure((HALF, 2.7 + 0.3 * len(attempts)), layout="constrained")
    above, below = fig.subplots(2, 1, sharex=True, height_ratios=(2.3, 0.35 * len(attempts) + 0.3))
    end = max((time for _, rows, _ in attempts for time, _ in rows), default=1.0)
    rng = np.random.default_rng(0)
    for y, (name, rows, color) in enumerate(attempts):
        won = np.sort([time for time, success in rows if success])
        lost = np.array([time for time, success in rows if not success])
        share = np.arange(len(won) + 1) / max(1, len(rows))
        above.step([0, *won, end], [*share, share[-1]], where="post", color=color, linewidth=2.2, label=name,
                   linestyle=("-", "--", ":")[y % 3])  # fmt: skip
        for times, mark, tint in ((won, "o", color), (lost, "x", VERMILLION)):
            spread = -y + rng.uniform(-0.3, 0.3, len(times))
            below.scatter(
                times, spread, 13, color=tint, marker=mark, alpha=0.7, linewidths=1.0 if mark == "x" else 0
            )
    above.set_ylim(0, 1.02)
    above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    above.set_title("attempts that have succeeded by then")
    above.legend(loc="upper left")
    below.set_yticks([-i for i in range(len(attempts))], [name for name, *_ in attempts])
    below.set_ylim(-len(attempts) + 0.45, 0.55)
    below.tick_params(axis="y", labelcolor=INK)
    below.grid(False, axis="y")
    below.set_xlabel("time since the start of the attempt [s]")
    below.set_xlim(0, end * 1.02)
    return fig


def _scale(axis: Axes, measure: str, top: float) -> None:
    if measure == "success":
        axis.set_xlim(0, 1.02)
        axis.set_xticks([0, 0.5, 1])
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axis.set_xlim(0, top or 1.0)
