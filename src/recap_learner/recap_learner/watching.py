"""What a learner that watches a robot decides: which bags to take, when to train, what to offer.

Plain functions over what was found on disk; the node (`nodes/learner_node.py`) and the processes beside it
only look, call these and carry out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TO_LEARN = ("success", "failure")
SETTLE_S = 30.0  # a bag without a metadata.yaml that has not changed for so long has lost its recorder
_TOLD = 3  # how many of a list a sentence names


@dataclass(frozen=True)
class Seen:
    """A bag as it was found. version: changes when the bag does; closed: its recorder has finished it;
    quiet_s: since it last changed."""

    version: str
    closed: bool
    quiet_s: float

    def is_finished(self, settle_s: float = SETTLE_S) -> bool:
        """Whether nobody writes it any more: closed, or left by a recorder that was killed."""
        return self.closed or self.quiet_s >= settle_s


def to_convert(
    found: Mapping[Path, Seen], done: Mapping[Path, str], settle_s: float = SETTLE_S
) -> dict[Path, str]:
    """Bags to take now → version, in the order of their names: finished, and new or changed since they were
    last taken. done: bag → the version that was taken, whether it could be used or not."""
    return {
        bag: seen.version
        for bag, seen in sorted(found.items())
        if seen.is_finished(settle_s) and done.get(bag) != seen.version
    }


@dataclass(frozen=True)
class Attempt:
    """What is counted of one converted attempt. outcome: with people's judgement; corrected: whether a person
    took over."""

    id: str
    outcome: str
    demonstration: bool
    corrected: bool
    duration_s: float


@dataclass(frozen=True)
class DataState:
    """fresh: attempts with an outcome that no training has begun with; problems: bags that cannot be used, a
    line each; hours: of all attempts that are not discarded."""

    attempts: int = 0
    demonstrations: int = 0
    fresh: int = 0
    successes: int = 0
    failures: int = 0
    discarded: int = 0
    unknown: int = 0
    corrected: int = 0
    hours: float = 0.0
    problems: tuple[str, ...] = ()

    def text(self) -> str:
        """One line for a person."""
        words = [
            f"{self.attempts} attempts ({self.demonstrations} demonstrations), {self.fresh} new since the "
            f"last training, {self.successes} succeeded, {self.failures} failed, "
            f"{self.corrected} corrected, {self.hours:.2f} h"
        ]
        if self.unknown:
            words.append(f"{self.unknown} without an outcome (./recap label gives one)")
        if self.problems:
            words.append(f"{len(self.problems)} bags cannot be used, the last: {self.problems[-1]}")
        return "; ".join(words)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> DataState:
        return DataState(**{**data, "problems": tuple(data["problems"])})


def data_state(
    attempts: Iterable[Attempt], trained: Collection[str], problems: Sequence[str] = ()
) -> DataState:
    """Counts. trained: ids of the attempts that the last training began with."""
    own = list(attempts)

    def count(outcome: str) -> int:
        return sum(a.outcome == outcome for a in own)

    known = ("success", "failure", "discarded")
    return DataState(
        attempts=len(own),
        demonstrations=sum(a.demonstration for a in own),
        fresh=sum(a.outcome in TO_LEARN and a.id not in trained for a in own),
        successes=count("success"),
        failures=count("failure"),
        discarded=count("discarded"),
        unknown=sum(a.outcome not in known for a in own),
        corrected=sum(a.corrected and not a.demonstration for a in own),
        hours=sum(a.duration_s for a in own if a.outcome != "discarded") / 3600.0,
        problems=tuple(problems),
    )


def is_due(data: DataState, train_after: int, concurrent: bool) -> bool:
    """Whether to train without being asked: `train_after` new attempts are in (0: never); in concurrent
    training one is enough."""
    wanted = 1 if concurrent else train_after
    return wanted > 0 and data.fresh >= wanted


@dataclass(frozen=True)
class Verdict:
    """Of a new checkpoint. reasons: why it is not to be offered without a person's word, a line each; notes:
    what was found besides."""

    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not self.reasons

    def text(self) -> str:
        return "; ".join([*self.reasons, *self.notes])


def judge(
    gates: Sequence[str] | None,
    comparison: Mapping[str, Any] | None = None,
    last_swap: Mapping[str, Any] | None = None,
) -> Verdict:
    """Whether a checkpoint may be offered.

    gates: what its value function fails, a line each; None: it has none. comparison: of the policy in use and
    the new one, as `evaluation.compare` gives it; None: nothing tells them apart. last_swap: of the policy
    before the one in use and the one in use.
    """
    reasons = [f"value function: {line}" for line in gates or ()]
    notes = [] if gates is not None else ["no report of the value function"]
    if comparison is None:
        notes.append("not evaluated: there are no attempts of it to compare with the policy in use")
    else:
        reasons += worse(comparison)
        if not worse(comparison):
            notes.append(_found(comparison))
    if last_swap is not None and (lines := worse(last_swap)):
        reasons += [f"the last new policy was no gain: {line}" for line in lines]
    return Verdict(tuple(reasons), tuple(notes))


def worse(comparison: Mapping[str, Any]) -> list[str]:
    """In what the second policy does worse than the first beyond the 95 % interval, a line each."""
    first, second = comparison["first"], comparison["second"]
    pairs = "pairs" if comparison.get("paired") else "attempts"
    counts = " and ".join(map(str, comparison["attempts"]))
    lines = []
    low, high = comparison["success_difference_ci95"]
    if high < 0:
        points = 100 * comparison["success_difference"]
        lines.append(
            f"{second} succeeds less often than {first}: {points:+.0f} points "
            f"(95 %: {100 * low:+.0f} to {100 * high:+.0f}, {counts} {pairs})"
        )
    ratio, interval = comparison["throughput_ratio"], comparison["throughput_ratio_ci95"]
    if not lines and ratio is not None and _known(interval) and interval[1] < 1:
        lines.append(
            f"{second} makes fewer successes an hour than {first}: {ratio:.2f} times as many "
            f"(95 %: {interval[0]:.2f} to {interval[1]:.2f}, {counts} {pairs})"
        )
    return lines


def _found(comparison: Mapping[str, Any]) -> str:
    low, high = comparison["success_difference_ci95"]
    return (
        f"against {comparison['first']}: success {100 * comparison['success_difference']:+.0f} points "
        f"(95 %: {100 * low:+.0f} to {100 * high:+.0f})"
    )


def _known(interval: Sequence[float | None] | None) -> bool:
    return interval is not None and all(end is not None and math.isfinite(end) for end in interval)


def some(names: Sequence[str]) -> str:
    """The first few of a list, in words."""
    return ", ".join(names[:_TOLD]) + (f" and {len(names) - _TOLD} more" if len(names) > _TOLD else "")
