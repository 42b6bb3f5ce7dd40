"""Whether a new checkpoint may be offered to the robot: its value function's gates, and its attempts.

    python -m recap_learner.judging --policy demo/iteration_02/policy --current demo/iteration_01/policy

Compares the attempts of both policies: those of --evaluations, made on the same start states (paired), else
what was recorded of both. Prints one JSON line with reasons not to offer it, and notes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recap_learner.background import say
from recap_learner.data.episodes import ConversionError
from recap_learner.evaluation.evaluation import Evaluation, EvaluationError, compare, read_evaluation
from recap_learner.evaluation.recorded_evaluation import evaluate_recorded
from recap_learner.watching import Verdict, judge
from recap_policy.description import CheckpointError, read

FEWEST = 5  # recorded attempts of each policy; fewer tell nothing apart


def judge_checkpoint(
    policy: Path, current: Path | None, before: Path | None, evaluations: Path | None, store: Path | None
) -> Verdict:
    """policy: the new one; current: in use; before: in use before that one; evaluations: folder of
    evaluations of both; store: of recorded episodes. What is not there says nothing."""
    made = _evaluations(evaluations) if evaluations else []
    comparison = None
    if current is not None and current != policy:
        comparison = _compare(_of(made, current), _of(made, policy))
        if comparison is None and store is not None:
            comparison = _recorded(store, current, policy)
    last_swap = None
    if comparison is None and store is not None and current is not None and before not in (None, current):
        assert before is not None
        last_swap = _recorded(store, before, current)
    return judge(gates_of(policy), comparison, last_swap)


def gates_of(policy: Path) -> list[str] | None:
    """What the value function fails by whose labels the policy was trained; None where it has no report."""
    try:
        data = json.loads((policy.parent / "value.json").read_text())
    except (OSError, ValueError):
        return None
    lines = list(data.get("problems", []))
    for task, report in data.get("by_task", {}).items():
        lines += [f"{task}: {line}" for line in report.get("problems", [])]
    return lines


def _recorded(store: Path, first: Path, second: Path) -> dict[str, Any] | None:
    """What the recorded attempts of two policies say; None where there are too few."""
    sides: list[Evaluation] = []
    for policy in (first, second):
        try:  # headless recordings name the folder, live ones the identity
            [found] = evaluate_recorded([store], 0.0, wanted={str(policy): read(policy).identity})[0]
        except (ConversionError, EvaluationError, CheckpointError, ValueError):
            return None
        if len(found.attempts) < FEWEST:
            return None
        sides.append(found)
    return _compare(*sides)


def _compare(first: Evaluation | None, second: Evaluation | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return None
    named = [replace(e, name="/".join(Path(e.checkpoint).parts[-2:]) or e.name) for e in (first, second)]
    return compare(*named)


def _evaluations(folder: Path) -> list[Evaluation]:
    found = []
    for file in sorted(folder.glob("*.json")):
        found.append(read_evaluation(file))
    return found


def _of(evaluations: Iterable[Evaluation], policy: Path) -> Evaluation | None:
    try:
        identity = read(policy).identity
    except CheckpointError:
        return None
    return next((e for e in evaluations if e.identity == identity), None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="recap_learner.judging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--current", type=Path, help="of the one in use")
    parser.add_argument("--before", type=Path, help="of the one before it")
    parser.add_argument("--evaluations", type=Path, help="folder of evaluations (./recap eval --out)")
    parser.add_argument("--store", type=Path, help="folder of recorded episodes")
    given = parser.parse_args(argv)
    try:
        found = judge_checkpoint(given.policy, given.current, given.before, given.evaluations, given.store)
    except (OSError, ValueError) as error:
        say({"error": " ".join(str(error).split())})
        return 1
    say({"reasons": list(found.reasons), "notes": list(found.notes)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
