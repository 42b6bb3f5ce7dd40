"""`./recap iterate`: Algorithm 1, as often round as asked, in one folder; asked again it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recap.output import Json, console

if TYPE_CHECKING:
    from recap.sim_cell import SimCell
    from recap_learner.algorithm import Algorithm
    from recap_learner.stages import Made, Report, Stages

# Indicator and guidance β, beside the evaluation's own: positive, 1.
ASKED_OTHERWISE = (("none", 1.0), ("negative", 1.0), ("positive", 1.5), ("positive", 2.0))


def iterate(
    task: Annotated[
        list[str], typer.Option(help="Task: a name, or a YAML's path. Several: pre-trained on together.")
    ] = ["handover_insert"],  # noqa: B006
    iterations: Annotated[int, typer.Option(min=0, help="How often to collect and improve (K).")] = 1,
    run: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on in it.")] = Path(
        "runs/iterate"
    ),
    demonstrations: Annotated[
        str, typer.Option(metavar="N|FOLDER", help="How many to script in the simulator, or bags to use.")
    ] = "180",
    collect: Annotated[
        str, typer.Option(help="sim: rollouts in the simulator; robot: bags that people record.")
    ] = "sim",
    rollouts: Annotated[int, typer.Option(min=1, help="Attempts of each iteration in the simulator.")] = 120,
    watched: Annotated[
        float, typer.Option(min=0, max=1, help="Share of them that the scripted operator corrects.")
    ] = 0.4,
    evaluations: Annotated[int, typer.Option(min=0, help="Attempts of each evaluation; 0: none.")] = 100,
    start: Annotated[
        str, typer.Option(help="What iterations begin from: pretrained (paper), or last, the one before.")
    ] = "pretrained",
    extract: Annotated[str, typer.Option(metavar="ARM", help="How iterations make a policy.")] = "recap",
    compare: Annotated[
        str, typer.Option(metavar="ARM[,ARM]", help="Also train these on the last data; or: all.")
    ] = "",
    gates: Annotated[
        str, typer.Option(help="A value function that fails its gates: fail ends the run, warn goes on.")
    ] = "",
    fresh_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of a batch, the share of the iteration's own attempts."),
    ] = None,
    cotraining: Annotated[
        Path | None,
        typer.Option(help="Parquet file (image, question, answer) that values are co-trained on."),
    ] = None,
    conditions: Annotated[
        bool,
        typer.Option("--conditions", help="Also evaluate the last policy asked for none, negative, with β."),
    ] = False,
    generalist: Annotated[
        bool, typer.Option("--generalist", help="In the end a policy from scratch on all tasks.")
    ] = False,
    steps: Annotated[
        str, typer.Option(metavar="NAME=N,…", help="Optimiser steps: vision, value, policy, finetune.")
    ] = "",
    other: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of learning; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of networks and batches.")] = 1,
    station: Annotated[str, typer.Option(help="Robot cell: a name, or a path to a YAML.")] = "aloha",
    quick: Annotated[bool, typer.Option("--quick", help="Every stage, too small to learn anything.")] = False,
    as_json: Json = False,
) -> None:
    """Run Algorithm 1: collect, convert, value, labels, policy, evaluation, K times over.

    Stages that are done are skipped while their settings and inputs are the same, `manifest.json` says what
    was made from what, and a run that was killed ends where an unbroken one would.

    Arms, for --extract and --compare: recap, supervised, rl_pretrained, sft, awr, ppo, clone_all, clone_best,
    clone_positive, hg_dagger (docs/learning.md).

    Settings for --set are paths in `recap_learner.algorithm.Algorithm`: improvement.rule.lookahead=25,
    improvement.value.members=3, value.folds=4, improvement.policy.precision=bfloat16, gates.outcome_auc=0.6,
    improvement.value.mixture.kinds='{"rollout": 1, "correction": 2}'.

    Example: `./recap iterate --task handover_insert --iterations 2 --compare awr,clone_best --run runs/two`
    """
    from recap.bringup import UsageError
    from recap.sim_cell import SimCell
    from recap.stages import Shown, about_code
    from recap_learner.algorithm import algorithm_1
    from recap_learner.rounds import Rounds
    from recap_learner.stages import Stages

    how = settings(
        iterations, start, extract, compare, generalist, steps, seed, quick, gates, fresh_share, cotraining,
        other or (),
    )  # fmt: skip
    cell = _cell(
        task, station, demonstrations, collect, 8 if quick else rollouts, watched,
        min(evaluations, 4) if quick else evaluations, run, quick,
    )  # fmt: skip
    if conditions and not (isinstance(cell, SimCell) and cell.evaluations):
        raise UsageError("--conditions: wanted evaluations in the simulator")
    run.mkdir(parents=True, exist_ok=True)
    screen = console(as_json)
    with (
        Shown(screen) as shown,
        Stages(run, shown, about_code(Path(__file__).resolve().parents[4])) as stages,
    ):
        last = algorithm_1(Rounds(stages, cell, task), task, how)
        if isinstance(cell, SimCell) and conditions:
            for name in task:
                _asked_otherwise(stages, cell, name, last[name])
        stages.wait()
        found = _results(stages, last)
    for line in [*_lines(found), *shown.times()]:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)
    screen.print(f"what was made from what: {run / 'manifest.json'}", highlight=False, soft_wrap=True)
    screen.print(f"figures: ./recap report {run}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"ok": True, "run": str(run), **found, "seconds": shown.seconds}))


def settings(
    iterations: int,
    start: str,
    extract: str,
    compare: str,
    generalist: bool,
    steps: str,
    seed: int,
    quick: bool,
    gates: str = "",
    fresh_share: float | None = None,
    captions: Path | None = None,
    other: Sequence[str] = (),
) -> Algorithm:
    """gates: "": warn in a quick run, which is too small for them, else fail. Raises UsageError on unknown
    words."""
    from recap.bringup import UsageError
    from recap.changes import changed
    from recap.demo import QUICK
    from recap_learner.algorithm import Algorithm
    from recap_learner.arms import ARMS
    from recap_learner.value.cotraining import check_captions
    from recap_learner.value.gates import Gates

    gates = gates or ("warn" if quick else "fail")
    if gates not in ("fail", "warn"):
        raise UsageError(f"--gates: wanted fail or warn, found {gates!r}")
    base = replace(QUICK.algorithm, first_value=True) if quick else Algorithm()
    arms = [name for name in compare.replace(",", " ").split() if name]
    if arms == ["all"]:
        arms = [name for name in ARMS if name != extract]
    again = base.improvement
    if fresh_share is not None:
        again = again.with_fresh_share(fresh_share)
    again = replace(again, seed=seed)
    base = replace(base, improvement=again, seed=seed, gates=Gates() if gates == "fail" else None)
    try:
        if captions is not None:
            check_captions(captions)
        how = replace(
            _with_steps(base, steps), iterations=iterations, start=start, extraction=extract,
            compare=tuple(arms), generalist=generalist, captions=captions,
        )  # fmt: skip
        return changed(how, other)
    except ValueError as error:
        raise UsageError(f"iterate: {error}") from error


def _with_steps(how: Algorithm, steps: str) -> Algorithm:
    """Apply "value=200,policy=1000"."""
    for word in steps.replace(",", " ").split():
        name, _, number = word.partition("=")
        if name not in ("vision", "value", "policy", "finetune") or not number.isdigit() or int(number) < 1:
            raise ValueError(
                f"--steps: wanted vision, value, policy or finetune with a number, found {word!r}"
            )
        count, again = int(number), how.improvement
        if name == "vision":
            how = replace(how, vision=how.vision.for_steps(count))
        elif name == "value":
            again = replace(again, value=again.value.for_steps(count))
            how = replace(how, value=how.value.for_steps(count), improvement=again)
        elif name == "policy":
            how = replace(how, policy=how.policy.for_steps(count))
        else:
            how = replace(how, improvement=replace(again, policy=again.policy.for_steps(count)))
    return how


def _cell(
    tasks: Sequence[str],
    station: str,
    demonstrations: str,
    collect: str,
    rollouts: int,
    watched: float,
    evaluations: int,
    run: Path,
    quick: bool,
) -> Any:
    from recap.bringup import UsageError
    from recap.robot_cell import RobotCell
    from recap.sim_cell import SimCell
    from recap_station.contract import load_station, load_task

    load_station(station)
    names = [load_task(task).name for task in tasks]
    if len({Path(task).stem for task in tasks}) < len(tasks) or len(set(names)) < len(tasks):
        raise UsageError(f"--task: wanted each once, found {', '.join(tasks)}")
    if collect not in ("sim", "robot"):
        raise UsageError(f"--collect: wanted sim or robot, found {collect!r}")
    given, count = {}, 12 if quick else 0
    if demonstrations.isdigit():
        count = count or int(demonstrations)
        if count < 2:
            raise UsageError(f"--demonstrations: wanted 2 or more, found {demonstrations}")
    else:
        folder = Path(demonstrations)
        if not folder.is_dir():
            raise UsageError(
                f"--demonstrations: wanted a number or a folder of bags, found {demonstrations!r}"
            )
        given = {task: folder if len(tasks) == 1 else folder / Path(task).stem for task in tasks}
    cell = SimCell(
        station=station,
        demonstrations_count=count,
        given=given,
        rollouts=rollouts,
        watched=watched,
        evaluations=evaluations,
        logs=run / "logs",
    )
    return cell if collect == "sim" else RobotCell(cell)


def _asked_otherwise(stages: Stages, cell: SimCell, task: str, policy: Made) -> None:
    """What the report's figures of conditioning and of guidance need, on the evaluation's start states."""
    from recap.evaluate import EVALUATION_SEED, entrants, evaluate
    from recap.rollout import Rollouts
    from recap_learner.evaluation.sequential import Stopping
    from recap_policy.interface import Sampling

    folder = Path(_folder(stages, policy))
    how = Rollouts(cell.station, task, checkpoint=folder, execute_steps=cell.execute_steps)
    asked = [Sampling(indicator=i, beta=beta) for i, beta in ASKED_OTHERWISE]
    found = entrants([folder], asked, how, None)
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + cell.evaluations)

    def work(report: Report) -> dict[str, Any]:
        return {
            e.name: e.summary() for e in evaluate(found, seeds, Stopping(), cell.workers, progress=report)
        }

    stages.stage(
        policy.name.rpartition(".")[0] + ".conditions",
        f"Asked otherwise, {found[0].name.rpartition('/')[0]}",
        work,
        settings=[cell.evaluations, cell.execute_steps, EVALUATION_SEED, ASKED_OTHERWISE],
        inputs=[policy],
        outputs=[entrant.result for entrant in found],
    )


def _results(stages: Stages, last: Mapping[str, Made]) -> dict[str, Any]:
    """Evaluations and policies by stage, the last policy of each task, what a person should know."""
    from recap_learner.value.gates import warnings

    evaluations, policies, notices = {}, {}, []
    for name, made in stages.made.items():
        step = name.rpartition(".")[2]
        if step.startswith("evaluate"):
            if "success" in made.result:
                evaluations[name] = made.result
        elif step == "sft" or step.startswith(("policy", "generalist")):
            policies[name] = _folder(stages, made)
        notices += [*made.result.get("notices", []), *warnings(made.result, f"value function of {name}")]
    final = {task: _folder(stages, made) for task, made in last.items()}
    known = list(dict.fromkeys(notices))
    return {"evaluations": evaluations, "policies": policies, "last": final, "notices": known}


def _folder(stages: Stages, policy: Made) -> str:
    [folder] = [out for out in policy.record["outputs"] if out.endswith("policy")]
    return str(stages.folder / folder)


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"note: {notice}" for notice in found["notices"]]
    for name, p in found["evaluations"].items():
        low, high = p["success_ci95"]
        slow, fast = p["throughput_ci95"]
        lines.append(
            f"{name:34} success {p['success']:5.1%} [{low:.1%}, {high:.1%}]   throughput "
            f"{p['throughput_per_hour']:4.0f} an hour [{slow:.0f}, {fast:.0f}]   ({p['attempts']} attempts)"
        )
    return [*lines, *(f"policy of {task}: {folder}" for task, folder in found["last"].items())]
