"""Second part of the report: single attempts, picture by picture."""

from __future__ import annotations

from functools import partial
from html import escape

import numpy as np

from recap.report import figures, page
from recap.report.attempt_figure import (
    NEGATIVE,
    TREND_COLOR,
    TREND_MARK,
    Attempt,
    draw_attempt,
    key_moments,
)
from recap.report.missing import Missing
from recap.report.result import REASONS
from recap.report.run import EpisodeLabels, Run
from recap_learner.data.episodes import Episode

PICTURES = 10  # in a camera strip
_FORCED = f"repeating-linear-gradient(45deg,{figures.GREEN} 0 3px,#fff 3px 4px)"


def show(run: Run) -> str:
    rollouts = run.rollouts
    live = [e for e in rollouts if run.is_live(e)]
    alone = [e for e in rollouts if not run.is_live(e) and not e.correction.any()]
    chosen = (
        (
            "Live over ROS 2, with a person watching",
            max(live, key=_most_telling, default=None),
            "No live attempt has been converted.",
        ),
        (
            "A success of the policy alone",
            _middle([e for e in alone if e.info.success]),
            "No uncorrected rollout succeeded.",
        ),
        (
            "A failure of the policy alone",
            _middle([e for e in alone if not e.info.success]),
            "No uncorrected rollout failed.",
        ),
    )
    intro = page.remark(
        "Of each tenth of an attempt the moment at which the value changes fastest, as the first camera saw "
        "it (the dots on the curve), and under it what the value function makes of each moment: 0 is "
        "done, −0.5 is where a whole attempt's time is still needed, lower means that it expects to "
        "fail. The two attempts without a person are those of middle length, not the prettiest."
    )
    key = page.key(
        [
            (TREND_COLOR[1], f"{TREND_MARK[1]} value rises: it goes well"),
            (TREND_COLOR[0], f"{TREND_MARK[0]} wavers"),
            (TREND_COLOR[-1], f"{TREND_MARK[-1]} falls: something went wrong"),
            (figures.PURPLE + "66", "a person commands"),
            (figures.GREY + "66", "the robot is held still"),
            (figures.GREEN, "label positive"),
            (NEGATIVE, "label negative"),
            (_FORCED, "positive because a person corrected"),
        ]
    )
    return intro + key + "".join(page.part(partial(_attempt, run, *c), c[0]) for c in chosen)


def _most_telling(episode: Episode) -> tuple[bool, bool, float]:
    """Corrected ones before others, then successes, then those that a person commanded a third of."""
    share = float(episode.correction.mean())
    return share > 0, episode.info.success, -abs(share - 0.3)


def _middle(episodes: list[Episode]) -> Episode | None:
    episodes = sorted(episodes, key=lambda e: (len(e), e.info.id))
    return episodes[len(episodes) // 2] if episodes else None


def _attempt(run: Run, title: str, episode: Episode | None, otherwise: str) -> str:
    if episode is None:
        raise Missing(otherwise)
    info, remarks = episode.info, []
    nothing = np.empty(0, np.float32)
    labels = EpisodeLabels(nothing, nothing, np.empty(0, bool), np.empty(0, bool))
    try:
        labels = run.labels[0][info.id]
    except (Missing, KeyError):
        remarks.append("It has no labels yet.")
    pictures: list[np.ndarray] = []
    moments = key_moments(labels.value, len(episode), PICTURES, info.station.step_s)
    try:
        pictures = run.pictures(episode, moments)
    except (ValueError, OSError) as error:
        remarks.append(f"Its pictures cannot be read: {error}.")
    shown = run.live_value(episode) if pictures and run.is_live(episode) else (nothing, nothing)
    if len(shown[0]):
        remarks.append(
            "Grey dashes: what the value function of that time, which knew demonstrations only, said live."
        )
    svg = draw_attempt(
        Attempt(
            step_s=info.station.step_s,
            value=labels.value,
            pace=1.0 / run.value_seconds,
            indicator=labels.indicator,
            forced=labels.forced,
            correction=episode.correction,
            held=episode.source == "hold",
            stage=episode.stage,
            pictures=pictures,
            moments=moments.tolist(),
            shown=shown,
        )
    )
    ended = "Success" if info.success else f"Failure ({REASONS.get(info.reason, info.reason)})"
    caption = f"{ended} after {episode.duration_s:.1f} s, start state {info.seed}"
    if episode.correction.any():
        caption += f", a person commanded {page.percent(float(episode.correction.mean()))} of the time"
    caption = escape(" ".join([f"{caption}.", *remarks]))
    bag = escape(info.bag.removeprefix("../"))
    return page.picture(
        svg, f"Camera strip and value curve: {title}", f"{caption} Bag: <code>{bag}</code>", title, wide=True
    )
