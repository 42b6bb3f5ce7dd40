"""From advantages to the indicator: per-task thresholds, forced positives.

Labels never touch the episodes: each labelling run writes sidecars under its tag (labels.py), so another
threshold relabels without moving data or running a model. Everything here is arithmetic on flat arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from recap_learner.value.returns import END_RULES, Normalizer, advantages, correction_bound
from recap_learner.value.ticks import EpisodeValues, Ticks

FORCED = ("corrections", "all", "none")
FAILURE_POINTS = ("", "marked", "estimated")
_LEAST_HOPE = 0.1  # below it, what a success would be like rests on next to nothing
SPEEDS = ("expected", "given_success")


@dataclass(frozen=True)
class LabelRule:
    """How frames become positive.

    lookahead: N of the advantage in ticks (paper, post-training: 50 = 1 s; pre-training: the whole episode,
    given as 0). positive_fraction: share of the threshold's frames that lie above it (paper: 0.4 of the
    iteration's autonomous frames, 0.3 of demonstrations in pre-training, 0.1 where demonstrations are good
    but slow); it is taken over all of them, not 10,000 drawn at random. whole_episode_quantile: if set, a
    frame must also lie above this quantile of the whole-episode advantage: speed is judged among frames that
    the outcome does not condemn (our addition; failures often show later than N). threshold: ε itself, in
    place of a quantile. end: see `returns.advantages`. force: what is positive whatever its advantage:
    "corrections" (paper), "all" (the paper's SFT stage) or "none".

    failure_point: if set, a failure condemns only what came after it (choice): frames from that point on are
    negative, and lookaheads from before end there, as if the attempt had been cut. "marked": where a person
    marked it (`./recap label mark STORE EPISODE failed SECONDS`); "estimated": there, and in other failures
    where the value function last came to hold failure for more probable than success. Failures without a
    point are labelled as if this were not set.

    speed: what a lookahead asks (our addition). "expected" (paper): V, in which a small change of the
    probability of failure weighs more than any speed, since a failure costs as much as a whole attempt.
    "given_success": E[R | success], how soon success would come, were it to come; what risks too much is left
    to whole_episode_quantile, and a frame of a failure whose lookahead reaches its end is negative.

    Raises ValueError on unknown words and shares outside 0..1.
    """

    lookahead: int = 50
    positive_fraction: float = 0.4
    whole_episode_quantile: float | None = None
    threshold: float | None = None
    end: str = "sum"
    force: str = "corrections"
    failure_point: str = ""
    speed: str = "expected"

    def __post_init__(self) -> None:
        words = {"end": END_RULES, "force": FORCED, "failure_point": FAILURE_POINTS, "speed": SPEEDS}
        for name, known in words.items():
            if (found := getattr(self, name)) not in known:
                raise ValueError(f"labels: {name} is {found!r}, wanted one of {', '.join(known)}")
        quantile = self.whole_episode_quantile
        if not 0 < self.positive_fraction < 1 or not (quantile is None or 0 <= quantile < 1):
            raise ValueError(
                f"labels: positive fraction {self.positive_fraction} and whole-episode quantile {quantile}, "
                "wanted shares between 0 and 1"
            )
        if self.lookahead < 0:
            raise ValueError(f"labels: lookahead is {self.lookahead} ticks, wanted 0 (to the end) or more")


@dataclass(frozen=True)
class Threshold:
    """ε_ℓ of one task, and the whole-episode advantage that a frame must lie above, where the rule asks."""

    advantage: float
    whole: float | None = None


@dataclass(frozen=True)
class Labels:
    """Indicator of every tick, with what it was made from. Flat: columns (N,) of `ticks`' ticks, value,
    advantage float32, indicator, forced bool."""

    ticks: Ticks
    rules: Mapping[str, LabelRule]  # by task
    thresholds: Mapping[str, Threshold]
    flat: Mapping[str, np.ndarray]

    @property
    def rule(self) -> LabelRule:
        """Of the first task, the only one but in pre-training."""
        return self.rules[self.ticks.task[0]]

    @property
    def threshold(self) -> float:
        return self.thresholds[self.ticks.task[0]].advantage

    @property
    def whole_threshold(self) -> float | None:
        return self.thresholds[self.ticks.task[0]].whole

    @cached_property
    def value(self) -> dict[str, np.ndarray]:
        """Episode → (T,), as the next three."""
        return self.ticks.split(self.flat["value"])

    @cached_property
    def advantage(self) -> dict[str, np.ndarray]:
        return self.ticks.split(self.flat["advantage"])

    @cached_property
    def indicator(self) -> dict[str, np.ndarray]:
        return self.ticks.split(self.flat["indicator"])

    @cached_property
    def forced(self) -> dict[str, np.ndarray]:
        return self.ticks.split(self.flat["forced"])

    def by_episode(self) -> dict[str, dict[str, np.ndarray]]:
        """Episode → column → (T,), as `Store.save_labels` takes them."""
        names = ("value", "advantage", "indicator", "forced")
        return {e: {name: getattr(self, name)[e] for name in names} for e in self.ticks.episode}

    @property
    def positive_fraction(self) -> float:
        return float(np.mean(self.flat["indicator"]))

    def summary(self) -> dict[str, Any]:
        """Shares and thresholds, for a report. forced_that_would_be_negative: share of the forced frames;
        None without one."""
        ticks, forced = self.ticks, self.flat["forced"]
        above = np.empty(len(forced), bool)
        for task in dict.fromkeys(ticks.task):
            _, rows = ticks.of_task(task)
            above[rows] = self.flat["advantage"][rows] > self.thresholds[task].advantage
        sources = np.array([s or "unknown" for s in ticks.source], object)
        shares = {}
        for source in dict.fromkeys(sources.tolist()):
            shares[source] = float(self.flat["indicator"][ticks.spread(sources == source)].mean())
        found: dict[str, Any] = {
            "threshold": _finite(self.threshold),
            "positive": self.positive_fraction,
            "positive_by_source": shares,
            "forced": float(forced.mean()),
            "forced_that_would_be_negative": float(1 - above[forced].mean()) if forced.any() else None,
        }
        if len(self.thresholds) > 1:
            found["thresholds"] = {task: _finite(t.advantage) for task, t in self.thresholds.items()}
        return found


def label(
    episodes: Sequence[EpisodeValues],
    norm: Normalizer | Mapping[str, Normalizer],
    rule: LabelRule | Mapping[str, LabelRule],
) -> Labels:
    """`label_ticks` of single episodes. norm, rule: of all of them, or by task."""
    norms = {e.task: norm for e in episodes} if isinstance(norm, Normalizer) else norm
    return label_ticks(Ticks.of(episodes, norms), rule)


def label_ticks(ticks: Ticks, rule: LabelRule | Mapping[str, LabelRule]) -> Labels:
    """I_t = [A_t > ε_ℓ], with ε_ℓ the task's quantile (eq. 3 and section IV-B); corrections are True.

    A frame of a failure whose lookahead reaches its end is negative: the return there is −C_fail whatever
    came before, so that a value which rightly expected worse would call failing good news.
    rule: of all tasks, or by task. Raises ValueError if no frame can set a task's threshold, if no
    autonomous frame of a task lies above it, and for a task without a rule.
    """
    rules = {task: rule for task in ticks.task} if isinstance(rule, LabelRule) else dict(rule)
    if missing := sorted(set(ticks.task) - rules.keys()):
        raise ValueError(f"labels: no rule for task {missing[0]!r}, found {', '.join(sorted(rules))}")
    count = len(ticks.value)
    flat = {
        "value": ticks.value,
        "advantage": np.empty(count, np.float32),
        "indicator": np.empty(count, bool),
        "forced": np.empty(count, bool),
    }
    thresholds = {}
    for task in dict.fromkeys(ticks.task):
        part, rows = ticks.of_task(task)
        thresholds[task], columns = _label_task(part, ticks.norms[task], rules[task], task)
        for name, column in columns.items():
            flat[name][rows] = column
    return Labels(ticks, {task: rules[task] for task in thresholds}, thresholds, flat)


def _label_task(
    ticks: Ticks, norm: Normalizer, rule: LabelRule, task: str
) -> tuple[Threshold, dict[str, np.ndarray]]:
    starts, success = ticks.starts, ticks.success
    norms = [norm] * len(success)
    point = _failure_points(ticks, rule)
    place = np.arange(starts[-1])
    # Places at which a lookahead ends; the length of the arrays where it does not.
    at_point = np.where(place < ticks.spread(point), ticks.spread(point), len(place))
    at_correction = correction_bound(ticks.correction, starts)

    def ahead(lookahead: int | None, bound: np.ndarray, given_success: bool = False) -> np.ndarray:
        value, end = ticks.value, success
        if given_success:
            value, end = value_given_success(ticks, norm), np.ones_like(success)
        return advantages(value, starts, end, lookahead, norms, bound, rule.end)

    whole, given_success = ahead(None, at_point), rule.speed == "given_success"
    advantage = whole
    if rule.lookahead:
        advantage = ahead(rule.lookahead, np.minimum(at_point, at_correction), given_success)
    elif given_success:
        advantage = ahead(None, at_point, given_success)
    autonomous = ~ticks.correction
    judged = np.flatnonzero(ticks.spread(ticks.sets_threshold) & autonomous)

    allowed = np.ones(len(place), bool)
    whole_threshold = None
    if rule.whole_episode_quantile is not None:
        whole_threshold = float(np.quantile(whole[_some(judged, task)], rule.whole_episode_quantile))
        allowed &= whole > whole_threshold
    reach = rule.lookahead or (ticks.lengths if given_success else 1)
    last = ticks.spread(np.where(point < len(place), point, starts[1:] - reach))
    allowed &= ticks.spread(success) | (place < last)

    everything = rule.force == "all"
    if rule.threshold is not None:
        threshold = rule.threshold
    elif everything and not len(judged):
        threshold = -np.inf
    else:
        threshold = _threshold(advantage[_some(judged, task)], allowed[judged], rule.positive_fraction)
    positive = (advantage > threshold) & allowed
    if not everything and not (positive & autonomous).any():
        raise ValueError(_no_positives(task, advantage[allowed & autonomous], threshold, success))
    forced = ticks.correction if rule.force == "corrections" else np.full(len(place), everything)
    found = {"advantage": advantage, "indicator": positive | forced, "forced": forced}
    return Threshold(threshold, whole_threshold), found


def value_given_success(ticks: Ticks, norm: Normalizer) -> np.ndarray:
    """E[R | success, o] of every tick of one task → (N,) float32: the part of the value's distribution that
    lies at returns of successes, for itself."""
    if ticks.failed is None:
        raise ValueError(_unknown_failures("speed given success cannot be told"))
    chance, part = ticks.failed[:, 0], ticks.failed[:, 1]
    found = (ticks.value - part) / np.maximum(1.0 - chance, _LEAST_HOPE)
    return np.clip(found, -norm.max_steps / norm.scale, 0.0).astype(np.float32)


def _unknown_failures(what: str) -> str:
    return (
        f"labels: {what} from values that were kept without the probability of failure: train the value "
        "function anew with C_fail rule 'ordered' and a ratio of at least 1"
    )


def _failure_points(ticks: Ticks, rule: LabelRule) -> np.ndarray:
    """Place in the flat arrays at which each episode was lost → (E,); their length where it was not, or where
    nobody says."""
    first, none = ticks.starts[:-1], ticks.starts[-1]
    point = np.full(len(first), none)
    if rule.failure_point == "estimated":
        if ticks.failed is None:
            raise ValueError(_unknown_failures("failure points must be marked, they cannot be estimated"))
        place = np.arange(none)
        hopeful = np.where(ticks.failed[:, 0] <= 0.5, place, ticks.spread(first) - 1)
        lost = np.maximum.reduceat(hopeful, first) + 1
        point = np.where(lost < ticks.starts[1:], lost, none)
    if rule.failure_point:
        marked = (ticks.failed_at >= 0) & (ticks.failed_at < ticks.lengths)
        point = np.where(marked, first + ticks.failed_at, point)
    return np.where(ticks.success, none, point)


def _some(judged: np.ndarray, task: str) -> np.ndarray:
    if not len(judged):
        of = f" of {task}" if task else ""
        raise ValueError(
            f"no autonomous frame{of} to set the threshold from: wanted a rollout (or a demonstration, in "
            "pre-training) in which nobody took over throughout"
        )
    return judged


def _threshold(advantage: np.ndarray, allowed: np.ndarray, fraction: float) -> float:
    """ε such that `fraction` of all frames are allowed and lie above it; as many as there are, if fewer."""
    share = min(1.0, fraction * len(allowed) / max(1, int(allowed.sum())))
    return float(np.quantile(advantage[allowed], 1.0 - share)) if allowed.any() else float(np.inf)


def _no_positives(task: str, may: np.ndarray, threshold: float, success: np.ndarray) -> str:
    of = f"{task}: " if task else ""
    if not len(may):
        return (
            f"{of}labels: every autonomous frame is ruled out, {int((~success).sum())} of {len(success)} "
            "attempts failed: more successes or a shorter lookahead are needed"
        )
    if threshold == np.inf:
        return (
            f"{of}labels: every frame that could set the threshold is ruled out, as the end of a failure: "
            "more successes, a shorter lookahead or a lower whole-episode quantile are needed"
        )
    if np.ptp(may) == 0:
        return (
            f"{of}labels: no frame lies above the threshold, for the advantage is {may[0]:.4g} on all frames "
            "that may be positive: the value function says nothing, see its gates"
        )
    return (
        f"{of}labels: no autonomous frame lies above the threshold {threshold:.4g}, the greatest advantage "
        f"is {may.max():.4g}: lower the threshold or give a fraction"
    )


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None
