"""What the next iteration of a run would do, and how long that would take: nothing is run.

    python -m recap_learner.forecast --run runs/demo --bags bags/

Times are those of the iteration before, as its records have them: converting by new attempts, the value
function by the samples it is trained on and the frames it then looks at, the policy by its samples. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recap_learner.data.episodes import SUFFIX, ConversionError
from recap_learner.data.reading import bag_name, find_bags
from recap_learner.improve import Improvement, next_iteration, recorded_bags
from recap_learner.stages import MANIFEST
from recap_learner.training.policy_training import FINETUNING
from recap_learner.value.value_training import ValueTraining

# Stages of an iteration, and what stands for them where no iteration has been made: of SFT, of pre-training.
STAGES = {
    "episodes": ("episodes",),
    "value": ("iteration_00.value", "pretrain_value"),
    "labels": ("pretrain_labels",),
    "policy": ("iteration_00.sft",),
}
BACKWARD = 3  # a trained sample costs about as much as three that are only looked at


@dataclass(frozen=True)
class Step:
    """seconds: None where no record says."""

    stage: str
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """attempts: all that it learns from, `new` of them not converted yet; value_steps, policy_steps: of the
    optimiser; like: the iteration that the times are taken from, -1 where there is none; problem: why it
    cannot be made, or ""; begun: stages that were begun and have not ended, by a process that is at work or
    was killed."""

    iteration: int
    attempts: int
    new: int
    value_steps: int
    policy_steps: int
    positive: float
    like: int
    steps: tuple[Step, ...]
    begun: tuple[str, ...]
    problem: str

    @property
    def seconds(self) -> float | None:
        known = [step.seconds for step in self.steps]
        return None if None in known else sum(s for s in known if s is not None)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def forecast(run: Path, bags: Sequence[Path], how: Improvement) -> Forecast:
    """Of `improve` with the run's recorded bags and these."""
    k = next_iteration(run)
    problem = ""
    if missing := [part for part in ("vision", "value", "policy") if not (run / "pretrain" / part).is_dir()]:
        problem = f"{run} has no pre-trained {missing[0]} to start from: ./recap iterate makes one"
    if any(path.is_dir() for path in run.glob("*/iteration_*")):
        problem = f"{run} is of several tasks: ./recap iterate goes on with it"
    try:
        found = find_bags([*recorded_bags(run), *bags])
    except (ConversionError, OSError) as error:
        found, problem = [], problem or str(error)
    if not found:
        problem = problem or f"{run} has no bags to learn from"
    counts = [_converted(run / "episodes", bag) for bag in found]
    attempts, new = sum(max(1, n) for n in counts), sum(not n for n in counts)
    records = _records(run)
    return Forecast(
        iteration=k,
        attempts=attempts,
        new=new,
        value_steps=how.value.schedule.steps,
        policy_steps=how.policy.schedule.steps,
        positive=how.rule.positive_fraction,
        like=_like(records, k),
        steps=tuple(Step(name, _seconds(records, name, k, attempts, new, how)) for name in STAGES),
        begun=tuple(sorted(path.stem for path in (run / "stages" / ".begun").glob("*.json"))),
        problem=problem,
    )


def _converted(store: Path, bag: Path) -> int:
    """Episodes that were made of a bag."""
    name = bag_name(bag)
    return int((store / f"{name}{SUFFIX}").is_file()) or len(list(store.glob(f"{name}_attempt*{SUFFIX}")))


def _records(run: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((run / MANIFEST).read_text())["stages"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _like(records: Mapping[str, Any], k: int) -> int:
    """The newest iteration before k whose policy has a record."""
    made = (j for j in range(k - 1, -1, -1) if f"iteration_{j:02d}.{'policy' if j else 'sft'}" in records)
    return next(made, -1)


def _seconds(
    records: Mapping[str, Any], name: str, k: int, attempts: int, new: int, how: Improvement
) -> float | None:
    """Of one stage, from its newest record."""
    wanted = [f"iteration_{j:02d}.{name}" for j in range(k - 1, 0, -1)] + [*STAGES[name]]
    at = next((one for one in wanted if one in records), None)
    if at is None:
        return None
    record = records[at]
    seconds, frames = float(record["seconds"]), _frames(records, record)
    if name == "episodes":
        earlier = (one for one in records.values() if one["began"] < record["began"])
        before = {out for one in earlier for out in one["outputs"]}
        made = len([out for out in record["outputs"] if out not in before])
        return seconds * new / made if made else seconds
    if not frames:
        return seconds
    then = frames[1] * attempts / frames[0]
    if name == "labels":
        return seconds * then / frames[1]
    training = how.value if name == "value" else how.policy
    looked = (frames[1], then) if name == "value" else (0, 0)
    return seconds * _cost(asdict(training), looked[1]) / max(1.0, _cost(_settings(record), looked[0]))


def _frames(records: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(attempts, frames) that a stage has learned from."""
    data = [records[one]["result"] for one in record["inputs"] if one.endswith("episodes") and one in records]
    attempts, frames = (sum(one.get(key, 0) for one in data) for key in ("episodes", "frames"))
    return (attempts, frames) if attempts and frames else None


def _settings(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the training that a record is of."""
    given = [one for part in record["settings"] or () if isinstance(part, dict) for one in part.values()]
    return next((one for one in given if isinstance(one, dict) and "schedule" in one), {})


def _cost(training: Mapping[str, Any], frames: float) -> float:
    """Samples that are looked at, those that are trained on counted BACKWARD times."""
    schedule = training.get("schedule", {})
    trained = schedule.get("steps", 0) * schedule.get("batch", 0) * training.get("folds", 1)
    return float(BACKWARD * trained + frames)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--bags", type=Path, nargs="*", default=[], help="bags, or folders of bags, to add")
    parser.add_argument("--value-steps", type=int, default=ValueTraining().schedule.steps)
    parser.add_argument("--policy-steps", type=int, default=FINETUNING.schedule.steps)
    given = parser.parse_args(argv)
    how = Improvement(
        value=ValueTraining().for_steps(given.value_steps), policy=FINETUNING.for_steps(given.policy_steps)
    )
    print(json.dumps(forecast(given.run, given.bags, how).to_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
