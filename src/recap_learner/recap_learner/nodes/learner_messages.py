"""How a learner stands, as messages and lines of /diagnostics."""

from __future__ import annotations

from collections.abc import Iterator

from builtin_interfaces.msg import Time
from recap_interfaces.msg import LearnerState, TrainingCurve

from recap_learner.learner import Learner
from recap_learner.training.logs import Point
from recap_station.nodes.base import ERROR, OK, WARN, Status

COUNTS = (
    "attempts", "demonstrations", "fresh", "successes", "failures", "discarded", "unknown", "corrected",
)  # fmt: skip


def curve_message(model: str, point: Point, stamp: Time) -> TrainingCurve:
    curve = TrainingCurve(model=model, step=point.step, names=list(point.values))
    curve.values = [float(value) for value in point.values.values()]
    curve.header.stamp = stamp
    return curve


def state_message(learner: Learner) -> LearnerState:
    """Without a stamp."""
    now, data, work = learner.standing, learner.data, learner.work
    state = LearnerState(run=str(learner.run or ""), message=text(learner))
    if work is not None:
        training = work.kind == "training"
        state.state = LearnerState.TRAINING if training else LearnerState.EVALUATING
        state.stage, state.progress = work.note, round(float(work.progress), 2)
    elif now.withheld:
        state.state = LearnerState.WITHHELD
    elif now.error:
        state.state = LearnerState.FAILED
    for name in COUNTS:
        setattr(state, name, getattr(data, name))
    state.hours, state.problems = float(data.hours), list(data.problems)
    state.offered, state.withheld, state.reasons = now.offered, now.withheld, list(now.reasons)
    return state


def text(learner: Learner) -> str:
    """One line for a person: the work under way, what waits for a word, what failed; else the data."""
    now, work, words = learner.standing, learner.work, []
    if work is not None:
        words.append(f"{work.kind}, {work.progress:.0%}: {work.note}")
    if now.withheld:
        words.append(withheld(learner))
    if now.error:
        words.append(f"training failed: {now.error}")
    if not words:
        words.append(f"offered {now.offered}" if now.offered else learner.data.text())
    return "; ".join(words)


def withheld(learner: Learner) -> str:
    now = learner.standing
    return f"{now.withheld} is not offered: {'; '.join(now.reasons)}; decide_checkpoint can accept it"


def statuses(learner: Learner, waits_for: str) -> Iterator[Status]:
    """waits_for: what a good checkpoint waits for that was not offered yet."""
    now, data, work = learner.standing, learner.data, learner.work
    if learner.settings.bags is not None:
        level = WARN if data.problems or data.unknown or learner.trouble else OK
        counts = {name: getattr(data, name) for name in (*COUNTS, "hours")}
        yield Status("data", level, learner.trouble or data.text(), counts)
    if work is not None:
        done = f"{work.kind}: {work.progress:.0%} {work.note}"
        yield Status("training", OK, done, {"progress": work.progress})
    elif now.error:
        yield Status("training", ERROR, now.error)
    else:
        yield Status("training", OK, f"last: {now.made}" if now.made else "idle")
    if now.withheld:
        yield Status("offer", WARN, withheld(learner))
    elif now.to_offer:
        yield Status("offer", WARN, f"{now.to_offer} waits for {waits_for}")
    elif now.offered:
        yield Status("offer", OK, "; ".join([f"{now.offered} offered", *learner.notes]))
