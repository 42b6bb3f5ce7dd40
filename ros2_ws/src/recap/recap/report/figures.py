"""Figures of the report: numpy arrays in, one self-contained SVG (as text) out. Nothing is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from recap.report.style import (
    BLUE,
    GREEN,
    GREY,
    HALF,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILLION,
    WIDE,
    as_svg,
)

__all__ = [
    "BLUE", "GREEN", "GREY", "HALF", "INK", "MUTED", "ORANGE", "PAPER", "PURPLE", "SKY", "VERMILLION", "WIDE",
    "advantages", "as_svg", "bars", "calibration", "curves", "periods", "stacked", "values",
]  # fmt: skip


@as_svg
def bars(
    rows: Sequence[tuple[str, float, str, str]],
    xlabel: str,
    share: bool = False,
    hatched: frozenset[str] = frozenset(),
) -> Figure:
    """Horizontal bars. rows: (name, length, colour, text at its end); hatched: names drawn with a pattern."""
    fig = Figure((HALF, 0.75 + 0.31 * len(rows)), layout="constrained")
    axis = fig.add_subplot()
    longest = max((length for _, length, _, _ in rows), default=1.0)
    for y, (name, length, color, text) in enumerate(rows):
        axis.barh(-y, length, 0.66, color=color, hatch="////" if name in hatched else None, edgecolor=PAPER)
        axis.annotate(text, (length, -y), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks([-y for y in range(len(rows))], [name for name, *_ in rows])
    axis.tick_params(axis="y", left=False, labelcolor=INK)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(xlabel)
    axis.set_xlim(0, 1.12 if share else max(longest, 1e-9) * 1.22)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=longest >= 1, steps=[1, 2, 5, 10]))
    if share:
        axis.set_xticks(np.arange(0, 1.01, 0.25))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return fig


@as_svg
def values(curves: Sequence[tuple[np.ndarray, bool]], step_s: float, most: int = 25) -> Figure:
    """V of many attempts, successes against failures, from their start and before their end.

    curves: (value (T,), success) of each attempt; at most `most` of each kind are drawn as thin lines,
    the medians are over all of them.
    """
    fig = Figure((WIDE, 3.6), layout="constrained")
    for index, (axis, title) in enumerate(
        zip(fig.subplots(1, 2, sharey=True), ("from the start", "before the end"), strict=True)
    ):
        for success, color, name, dash in (
            (True, BLUE, "success", "-"),
            (False, VERMILLION, "failure", (0, (5, 2))),
        ):
            chosen = [v for v, won in curves if bool(won) is success]
            if not chosen:
                continue
            longest = max(len(v) for v in chosen)
            table = np.full((len(chosen), longest), np.nan)
            for row, v in zip(table, chosen, strict=True):
                row[: len(v)] = v if index == 0 else v[::-1]
            times = (np.arange(longest) + 0.5) * step_s * (1 if index == 0 else -1)
            for row in table[:: -(-len(table) // most)]:
                axis.plot(times[::5], row[::5], color=color, linewidth=0.7, alpha=0.3)
            # Where most attempts have ended, a median tells of the slow ones only.
            enough = np.isfinite(table).sum(0) >= len(chosen) / 2
            middle = np.nanmedian(table[:, enough], axis=0)
            axis.plot(times[enough], middle, color=PAPER, linewidth=5, zorder=3)
            axis.plot(times[enough], middle, color=color, linewidth=2.6, linestyle=dash, zorder=4,
                      label=f"{name}, median of {len(chosen)}")  # fmt: skip
        axis.axhline(-0.5, color=MUTED, linewidth=1, linestyle=":")
        axis.set_title(f"value {title} of the attempt")
        axis.set_xlabel("time since the start [s]" if index == 0 else "time to the end [s]")
    fig.axes[0].set_ylabel("value V")
    fig.axes[0].legend(loc="best")
    return fig


@as_svg
def calibration(value: np.ndarray, true: np.ndarray) -> Figure:
    """What was predicted against what came: pooled ticks, in twelve bins of equally many."""
    fig = Figure((HALF, 3.4), layout="constrained")
    axis = fig.add_subplot()
    order = np.array_split(np.argsort(value, kind="stable"), 12)
    order = [part for part in order if len(part)]
    x = [value[part].mean() for part in order]
    middle = [true[part].mean() for part in order]
    low, high = (np.array([np.quantile(true[part], q) for part in order]) for q in (0.25, 0.75))
    axis.plot([-1, 0], [-1, 0], color=MUTED, linewidth=1, linestyle=":", label="perfect")
    axis.fill_between(x, low, high, color=SKY, alpha=0.3, linewidth=0, label="middle half")
    axis.plot(x, middle, "o-", color=BLUE, linewidth=2, markersize=5, label="mean")
    axis.set_xlim(min(x) - 0.05, 0.02)
    axis.set_ylim(min(min(x), float(low.min())) - 0.05, 0.02)
    axis.set_xlabel("value predicted")
    axis.set_ylabel("return that came")
    axis.legend(loc="upper left")
    return fig


@as_svg
def advantages(
    groups: Mapping[str, np.ndarray], threshold: float, seconds: float, colors: Mapping[str, str]
) -> Figure:
    """Histograms of advantages with the threshold. groups: name → (n,); seconds: as Run.value_seconds."""
    fig = Figure((HALF, 3.6), layout="constrained")
    axis = fig.add_subplot()
    pooled = np.concatenate(list(groups.values())) * seconds
    low, high = np.quantile(pooled, [0.02, 0.98])
    if np.isfinite(threshold):
        low, high = min(low, threshold * seconds), max(high, threshold * seconds)
    room = max(0.05 * (high - low), 1e-3)
    edges = np.linspace(low - room, high + room, 61)
    for index, (name, found) in enumerate(groups.items()):
        inside = np.clip(found * seconds, edges[0], edges[-1])
        share, _ = np.histogram(inside, edges)
        share = share / max(1, len(found))
        if index == 0:
            axis.stairs(share, edges, fill=True, color=colors[name], alpha=0.45, label=name)
        else:
            dash = ("-", (0, (5, 2)), "-")[index % 3]
            axis.stairs(share, edges, color=colors[name], linewidth=1.8, linestyle=dash, label=name)
    if np.isfinite(threshold):
        axis.axvline(threshold * seconds, color=INK, linewidth=1.6)
        for text, offset, side in (("positive →", 5, "left"), ("← negative", -5, "right")):
            axis.annotate(
                text, (threshold * seconds, 1), xycoords=("data", "axes fraction"), xytext=(offset, -10),
                textcoords="offset points", ha=side, fontsize=9,
            )  # fmt: skip
    axis.set_xlabel("advantage, as seconds of attempt gained or lost")
    axis.set_ylabel("share of ticks")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.12)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    fig.legend(loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.4)
    return fig


@as_svg
def periods(series: Mapping[str, tuple[np.ndarray, np.ndarray]], wanted_ms: float) -> Figure:
    """Times between commands, on a logarithmic count so that a single late tick can be seen.

    series: name → (bin edges in ms, counts); the first is drawn filled, others as outlines.
    """
    fig = Figure((HALF, 3.5), layout="constrained")
    axis = fig.add_subplot()
    seen = [wanted_ms - 3, wanted_ms + 3]
    for index, (name, (edges, counts)) in enumerate(series.items()):
        axis.stairs(
            counts,
            edges,
            fill=index == 0,
            color=SKY if index == 0 else INK,
            linewidth=1.4,
            baseline=0.5,
            label=name,
        )
        at = np.flatnonzero(counts)
        seen += [edges[at[0]] - 1, edges[at[-1] + 1] + 1] if len(at) else []
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.5)
    axis.set_xlim(min(seen), max(seen))
    axis.axvline(wanted_ms, color=INK, linewidth=1.2, linestyle=":")
    axis.set_xlabel("time from one command to the next [ms]")
    axis.set_ylabel("commands (log scale)")
    fig.legend(loc="outside upper left", ncols=2, handlelength=1.5, columnspacing=1.4)
    return fig


@as_svg
def curves(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Figure:
    """Training losses. panels: title → line's name → log entries with "step" and "loss"."""
    fig = Figure((WIDE, 2.9), layout="constrained")
    colors, dashes = (GREY, ORANGE, BLUE, PURPLE, GREEN, SKY), ("-", (0, (5, 2)), (0, (2, 1.5)))
    subplots = fig.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, lines) in zip(subplots, panels.items(), strict=True):
        for index, (name, log) in enumerate(lines.items()):
            axis.plot([e["step"] for e in log], [e["loss"] for e in log], color=colors[index % len(colors)],
                      linestyle=dashes[index % len(dashes)], linewidth=1.8, label=name)  # fmt: skip
        if all(e["loss"] > 0 for log in lines.values() for e in log):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(title)
        axis.set_xlabel("optimiser step")
        axis.legend(loc="upper right")
    subplots[0].set_ylabel("loss")
    return fig


@as_svg
def stacked(
    rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[tuple[str, str, str]], xlabel: str
) -> Figure:
    """Horizontal bars of several parts. rows: (name, length of each part); parts: (name, colour, hatch)."""
    fig = Figure((WIDE, 1.15 + 0.36 * len(rows)), layout="constrained")
    axis = fig.add_subplot()
    for y, (_, lengths) in enumerate(rows):
        left = 0.0
        for length, (_, color, hatch) in zip(lengths, parts, strict=True):
            axis.barh(-y, length, 0.66, left=left, color=color, hatch=hatch or None, edgecolor=PAPER)
            left += length
        axis.annotate(f"{left:.1f}", (left, -y), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks([-y for y in range(len(rows))], [name for name, _ in rows])
    axis.tick_params(axis="y", left=False, labelcolor=INK)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_xlim(0, max(sum(lengths) for _, lengths in rows) * 1.08 or 1)
    axis.set_xlabel(xlabel)
    known = [Patch(facecolor=c, hatch=hatch or None, edgecolor=PAPER, label=n) for n, c, hatch in parts]
    fig.legend(handles=known, loc="outside upper left", ncols=len(parts), handlelength=1.5, columnspacing=1.4)
    return fig
