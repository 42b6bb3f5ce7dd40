"""The picture of one attempt: camera strip, value curve, sub-tasks and labels on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from recap.report.style import (
    GREEN,
    GREY,
    MUTED,
    ON_TINT,
    ORANGE,
    PAPER,
    PURPLE,
    VERMILLION,
    WIDE,
    as_svg,
)

NEGATIVE = "#f0c3a3"  # a tick labelled negative
PICTURE_PX = 192  # width of each picture in the strip
TREND_COLOR = {1: GREEN, 0: ORANGE, -1: VERMILLION}
TREND_MARK = {1: "▲", 0: "◆", -1: "▼"}


def trend(value: np.ndarray, step_s: float, pace: float) -> np.ndarray:
    """Whether the value rises (1), falls (−1) or wavers (0) around each tick → (T,) int.

    value: (T,) at ticks of step_s seconds; pace: rise in a second of an attempt that goes as well as was
    expected. Judged on the change over one second: more than half the pace, up or down, counts.
    """
    slope = _slope(value, step_s)
    return np.where(slope > 0.5 * pace, 1, np.where(slope < -0.5 * pace, -1, 0))


def key_moments(value: np.ndarray, length: int, count: int, step_s: float) -> np.ndarray:
    """The most telling tick of each of `count` equal parts of an attempt → (count,) int: where the value
    rises or falls fastest; without a value ((0,)) the middle of each part."""
    edges = np.linspace(0, length, count + 1).astype(int)
    parts = [np.arange(a, max(b, a + 1)).clip(max=length - 1) for a, b in pairwise(edges)]
    if len(value) != length:
        return np.array([part[len(part) // 2] for part in parts])
    steep = np.abs(_slope(value, step_s))
    return np.array([part[np.argmax(steep[part])] for part in parts])


def _slope(value: np.ndarray, step_s: float) -> np.ndarray:
    """Change of the value per second, over the second around each tick."""
    half = max(1, round(0.5 / step_s))
    at = np.arange(len(value))
    after, before = np.minimum(at + half, len(value) - 1), np.maximum(at - half, 0)
    return (value[after] - value[before]) / (np.maximum(after - before, 1) * step_s)


def spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """Runs of True in (T,) bool → half-open (start, end) each."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask.astype(bool), False].astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@dataclass(frozen=True)
class Attempt:
    """One attempt as it is drawn; T ticks of step_s seconds. Empty arrays where something is not known.

    value (T,); indicator, forced, correction, held (nobody commanded) (T,) bool; stage (T,) str;
    pictures: images (H, W, 3), one of each of equal parts of the attempt, at the ticks `moments`; shown:
    times and values that were published live; pace as in `trend`.
    """

    step_s: float
    value: np.ndarray
    pace: float
    indicator: np.ndarray
    forced: np.ndarray
    correction: np.ndarray
    held: np.ndarray
    stage: np.ndarray
    pictures: list[np.ndarray] = field(default_factory=list)
    moments: Sequence[int] = ()
    shown: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))


@as_svg
def draw_attempt(a: Attempt) -> Figure:
    """Camera strip, value curve, sub-tasks and labels on one time axis."""
    left, right, end = 0.95, 0.12, len(a.correction) * a.step_s
    width = WIDE - left - right
    strip = 0.0
    if a.pictures:
        high, wide = a.pictures[0].shape[:2]
        strip = width / len(a.pictures) * high / wide
    heights = [strip, 2.3, 0.24, 0.24]
    gaps = [0.3 if a.correction.any() else 0.05, 0.08, 0.1, 0.06]
    total = sum(heights) + sum(gaps) + 0.5
    fig = Figure((WIDE, total))
    axes: list[Any] = []  # None in place of a strip without height
    top = total
    for gap, height in zip(gaps, heights, strict=True):
        top -= gap + height
        box = (left / WIDE, top / total, width / WIDE, height / total)
        axes.append(fig.add_axes(box) if height else None)
    pictures, curve, stages, labels = axes
    for axis in axes:
        if axis is not None:
            axis.set_xlim(0, end)
    if pictures is not None:
        _strip(pictures, a, end)
    _value_curve(curve, a, end)
    _band(stages, "sub-task", _stage_blocks(a))
    _band(labels, "label", _label_blocks(a))
    labels.tick_params(labelbottom=True, bottom=True)
    labels.set_xlabel("time since the start of the attempt [s]")
    _takeovers(pictures if pictures is not None else curve, a, end)
    return fig


def _takeovers(axis: Axes, a: Attempt, end: float) -> None:
    """A word above the axis where a person took over; left out where it would cover the last one."""
    free = 0.0
    for start, _ in spans(a.correction):
        at = start * a.step_s / end
        if at < free:
            continue
        late = at > 0.85
        axis.annotate(
            "a person takes over ▾" if late else "▾ a person takes over",
            (start * a.step_s, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4 if late else -4, 5),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=9,
            color=PURPLE,
            weight="bold",
        )
        free = at + 0.15


def _strip(axis: Axes, a: Attempt, end: float) -> None:
    axis.set_axis_off()
    part = end / len(a.pictures)
    way = trend(a.value, a.step_s, a.pace)
    for i, picture in enumerate(a.pictures):
        # About two pixels to one of the screen, whatever size the camera gives.
        size = (PICTURE_PX, round(PICTURE_PX * picture.shape[0] / picture.shape[1]))
        finer = picture.shape[1] > PICTURE_PX
        scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if finer else cv2.INTER_CUBIC)
        edge = 0.012 * part
        tick = a.moments[i]
        box = (i * part + edge, (i + 1) * part - edge, 0, 1)
        axis.imshow(scaled, extent=box, aspect="auto", interpolation="none", zorder=1)
        color, mark = _moment(a, way, tick)
        axis.add_patch(
            Rectangle(
                (box[0], 0), box[1] - box[0], 1, fill=False, zorder=2, clip_on=False,
                edgecolor=color, linewidth=3.0,
            )
        )  # fmt: skip
        axis.text(
            box[0] + 0.05 * part, 0.06, f"{(tick + 0.5) * a.step_s:.1f} s {mark}", fontsize=8, color="white",
            zorder=3, bbox={"facecolor": ON_TINT, "alpha": 0.7, "pad": 1.5, "linewidth": 0},
        )  # fmt: skip
    axis.set_xlim(0, end)
    axis.set_ylim(0, 1)


def _moment(a: Attempt, way: np.ndarray, tick: int) -> tuple[str, str]:
    """Colour and sign of a key frame: of the value's trend, else of whoever commanded."""
    if len(way):
        return TREND_COLOR[int(way[tick])], TREND_MARK[int(way[tick])]
    return (PURPLE, "") if a.correction[tick] else (GREY, "")


def _value_curve(axis: Axes, a: Attempt, end: float) -> None:
    axis.tick_params(labelbottom=False, bottom=False)
    for mask, color in ((a.correction, PURPLE), (a.held, GREY)):
        for start, stop in spans(mask):
            axis.axvspan(start * a.step_s, stop * a.step_s, color=color, alpha=0.2, linewidth=0)
    axis.set_ylabel("value V")
    seen = [a.shown[1], a.value]
    if not sum(len(v) for v in seen):
        axis.text(
            0.5, 0.5, "no value known for this attempt", transform=axis.transAxes, ha="center", color=MUTED
        )
        return
    low = min(float(v.min()) for v in seen if len(v))
    axis.set_ylim(np.floor(10 * (low - 0.03)) / 10, 0.03)
    if len(a.shown[1]):
        axis.plot(*a.shown, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=2)
    if len(a.value) > 1:
        times = (np.arange(len(a.value)) + 0.5) * a.step_s
        points = np.stack([times, a.value], axis=1)
        way = trend(a.value, a.step_s, a.pace)
        runs = np.flatnonzero(np.r_[True, np.diff(way) != 0])
        lines = [points[s : e + 1] for s, e in zip(runs, [*runs[1:], len(points)], strict=True)]
        colors = [TREND_COLOR[int(way[s])] for s in runs]
        axis.add_collection(LineCollection(lines, colors=colors, linewidths=2.6, capstyle="round", zorder=3))
        for tick in a.moments if a.pictures else ():
            color, _ = _moment(a, way, tick)
            axis.plot(
                times[tick], a.value[tick], "o", markersize=7, color=color, markeredgecolor=PAPER, zorder=4
            )
    axis.text(0.006, 0.96, "0 = done", transform=axis.transAxes, va="top", fontsize=8.5, color=MUTED)


@dataclass(frozen=True)
class _Block:
    start: float
    end: float
    color: str
    text: str = ""
    hatch: str = ""


def _stage_blocks(a: Attempt) -> list[_Block]:
    starts = [i for i in range(len(a.stage)) if i == 0 or a.stage[i] != a.stage[i - 1]]
    names: dict[str, str] = {}
    shades = ["#d6dde2", "#b9c6cf", "#9fb2be", "#c9d8cf", "#dcd3c4"]
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(a.stage)], strict=True):
        name = str(a.stage[start])
        color = names.setdefault(name, shades[len(names) % len(shades)]) if name else PAPER
        blocks.append(_Block(start * a.step_s, end * a.step_s, color, name))
    return blocks


def _label_blocks(a: Attempt) -> list[_Block]:
    blocks = []
    for mask, color, text, hatch in (
        (a.indicator & ~a.forced, GREEN, "positive", ""),
        (~a.indicator, NEGATIVE, "negative", ""),
        (a.forced, GREEN, "positive: correction", "////"),
    ):
        for start, end in spans(mask):
            blocks.append(_Block(start * a.step_s, end * a.step_s, color, text, hatch))
    return blocks


def _band(axis: Axes, name: str, blocks: Sequence[_Block]) -> None:
    axis.grid(False)
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.tick_params(labelbottom=False, bottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    end = axis.get_xlim()[1]
    for b in blocks:
        axis.add_patch(
            Rectangle(
                (b.start, 0),
                b.end - b.start,
                1,
                facecolor=b.color,
                hatch=b.hatch,
                edgecolor=PAPER,
                linewidth=0.4,
            )
        )
        if (b.end - b.start) / end > 0.011 * len(b.text) and not b.hatch:
            dark = b.color == GREEN
            axis.text((b.start + b.end) / 2, 0.46, b.text, ha="center", va="center", fontsize=8.5,
                      color="white" if dark else ON_TINT)  # fmt: skip
    if not blocks:
        axis.text(0.0, 0.46, " not known", va="center", fontsize=8.5, color=MUTED)
