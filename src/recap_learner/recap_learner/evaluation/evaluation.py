"""How well a policy does: attempts, what they add up to, two policies compared, and `eval.json` on disk.

The file is described in docs/evaluation.md. Whatever makes attempts writes it (`./recap eval`, the demo, an
iteration), and whatever judges or shows policies reads it. Every number but the attempts can be computed
anew from them; readers do.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recap_learner.evaluation import statistics
from recap_learner.evaluation.sequential import confidence_sequence, sequential_p
from recap_learner.evaluation.statistics import wilson_interval
from recap_station.files import write_json

FORMAT, VERSION = "recap-evaluation", 1


class EvaluationError(ValueError):
    """An evaluation cannot be made, or its file not read. One readable line."""


@dataclass(frozen=True)
class Attempt:
    """One attempt. seed: of the start state, −1 where there is none; correction: share of ticks that a
    person commanded; stage: in which it ended; stages: name → seconds after the start at which it was first
    entered, None where stages were not seen."""

    seed: int
    success: bool
    reason: str
    duration_s: float
    takeovers: int
    correction: float
    style: str = ""
    bag: str = ""
    stage: str = ""
    stages: dict[str, float] | None = None

    def passed(self, stage: str, order: Sequence[str]) -> bool:
        """Whether it succeeded or ever got into a later stage than this one."""
        later = order[order.index(stage) + 1 :]
        return self.success or any(name in (self.stages or {}) for name in later)


@dataclass(frozen=True)
class Evaluation:
    """Attempts of one policy under one setting.

    name: what figures call it; method, iteration: what a report groups by; source: "simulation", "live" or
    "bags"; settings: how the policy was asked (indicator, beta, execute_steps, …); stages: of the task, in
    order; reset_s: time between attempts [s], stated or measured (`reset_from`), part of the throughput if
    count_reset; stopping: rule, planned attempts, why it stopped; notes: warnings for whoever reads it.
    """

    name: str
    attempts: tuple[Attempt, ...]
    checkpoint: str = ""
    identity: str = ""
    method: str = ""
    iteration: int | None = None
    task: str = ""
    station: str = ""
    stages: tuple[str, ...] = ()
    source: str = "simulation"
    settings: Mapping[str, Any] = field(default_factory=dict)
    reset_s: float = 0.0
    reset_from: str = "stated"
    count_reset: bool = False
    stopping: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def counted_reset_s(self) -> float:
        return self.reset_s if self.count_reset else 0.0

    @property
    def early(self) -> bool:
        """Whether its number of attempts depended on what was seen."""
        return bool(self.stopping.get("early"))

    def summary(self) -> dict[str, Any]:
        """As `summarize`; where it might have stopped early the intervals of success rates are confidence
        sequences, which hold nevertheless. The others are as for a number of attempts that was fixed."""
        found = summarize(self.attempts, self.stages, self.counted_reset_s)
        found["success_interval"] = "Wilson"
        if self.early:
            found["success_interval"] = "confidence sequence"
            for name in ("success", "unaided_success"):
                successes = round(found[name] * found["attempts"])
                found[f"{name}_ci95"] = confidence_sequence(successes, found["attempts"])
        return found

    def write(self, path: Path) -> None:
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "attempts"}
        data = {"format": FORMAT, "version": VERSION, **about, "summary": self.summary()}
        write_json(path, finite({**data, "attempts": save_attempts(self.attempts)}))


def read_evaluation(path: Path) -> Evaluation:
    """Read an eval.json, or a bare list of attempts. Raises EvaluationError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}") from error
    where = path.parent.name
    if isinstance(data, list):
        data = {"format": FORMAT, "version": VERSION, "name": where, "attempts": data}
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise EvaluationError(f"{path}: wanted an evaluation (format {FORMAT!r}), found {found!r}")
    if data.get("version") != VERSION:
        raise EvaluationError(f"{path}: version {data.get('version')!r}, wanted {VERSION}")
    known = {f.name for f in fields(Evaluation)}
    try:
        attempts = tuple(load_attempts(data["attempts"]))
        rest: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known
        }
        return Evaluation(**({"name": where} | rest | {"attempts": attempts}))
    except (KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path}: entry missing or wrong: {error}") from error


def save_attempts(attempts: Iterable[Attempt]) -> list[dict[str, Any]]:
    return [asdict(a) for a in attempts]


def load_attempts(rows: Iterable[Mapping[str, Any]]) -> Iterable[Attempt]:
    known = {f.name for f in fields(Attempt)}
    return (Attempt(**{k: v for k, v in row.items() if k in known}) for row in rows)


def summarize(
    attempts: Sequence[Attempt], stages: Sequence[str] = (), reset_s: float = 0.0
) -> dict[str, Any]:
    """What attempts add up to, each number with its 95 % interval: Wilson's for shares of attempts, a
    bootstrap over attempts for the rest. stages: of the task, in order; reset_s: added to every attempt's
    time in the throughput. Raises EvaluationError without attempts."""
    if not attempts:
        raise EvaluationError("wanted at least one attempt, found none")
    n = len(attempts)
    won, times = [a.success for a in attempts], [a.duration_s for a in attempts]
    won_s = [a.duration_s for a in attempts if a.success]
    unaided = sum(a.success and not a.correction for a in attempts)
    share = [a.correction for a in attempts]
    reasons = Counter(a.reason for a in attempts)
    return {
        "attempts": n,
        "successes": sum(won),
        "success": sum(won) / n,
        "success_ci95": wilson_interval(sum(won), n),
        "unaided_success": unaided / n,
        "unaided_success_ci95": wilson_interval(unaided, n),
        "throughput_per_hour": statistics.throughput_per_hour(won, times, reset_s),
        "throughput_ci95": statistics.throughput_interval(won, times, reset_s=reset_s),
        "throughput_reset_s": reset_s,
        "mean_s": sum(times) / n,
        "mean_s_ci95": statistics.mean_interval(times),
        "mean_success_s": sum(won_s) / len(won_s) if won_s else None,
        "mean_success_s_ci95": statistics.mean_interval(won_s) if won_s else None,
        "stages": _stage_successes(attempts, stages),
        "failures": _failures(attempts),
        "reasons": dict(sorted(reasons.items())),
        "takeovers": sum(a.takeovers for a in attempts),
        "takeovers_per_attempt": sum(a.takeovers for a in attempts) / n,
        "takeovers_per_attempt_ci95": statistics.mean_interval([a.takeovers for a in attempts]),
        "correction_share": sum(share) / n,
        "correction_share_ci95": statistics.mean_interval(share),
    }


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """The second against the first: difference in success with its interval and p, ratio of throughputs.

    Paired by start state where both have attempts on the same ones, once each (exact McNemar test, in its
    sequential form where one might have stopped early; Newcombe's interval for pairs, paired bootstrap of
    the ratio); else two independent sets
    (Fisher's exact test, Newcombe's interval).
    """
    sides = [{a.seed: a for a in e.attempts if a.seed >= 0} for e in (first, second)]
    alone = all(len(s) == len(e.attempts) for s, e in zip(sides, (first, second), strict=True))
    shared = [seed for seed in sides[0] if seed in sides[1]] if alone else []
    paired = len(shared) > 0 and len(shared) >= 0.5 * min(len(s) for s in sides)
    if paired:
        one, two = ([side[seed] for seed in shared] for side in sides)
    else:
        one, two = list(first.attempts), list(second.attempts)
    a, b = [x.success for x in one], [x.success for x in two]
    times = [x.duration_s for x in one], [x.duration_s for x in two]
    reset = max(first.counted_reset_s, second.counted_reset_s)
    speeds = [statistics.throughput_per_hour(w, t, reset) for w, t in zip((a, b), times, strict=True)]
    found: dict[str, Any] = {
        "first": first.name,
        "second": second.name,
        "paired": paired,
        "attempts": (len(one), len(two)),
        "success_difference": sum(b) / len(b) - sum(a) / len(a),
        "throughput_ratio": speeds[1] / speeds[0] if speeds[0] else None,
        "throughput_ratio_ci95": statistics.throughput_ratio_interval(
            (a, times[0]), (b, times[1]), paired, reset
        ),
    }
    if paired:
        early = first.early or second.early
        only = (
            sum(x and not y for x, y in zip(a, b, strict=True)),
            sum(y and not x for x, y in zip(a, b, strict=True)),
        )
        return found | {
            "test": "sequential McNemar" if early else "exact McNemar",
            "only_first": only[0],
            "only_second": only[1],
            "p": sequential_p(a, b) if early else statistics.mcnemar_p(*only),
            "success_difference_ci95": statistics.paired_rate_difference_interval(a, b),
        }
    counts = (sum(a), len(a)), (sum(b), len(b))
    return found | {
        "test": "Fisher's exact",
        "p": statistics.fisher_p(*counts),
        "success_difference_ci95": statistics.independent_difference_interval(*counts),
    }


def compare_all(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Each evaluation after the first against the first; p_holm is adjusted for their number."""
    found = [compare(evaluations[0], other) for other in evaluations[1:]]
    adjusted = statistics.holm([one["p"] for one in found])
    return [one | {"p_holm": p} for one, p in zip(found, adjusted, strict=True)]


def verdict(comparison: Mapping[str, Any]) -> str:
    """What a comparison says, in words."""
    low, high = comparison["success_difference_ci95"]
    first, second = comparison["first"], comparison["second"]
    p = comparison.get("p_holm", comparison["p"])
    if p <= 0.05 and comparison["success_difference"]:
        word = "more" if comparison["success_difference"] > 0 else "LESS"
        return f"{second} succeeds {word} often than {first}."
    return (
        f"No difference in success between {first} and {second} can be told; it may lie anywhere between "
        f"{100 * low:+.0f} and {100 * high:+.0f} points."
    )


def _stage_successes(attempts: Sequence[Attempt], order: Sequence[str]) -> dict[str, Any] | None:
    """Of all attempts, how many passed each stage; None where the stages of one were not seen."""
    if not order or any(a.stages is None for a in attempts):
        return None
    found, entered = {}, len(attempts)
    for stage in order:
        passed = sum(a.passed(stage, order) for a in attempts)
        found[stage] = {
            "entered": entered,
            "passed": passed,
            "share": passed / len(attempts),
            "ci95": wilson_interval(passed, len(attempts)),
        }
        entered = passed
    return found


def _failures(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Kinds of failure, by reason and the stage in which the attempt ended, the commonest first."""
    kinds = Counter((a.reason, a.stage) for a in attempts if not a.success)
    return [
        {
            "reason": reason,
            "stage": stage,
            "count": count,
            "share": count / len(attempts),
            "ci95": wilson_interval(count, len(attempts)),
        }
        for (reason, stage), count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    ]


def finite(data: Any) -> Any:
    """The same data with None for what JSON has no number for."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
