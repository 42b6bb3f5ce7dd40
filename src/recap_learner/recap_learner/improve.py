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
from typing import Any

from recap_learner.iteration import fit_policy, fit_value, gather_frames, make_labels
from recap_learner.labels import LabelRule
from recap_learner.policy_training import FINETUNING, PolicyTraining
from recap_learner.training import Progress
from recap_learner.value_training import ValueTraining
from recap_station.files import write_json


@dataclass(frozen=True)
class Improvement:
    """Settings of one iteration, and of the SFT stage before it, which differs only in its labels."""

    value: ValueTraining = ValueTraining()
    policy: PolicyTraining = FINETUNING
    rule: LabelRule = LabelRule(lookahead=50, positive_fraction=0.4, whole_episode_quantile=0.3)
    seed: int = 1


def improve(
    run: Path, folder: Path, bags: Sequence[Path], how: Improvement, progress: Progress | None = None
) -> dict[str, Any]:
    """Value, labels and policy from `bags`, into `folder` → report of each step.

    Raises FileNotFoundError if the run has no pre-trained models to start from.
    """
    pretrain = run / "pretrain"
    for part in ("vision", "value", "policy"):
        if not (pretrain / part).is_dir():
            raise FileNotFoundError(f"{pretrain / part}: wanted the run's pre-trained {part}, found nothing")
    frames = gather_frames(bags, run / "episodes", pretrain / "vision", _part(progress, 0.0, 0.2, "episodes"))
    value = fit_value(
        frames, folder, pretrain / "value", how.value, how.seed, _part(progress, 0.2, 0.45, "value")
    )
    labels = make_labels(
        frames, folder, how.rule, judged_by=lambda info: info.source == "rollout", store=run / "episodes"
    )
    policy = fit_policy(
        frames,
        folder,
        pretrain / "policy",
        pretrain / "vision",
        how.policy,
        how.seed,
        _part(progress, 0.45, 1.0, "policy"),
    )
    report = {"value": value, "labels": labels, "policy": policy}
    write_json(folder / "report.json", report)
    return report


def next_iteration(run: Path) -> Path:
    """Folder of the iteration after the last one that has a policy."""
    done = [int(p.parent.name.split("_")[1]) for p in run.glob("iteration_*/policy")]
    return run / f"iteration_{max(done, default=0) + 1:02d}"


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
    folder = next_iteration(given.run)

    def progress(fraction: float, note: str) -> None:
        print(json.dumps({"progress": round(fraction, 4), "note": note}), flush=True)

    try:
        improve(given.run, folder, [*recorded_bags(given.run), *given.bags], how, progress)
    except (OSError, ValueError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"checkpoint": str(folder / "policy")}), flush=True)
    return 0


def _part(progress: Progress | None, start: float, end: float, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda fraction, note: progress(start + (end - start) * fraction, f"{name}: {note}")


if __name__ == "__main__":
    sys.exit(main())
