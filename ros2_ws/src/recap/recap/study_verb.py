"""`./recap study`: the paper's comparisons on one task, arm by arm, over as many sittings as it takes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recap.output import Json, console

if TYPE_CHECKING:
    from recap.study.records import Record
    from recap.study.settings import StudySettings
    from recap_station.contract import Task

_CHECKOUT = Path(__file__).resolve().parents[4]


def study(
    task: Annotated[str, typer.Option(help="Task: a name in config/tasks, or a path to a YAML.")],
    arms: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Policies to compare, or all. None: the tier's own.")
    ] = "",
    observation: Annotated[
        str, typer.Option(help="What policies see: state (joints, places of things) or images.")
    ] = "state",
    seeds: Annotated[str, typer.Option(metavar="N[,N]", help="Training seeds, 1 to 6.")] = "1,2,3",
    attempts: Annotated[int, typer.Option(min=1, help="Attempts of each policy and training seed.")] = 200,
    run: Annotated[Path, typer.Option(help="Folder of the runs; an interrupted one goes on.")] = Path(
        "runs/study"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the results and figures.")] = (
        _CHECKOUT / "benchmarks" / "study" / "results"
    ),
    scale: Annotated[
        float, typer.Option(min=0.01, max=4, help="Share of the study's data and training steps.")
    ] = 1.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make attempts; 0: one a core.")] = 0,
    development: Annotated[
        bool, typer.Option("--development", help="Training seed 0, other start states, results in --run.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage, too small to learn anything.")] = False,
    other: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another setting, to develop by; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare RECAP to its baselines and to itself with parts left out: same data, same steps, same attempts.

    Policies: supervised_pi05, supervised_pi06, rl_pretrained, offline_rl_sft, recap_1, recap_2, awr, ppo,
    filtered_bc, clone_positive, bc_all, hg_dagger, recap_2_none, recap_2_negative, recap_2_beta_1.5 (2, 2.5),
    recap_2_without_corrections, recap_2_autonomous, recap_2_threshold_10 (40), recap_2_from_last
    (docs/study.md).

    What is done is not done again; after Ctrl-C or kill -9 the same command goes on. Results are in
    <out>/<task>.json, of images in <task>.images.json, with figures beside them, as far as it has come.
    Settings that --set may change stand under "settings" there, as improvement.rule.positive_fraction=0.2.

    Example: `./recap study --task handover_insert --arms recap_2,filtered_bc --seeds 1 --attempts 200`
    """
    import torch

    from recap.bringup import UsageError
    from recap.changes import changed
    from recap.study.policies import chosen
    from recap.study.settings import DEVELOPMENT, DEVELOPMENT_SEED, study_settings
    from recap.study.settings import quick as small
    from recap_station.contract import load_task

    try:
        names = chosen(arms, observation)
        how = replace(study_settings(observation), attempts=attempts)
        how = changed(small(how) if quick else how.scaled(scale), other or ())
        trainings = [DEVELOPMENT_SEED] if development else _seeds(seeds)
    except ValueError as error:
        raise UsageError(f"study: {error}") from error
    if development:
        how = replace(how, first_evaluation=DEVELOPMENT)
    torch.set_num_threads(1)  # the second core makes attempts meanwhile
    contract = load_task(task)
    of = contract.name
    home = run / of / observation / ("quick" if quick else "development" if development else "")
    where = home if development or quick else out
    _check_kept(where / "attempts" / _stem(of, observation), trainings, how, contract, where == out)
    screen = console(as_json)
    results: dict[str, Any] = {}
    for count, seed in enumerate(trainings):
        _train(task, names, how, seed, home / f"seed_{seed}", workers, screen)
        results = _collect(task, names, how, trainings[: count + 1], home, where, observation)
    for line in _lines(results):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"ok": True, "results": str(_file(where, of, observation)), **results}))


def _check_kept(kept: Path, seeds: Sequence[int], how: StudySettings, task: Task, counted: bool) -> None:
    """Raises UsageError where a record cannot be read, and where a training seed that counts was run with
    other settings: its attempts would be lost."""
    from recap.bringup import UsageError
    from recap.study.records import RecordError, identity, read_records

    try:
        known = read_records(kept)
    except RecordError as error:
        raise UsageError(f"study: {error}") from error
    own = identity(how, task)
    for seed in seeds if counted else ():
        if seed in known and known[seed].settings != own:
            raise UsageError(
                f"study: {kept}/seed_{seed}.json is of settings {known[seed].settings}, these are {own}: "
                "wanted another --out, or that file removed"
            )


def _train(
    task: str, names: Sequence[str], how: StudySettings, seed: int, folder: Path, workers: int, screen: Any
) -> None:
    from recap.stages import Shown, about_code
    from recap.study.seed_run import SeedRun
    from recap_learner.arms import ArmError
    from recap_learner.stages import Stages

    folder.mkdir(parents=True, exist_ok=True)
    with Shown(screen) as shown, Stages(folder, shown, about_code(_CHECKOUT)) as stages:
        one = SeedRun(stages, how.cell(seed, workers), task, how, seed)
        for name in names:
            try:
                one.evaluate(name)
            except ArmError as error:  # as HG-DAgger without a correction: the others go on
                screen.print(f"{name} is left out: {error}", markup=False, soft_wrap=True)
        stages.wait()


def _collect(
    task: str,
    names: Sequence[str],
    how: StudySettings,
    seeds: Sequence[int],
    home: Path,
    where: Path,
    observation: str,
) -> dict[str, Any]:
    """Add up what there is of all training seeds that were ever run in this way, and write it."""
    from recap.stages import code_version
    from recap.study.figures import write_figures
    from recap.study.policies import POLICIES
    from recap.study.results import study_results
    from recap_station.contract import load_task
    from recap_station.files import write_json

    of, cell = load_task(task), how.cell(seeds[0])
    kept = where / "attempts" / _stem(of.name, observation)
    records = _records(names, how, of, seeds, home, kept)
    found = {
        name: {seed: r.policies[name] for seed, r in records.items() if name in r.policies}
        for name in POLICIES
    }
    about = {
        "task": of.name,
        "observation": observation,
        "command": _command(),
        "commit": code_version(_CHECKOUT),
        "start_states": [how.first_evaluation, how.first_evaluation + how.attempts],
        "scale": {
            "demonstrations": how.demonstrations,
            "styles": how.styles,
            "rollouts_an_iteration": how.rollouts,
            "watched": how.watched,
            "execute_steps": cell.execute_steps,
        },
        "settings": json.loads(json.dumps(asdict(how), default=str)),
        "by_training_seed": {str(seed): dict(record.about) for seed, record in records.items()},
    }
    results = study_results(found, about)
    file = _file(where, of.name, observation)
    write_json(file, results)
    write_figures(results, where, file.stem)
    return results


def _records(
    names: Sequence[str], how: StudySettings, task: Task, seeds: Sequence[int], home: Path, kept: Path
) -> dict[int, Record]:
    """Training seed → what became of it: what the runs have of `names`, and what was kept of other policies
    and seeds, as far as it was run with the same settings."""
    from recap.stages import code_version
    from recap.study.records import Record, identity, read_records
    from recap_learner.evaluation.evaluation import read_evaluation

    own = identity(how, task)
    known = {seed: record for seed, record in read_records(kept).items() if record.settings == own}
    for seed in seeds:
        folder = home / f"seed_{seed}"
        files = {name: folder / "evaluations" / f"{name}.json" for name in names}
        about = {"command": _command(), "commit": code_version(_CHECKOUT), "data": _data(folder)}
        about["seconds"] = _seconds(folder)
        before = known[seed].policies if seed in known else {}
        known[seed] = Record(seed, own, about, before).with_policies(
            {name: read_evaluation(file).attempts for name, file in files.items() if file.is_file()}
        )
        known[seed].write(kept)
    return dict(sorted(known.items()))


def _command() -> str:
    return "./recap " + shlex.join(sys.argv[1:])


def _stem(task: str, observation: str) -> str:
    return f"{task}.images" if observation == "images" else task


def _file(folder: Path, task: str, observation: str) -> Path:
    return folder / f"{_stem(task, observation)}.json"


def _stages(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["stages"]


def _data(folder: Path) -> dict[str, Any]:
    """How the attempts came out that were learnt from."""
    wanted = ("attempts", "success", "throughput_per_hour", "takeovers_per_attempt", "correction_share")
    return {
        name: {key: record["result"].get(key) for key in wanted}
        for name, record in _stages(folder).items()
        if name.endswith(("demonstrations", "rollouts"))
    }


def _seconds(folder: Path) -> dict[str, float]:
    return {name: round(record["seconds"], 1) for name, record in _stages(folder).items()}


def _seeds(words: str) -> list[int]:
    from recap.study.settings import MOST_SEED

    found = words.replace(",", " ").split()
    if not found or not all(word.isdigit() and 1 <= int(word) <= MOST_SEED for word in found):
        raise ValueError(f"--seeds: wanted numbers from 1 to {MOST_SEED}, found {words!r}")
    return sorted({int(word) for word in found})


def _lines(results: dict[str, Any]) -> list[str]:
    width = max((len(name) for name in results["policies"]), default=0)
    lines = []
    for name, p in results["policies"].items():
        (low, high), (slow, fast) = p["success_ci95"], p["throughput_ci95"]
        lines.append(
            f"{name:{width}}  success {p['success']:4.0%} [{low:.0%}, {high:.0%}]  "
            f"{p['throughput_per_hour']:4.0f} an hour [{slow:.0f}, {fast:.0f}]"
        )
    return lines
