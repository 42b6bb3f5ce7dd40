"""One RECAP iteration on a run's folder, as a process of its own.

    python -m recap_learner.improve --run runs/demo --bags bags/

Starts from the run's pre-trained value and policy, learns from its demonstrations, the bags of its
earlier iterations and the given bags (Algorithm 1, step 6), and leaves the next `iteration_NN/`.
Prints one JSON line per step of progress and one with the new checkpoint at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from recap_learner.rounds import Rounds
from recap_learner.stages import Report, StageError, Stages
from recap_learner.training.policy_training import FINETUNING, PolicyTraining
from recap_learner.training.training import Progress
from recap_learner.value.labels import LabelRule
from recap_learner.value.value_training import ValueTraining
from recap_station.files import write_json


@dataclass(frozen=True)
class Improvement:
    """Settings of one iteration, and of the SFT stage before it, which differs only in its labels."""

    value: ValueTraining = ValueTraining()
    policy: PolicyTraining = FINETUNING
    rule: LabelRule = LabelRule(lookahead=50, positive_fraction=0.4, whole_episode_quantile=0.3)
    seed: int = 1


def improve(
    run: Path, k: int, bags: Sequence[Path], how: Improvement, progress: Progress | None = None
) -> dict[str, Any]:
    """Iteration k of a run of one task: value, labels and policy from `bags` → report of each step.

    Raises FileNotFoundError if the run has no pre-trained models to start from.
    """
    task = ""  # the bags know theirs
    with Stages(run, _Told(progress)) as stages:
        do = Rounds(stages, None, [task])
        pretrain = do.pretrain
        tower, v_pre, pi_pre = (
            stages.given(f"the run's pre-trained {part}", [pretrain / part])
            for part in ("vision", "value", "policy")
        )
        do.take(tower)
        data = [do.episodes(task, k, stages.given("bags", bags))]
        v = do.value(task, k, data, v_pre, how.value, how.seed)
        labels = do.labels(task, k, data, v, how.rule)
        policy = do.policy(task, k, data, pi_pre, "recap", labels, how.policy, how.seed)
        report = {"value": v.result, "labels": labels.result, "policy": policy.result}
        write_json(do.folder(task, k) / "report.json", report)
    return report


class _Told:
    """Stages as one progress from 0 to 1."""

    SHARES: ClassVar = {
        "episodes": (0.0, 0.2),
        "value": (0.2, 0.45),
        "labels": (0.45, 0.45),
        "policy": (0.45, 1.0),
    }

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def begin(self, name: str, title: str) -> Report:
        step = name.rpartition(".")[2]
        start, end = self.SHARES[step]

        def report(fraction: float, note: str) -> None:
            if self._progress:
                self._progress(start + (end - start) * fraction, f"{step}: {note}")

        return report

    def end(self, name: str, title: str, seconds: float, before: bool) -> None:
        pass


def next_iteration(run: Path) -> int:
    """The one after the last that has a policy."""
    return max((int(p.parent.name.split("_")[1]) for p in run.glob("iteration_*/policy")), default=0) + 1


def recorded_bags(run: Path) -> list[Path]:
    """The run's own folders of bags: demonstrations and every iteration's rollouts."""
    folders = [run / "demonstrations"]
    for part in ("live", "bags"):
        folders += sorted(run.glob(f"iteration_*/{part}"))
    return [folder for folder in folders if folder.is_dir() and any(folder.iterdir())]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--bags", type=Path, nargs="*", default=[], help="bags, or folders of bags, to add")
    parser.add_argument("--value-steps", type=int, default=ValueTraining().schedule.steps)
    parser.add_argument("--policy-steps", type=int, default=FINETUNING.schedule.steps)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    how = Improvement(seed=given.seed)
    how = replace(
        how, value=how.value.for_steps(given.value_steps), policy=how.policy.for_steps(given.policy_steps)
    )
    k = next_iteration(given.run)

    def progress(fraction: float, note: str) -> None:
        print(json.dumps({"progress": round(fraction, 4), "note": note}), flush=True)

    try:
        improve(given.run, k, [*recorded_bags(given.run), *given.bags], how, progress)
    except (OSError, ValueError, StageError, FloatingPointError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"checkpoint": str(given.run / f"iteration_{k:02d}" / "policy")}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
