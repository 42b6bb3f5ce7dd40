"""One RECAP iteration on a run's folder, as a process of its own.

    python -m recap_learner.improve --run runs/demo --bags bags/
    python -m recap_learner.improve --run runs/demo --converted --start last --fresh-share 0.5

Starts from the run's pre-trained value and policy (Algorithm 1, step 6) or goes on from its last ones, and
leaves the next `iteration_NN/`. Learns from the run's demonstrations, the bags of its earlier iterations and
the given bags, without those that are being written; or, --converted, from the episodes that are in the run's
store. Killed, the same command goes on with the same attempts from the last save.
Prints one JSON line per step of progress and one with the new checkpoint at the end.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from recap_learner.background import say
from recap_learner.data.episodes import find_bags
from recap_learner.data.store import Store
from recap_learner.intake import seen
from recap_learner.lesson import STARTS, Lesson, counted, lesson, next_iteration, recorded_bags, set_aside
from recap_learner.rounds import Rounds
from recap_learner.stages import Made, Report, Stages
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

    @property
    def has_fresh_share(self) -> bool:
        return self.policy.fresh_share is not None

    def with_fresh_share(self, share: float) -> Improvement:
        """Both models draw so much of every batch from the attempts that are new since the last training."""
        value = replace(self.value, mixture=replace(self.value.mixture, fresh_share=share))
        return replace(self, value=value, policy=replace(self.policy, fresh_share=share))


def improve(
    run: Path,
    k: int,
    bags: Sequence[Path],
    how: Improvement,
    progress: Progress | None = None,
    converted: Lesson | None = None,
    start: str = "pretrained",
) -> dict[str, Any]:
    """Iteration k of a run of one task: value, labels and policy from `bags` → report of each step.

    converted: episodes of the run's store, in place of bags. start: "pretrained", or "last": from the models
    of iteration k − 1 where it has some, the first from the pre-trained ones. Raises FileNotFoundError if the
    run has no pre-trained models to start from.
    """
    task, before = "", run / f"iteration_{k - 1:02d}"  # the bags know their task
    with Stages(run, _Told(progress)) as stages:
        do = Rounds(stages, None, [task])

        def begin(part: str) -> Made:
            here = before if start == "last" and k > 1 and (before / part).is_dir() else do.pretrain
            return stages.given(f"the run's pre-trained {part}", [here / part])

        tower = stages.given("the run's pre-trained vision", [do.pretrain / "vision"])
        v_before, pi_before = begin("value"), begin("policy")
        do.take(tower)
        fresh: Sequence[str] = ()
        if converted is None:
            data = [do.episodes(task, k, stages.given("bags", bags))]
        else:
            data = [do.episodes(task, k, converted=converted.files(Store(do.store)))]
            fresh = converted.fresh if how.has_fresh_share else ()
        v = do.value(task, k, data, v_before, how.value, how.seed, fresh=fresh)
        labels = do.labels(task, k, data, v, how.rule)
        policy = do.policy(task, k, data, pi_before, "recap", labels, how.policy, how.seed, fresh=fresh)
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


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    how = Improvement(seed=given.seed)
    how = replace(
        how, value=how.value.for_steps(given.value_steps), policy=how.policy.for_steps(given.policy_steps)
    )
    k = next_iteration(given.run)

    def progress(fraction: float, note: str) -> None:
        say({"progress": round(fraction, 4), "note": note})

    try:
        converted: Lesson | None = None
        bags: list[Path] = []
        if given.converted:
            converted = lesson(given.run, k, counted(Store(given.run / "episodes"), given.task)[0])
            if given.fresh_share is not None and converted.fresh and converted.older:
                how = how.with_fresh_share(given.fresh_share)
        else:
            found = find_bags([*recorded_bags(given.run), *given.bags])
            bags = [bag for bag in found if seen(bag).is_finished()]
        improve(given.run, k, bags, how, progress, converted, given.start)
    except Exception as error:
        if not isinstance(error, (ArithmeticError, OSError, RuntimeError, ValueError)):
            traceback.print_exc()  # not foreseen
        set_aside(given.run, k)
        say({"error": " ".join(str(error).split())})
        return 1
    say({"checkpoint": str(given.run / f"iteration_{k:02d}" / "policy")})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recap_learner.improve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--bags", type=Path, nargs="*", default=[], help="bags, or folders of bags, to add")
    parser.add_argument("--converted", action="store_true", help="learn from the run's store, not from bags")
    parser.add_argument("--task", default="", help="name of the task, with --converted; none: all there is")
    parser.add_argument("--start", choices=STARTS, default="pretrained", help="models to go on from")
    parser.add_argument("--fresh-share", type=float, help="of a batch, with --converted; none: drawn evenly")
    parser.add_argument("--value-steps", type=int, default=ValueTraining().schedule.steps)
    parser.add_argument("--policy-steps", type=int, default=FINETUNING.schedule.steps)
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
