"""`./recap eval`: how well policies do, and which of them is better."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from recap.eval_output import tell
from recap.output import Json, bar, console
from recap_policy.chunks import EXECUTE_STEPS

if TYPE_CHECKING:
    from recap.evaluate import Entrant
    from recap_learner.evaluation.evaluation import Evaluation

Paths = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[CHECKPOINT]...", help="Folders of policies; all are told from the first."),
]


def evaluate(
    checkpoints: Paths = None,
    bags: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluate what was recorded: bags, a folder of bags, or a store; by checkpoint."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="In real time over ROS 2 topics, recorded.")] = False,
    attempts: Annotated[int, typer.Option(min=1, help="How many of each policy, at most.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Start state of the first attempt.")] = 90_000,
    indicator: Annotated[
        str, typer.Option(help="What the policy is asked for: positive, negative, none; or several.")
    ] = "positive",
    beta: Annotated[
        str, typer.Option(help="Guidance towards it, 1: conditioned only; or several: 1,1.5,2.")
    ] = "1",
    until_width: Annotated[
        float, typer.Option(help="Stop when each success rate is known to an interval so wide; 0: don't.")
    ] = 0.0,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Stop when every policy is told from the first.")
    ] = False,
    reset_s: Annotated[
        float | None,
        typer.Option(
            min=0, max=86_400, help="Seconds between attempts; else 0, or the pauses seen in recordings."
        ),
    ] = None,
    with_reset: Annotated[bool, typer.Option("--with-reset", help="Count them in the throughput.")] = False,
    training_seeds: Annotated[
        bool, typer.Option("--training-seeds", help="Allow start states that a policy has learned from.")
    ] = False,
    watched: Annotated[
        float, typer.Option(min=0, max=1, help="Share of attempts that the scripted operator corrects.")
    ] = 0.0,
    execute_steps: Annotated[
        int, typer.Option(min=5, max=50, help="Steps of a chunk before the next is due.")
    ] = EXECUTE_STEPS,
    workers: Annotated[int, typer.Option(min=1, help="Processes; else one a core.")] = max(
        1, len(os.sched_getaffinity(0))
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; else evaluations/ beside each checkpoint.")
    ] = None,
    station: Annotated[
        str, typer.Option(help="Robot cell: a name in config/stations, or a path to a YAML.")
    ] = "aloha",
    task: Annotated[str, typer.Option(help="Task: a name in config/tasks, or a path to a YAML.")] = (
        "handover_insert"
    ),
    as_json: Json = False,
) -> None:
    """How well policies do, with 95 % intervals, and which is better: success, throughput, stages, failures.

    In the simulated cell, faster than real time, unless --live or --bags says otherwise. All policies get the
    same start states, which no training has seen. Stopped at any moment, the same command goes on.

    Examples: `./recap eval runs/demo/iteration_01/policy --attempts 100`;
    `./recap eval runs/demo/iteration_00/policy runs/demo/iteration_01/policy --until-decided --attempts 400`;
    `./recap eval runs/demo/iteration_01/policy --indicator positive,none,negative`;
    `./recap eval --bags bags --with-reset`
    """
    from recap.bringup import UsageError
    from recap.evaluate import entrants, evaluate
    from recap.rollout import Rollouts
    from recap_learner.evaluation.sequential import Stopping

    given = checkpoints or []
    if not given and not bags:
        raise UsageError("wanted CHECKPOINT, or --bags FOLDER")
    if bags:
        if live or until_decided or until_width:
            raise UsageError("--bags: what was recorded is evaluated whole, without --live and --until-…")
        _recorded(bags, given, reset_s, with_reset, out, as_json)
        return
    how = Rollouts(station, task, execute_steps=execute_steps, operator=watched)
    policies = entrants(given, _samplings(indicator, beta), how, out)
    seeds = range(seed, seed + attempts)
    notes = _held_out(policies, seeds, training_seeds)
    if live:
        if len(policies) > 1 or until_decided or until_width:
            raise UsageError("--live: wanted one policy under one setting, without --until-…")
        _live(policies[0], seeds, watched, reset_s, with_reset, as_json)
        return
    try:
        stopping = Stopping(until_width or None, until_decided)
    except ValueError as error:
        raise UsageError(f"--until-width: {error}") from None
    if until_decided and len(policies) < 2:
        raise UsageError("--until-decided: wanted two policies or settings to tell apart, found one")
    with bar("Attempts", as_json) as report:
        found = evaluate(policies, seeds, stopping, workers, reset_s or 0.0, with_reset, notes, report)
    tell(found, [p.result for p in policies], as_json, notes)


def _samplings(indicators: str, betas: str) -> list[Any]:
    """Every indicator with every beta; without an indicator guidance has nothing to go towards."""
    from recap.bringup import UsageError
    from recap_policy.interface import Sampling

    words = [word.strip() for word in indicators.split(",")]
    for word in words:
        if word not in ("positive", "negative", "none"):
            raise UsageError(f"--indicator: wanted positive, negative or none, found {word!r}")
    try:
        numbers = [float(text) for text in betas.split(",")]
    except ValueError:
        raise UsageError(f"--beta: wanted a number, or several as in 1,1.5,2, found {betas!r}") from None
    found = []
    for word in dict.fromkeys(words):
        for number in dict.fromkeys([1.0] if word == "none" else numbers):
            found.append(Sampling(beta=number, indicator="" if word == "none" else word))
    return found


def _held_out(policies: Sequence[Entrant], seeds: range, allowed: bool) -> list[str]:
    """Warnings about start states that a policy knows from its training. Raises EvaluationError where it
    knows some of these and that is not allowed."""
    from recap.evaluate import EVALUATION_SEED, training_seeds
    from recap_learner.evaluation.evaluation import EvaluationError
    from recap_station.contract import load_task

    notes = []
    checkpoints = {p.rollouts.checkpoint: p for p in policies}
    for checkpoint, policy in checkpoints.items():
        assert checkpoint is not None
        known = training_seeds(checkpoint, load_task(policy.rollouts.task).name)
        name = "/".join(checkpoint.resolve().parts[-2:])
        if known is None:
            notes.append(f"what {name} was trained on cannot be told; it may know these start states")
            continue
        if not (seen := sorted(known & set(seeds))):
            continue
        some = ", ".join(map(str, seen[:3])) + (", …" if len(seen) > 3 else "")
        what = f"{name} has learned from {len(seen)} of these {len(seeds)} start states ({some})"
        if not allowed:
            raise EvaluationError(
                f"{what}; wanted others, such as --seed {EVALUATION_SEED}, or --training-seeds to allow it"
            )
        notes.append(f"{what}: not a held-out evaluation")
    for note in notes:
        print(f"recap: {note}", file=sys.stderr)
    return notes


def _recorded(
    bags: Sequence[Path],
    checkpoints: Sequence[Path],
    reset_s: float | None,
    count_reset: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    from recap_learner.evaluation.recorded_evaluation import evaluate_recorded
    from recap_policy.description import CheckpointError, read

    wanted: dict[str, str] = {}
    for checkpoint in checkpoints:  # headless recordings name the folder, live ones the identity
        try:
            wanted[str(checkpoint)] = read(checkpoint).identity
        except CheckpointError:  # a policy that is not here any more
            wanted[str(checkpoint)] = str(checkpoint)
    with bar("Bags", as_json) as report:
        found, problems = evaluate_recorded(bags, reset_s, count_reset, report, wanted)
    for problem in problems:
        print(f"recap: {problem}", file=sys.stderr)
    tell(
        found, _write_recorded(found, out or bags[0].resolve().parent / "evaluations", bags[0].name), as_json
    )


def _write_recorded(found: Sequence[Evaluation], out: Path, source: str) -> list[Path]:
    files = []
    for evaluation in found:
        slug = "_".join(part for part in Path(evaluation.name).parts if part != "/").replace(" ", "_")
        files.append(out / f"{source}_{slug}.json")
        evaluation.write(files[-1])
    return files


def _live(
    policy: Entrant, seeds: range, watched: float, reset_s: float | None, count_reset: bool, as_json: bool
) -> None:
    """Attempts over ROS 2, into a folder of bags of their own; those that are there already count."""
    from recap.live import run_live
    from recap_learner.evaluation.evaluation import EvaluationError
    from recap_learner.evaluation.recorded_evaluation import evaluate_recorded

    how, folder = policy.rollouts, policy.out / f"live_{policy.stem}"
    bags = folder / "bags"
    bags.mkdir(parents=True, exist_ok=True)
    made: set[int] = set()
    with suppress(ValueError):  # none yet
        made = {a.seed for e in evaluate_recorded([bags], 0.0)[0] for a in e.attempts}
    first = next((s for s in seeds if s not in made), None)
    if first is not None:
        shown = console(as_json)
        shown.print(f"bags: {escape(str(bags))}", highlight=False, soft_wrap=True)
        with bar("Live attempts", as_json) as report:
            run_live(
                station=how.station,
                task=how.task,
                checkpoint=how.checkpoint or Path(),
                value_checkpoint=None,
                bag_dir=bags,
                attempts=seeds.stop - first,
                takeovers=0,
                seed=first,
                log_dir=folder / "logs",
                report=report,
                operator="scripted" if watched else "none",
            )
    found, problems = evaluate_recorded([bags], reset_s, count_reset)
    for problem in problems:
        print(f"recap: {problem}", file=sys.stderr)
    if len(found) != 1:
        raise EvaluationError(f"{bags}: attempts of {len(found)} checkpoints, wanted of one: --out elsewhere")
    attempts = {a.seed: a for a in found[0].attempts if a.seed in seeds}
    evaluation = replace(
        found[0],
        name=policy.name,
        source="live",
        checkpoint=str(how.checkpoint),
        identity=policy.identity,
        attempts=tuple(attempts.values()),
    )
    file = policy.out / f"live_{policy.stem}.json"
    evaluation.write(file)
    tell([evaluation], [file], as_json)
