"""Learning runs as the console shows them: what stands in a run's folder, read by file.

Nothing is trained or judged here, and nothing is taken for granted: a run that is under way, was killed, or
is of another version shows what there is.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recap.results import find_results, main_line
from recap_learner.data.episodes import ConversionError, read_info
from recap_learner.evaluation.evaluation import read_evaluation
from recap_learner.training.logs import read_curves

STAGES = "stages"
MODELS = ("policy", "value", "vision")
COLLECTED = (
    "demonstrations",
    "rollouts",
    "live",
)  # stages that make attempts, by the last word of their name
GATES = ("spread", "spearman", "outcome_auc", "correction_auc", "fall_auc", "calibration")
NOT_SHOWN = ("learning_rate", "gradient", "samples_per_s", "data_wait_share")  # of a training's curves
MOST_POINTS = 300

Records = Mapping[str, Mapping[str, Any]]


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Runs in the folder, the one that was at work last first."""
    runs = []
    for path in folder.iterdir() if folder.is_dir() else ():
        stages = sorted((path / STAGES).glob("*.json"), key=_changed)
        if stages:
            runs.append(
                {
                    "name": path.name,
                    "changed_s": _changed(stages[-1]),
                    "last_stage": stages[-1].stem,
                }
            )
    return sorted(runs, key=lambda run: -run["changed_s"])


def read_run(path: Path) -> dict[str, Any]:
    """One run: how its policies do, what they were learned from, and how the learning went."""
    found = {file.stem: _read(file) for file in (path / STAGES).glob("*.json")}
    known = [(name, record) for name, record in found.items() if isinstance(record, dict)]
    records = dict(sorted(known, key=lambda pair: str(pair[1].get("began", ""))))
    evaluations, problems = _evaluations(path)
    return {
        "name": path.name,
        "evaluations": evaluations,
        "collected": list(_collected(records)),
        "values": list(_values(records)),
        "lineage": list(lineage(path, records)),
        "stages": [{"stage": name, "seconds": one.get("seconds")} for name, one in records.items()],
        "begun": sorted(file.stem for file in (path / STAGES / ".begun").glob("*.json")),
        "logs": _logs(path),
        "problems": problems,
    }


# --- how policies do ------------------------------------------------------------------------------------


def _evaluations(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every evaluation in the folder, whoever made it: an iteration, the demo, `./recap eval`."""
    try:
        results, problems = find_results(run)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [], [str(error)]
    tasks = {result.task for result in results}
    main = [id(one) for task in tasks for one in main_line([r for r in results if r.task == task])]
    shown = [
        {
            "policy": result.title,
            "task": result.task,
            "iteration": result.iteration,
            "main": id(result) in main,
            "asked": "" if result.plain else f"{result.indicator}, β {result.beta:g}",
            "old": result.old,
            "source": result.evaluation.source,
            "file": result.file,
            **_summary(run / result.file, _changed(run / result.file)),
        }
        for result in results
    ]
    return sorted(shown, key=lambda one: (one["task"], one["iteration"] or 0, not one["main"])), problems


@functools.lru_cache(maxsize=256)
def _summary(file: Path, changed_s: float) -> dict[str, Any]:
    """Its bootstraps take a while, and a page that is open asks again and again."""
    return read_evaluation(file).summary()


def _collected(records: Records) -> Iterator[dict[str, Any]]:
    """Attempts that were made to learn from, with how they went."""
    for name, record in records.items():
        task, iteration, stage = split(name)
        result = record.get("result")
        if stage in COLLECTED and isinstance(result, dict) and "success_ci95" in result:
            by = iteration - 1 if iteration else None  # demonstrations are of no policy
            found = {key: value for key, value in result.items() if key != "by_style"}
            yield {"stage": stage, "task": task, "iteration": iteration, "by": by, **found}


def _values(records: Records) -> Iterator[dict[str, Any]]:
    """Of every value function: its gates; of the labels made by it: threshold and share of positives."""
    for name, record in records.items():
        task, iteration, stage = split(name)
        result = record.get("result")
        if stage not in ("value", "pretrain_value") or not isinstance(result, dict):
            continue
        labels = records.get(name.removesuffix("value") + "labels", {}).get("result") or {}
        yield {
            "stage": name,
            "task": task,
            "iteration": iteration,
            "gates": {gate: result.get(gate) for gate in GATES},
            "problems": result.get("problems", []),
            "unmeasured": result.get("unmeasured", []),
            "notices": result.get("notices", []),
            "threshold": labels.get("threshold"),
            "positive": labels.get("positive"),
            "positive_by_source": labels.get("positive_by_source", {}),
        }


def split(name: str) -> tuple[str, int | None, str]:
    """A stage's name → task, iteration, and the rest: "box.iteration_01.value" → ("box", 1, "value")."""
    found = re.fullmatch(r"(?:(?P<task>.+?)\.)??(?:iteration_(?P<k>\d+)\.)?(?P<stage>[^.]+)", name)
    if found is None:
        return "", None, name
    return found["task"] or "", None if found["k"] is None else int(found["k"]), found["stage"]


# --- what came from what --------------------------------------------------------------------------------


def lineage(run: Path, records: Records) -> Iterator[dict[str, Any]]:
    """Of every checkpoint: the bags and attempts it has learned from, what it began as, the value function
    that labelled them, and its threshold."""
    for name, record in records.items():
        models = [out for out in record.get("outputs", {}) if Path(out).name in MODELS]
        inputs = list(record.get("inputs", {}))
        labels = next((one for one in inputs if one.endswith("labels")), "")
        data = [one for one in inputs if one.endswith("episodes")]
        judged = records.get(labels, {})
        for model in models:
            kind = Path(model).name
            yield {
                "checkpoint": model,
                "stage": name,
                "made": record.get("began", ""),
                "seconds": record.get("seconds"),
                "bags": [bags for one in data for bags in _bags(run, records, one)],
                "attempts": sum(_result(records, one).get("episodes", 0) for one in data),
                "start": next((one for one in inputs if _makes(records, one, kind)), ""),
                "value": next((one for one in judged.get("inputs", {}) if one.endswith("value")), ""),
                "threshold": _result(records, labels).get("threshold"),
                "code": str(record.get("code_version", "")),
            }


def _bags(run: Path, records: Records, episodes: str) -> list[str]:
    """Folders that the attempts of a stage were recorded in, with their number where they were handed in."""
    record = records.get(episodes, {})
    made = [one for one in record.get("inputs", {}) if not one.endswith("vision")]
    if all(one in records for one in made):
        return [out for one in made for out in records[one].get("outputs", {})]
    files = [run / out for out in record.get("outputs", {})]
    folders = Counter(_folder(run, file, _changed(file)) for file in files)
    return [f"{folder} ({count})" for folder, count in sorted(folders.items())]


@functools.lru_cache(maxsize=4096)
def _folder(run: Path, episode: Path, changed_s: float) -> str:
    """The folder of an episode's bag, from within the run where it lies there."""
    try:
        bag = (episode.parent / read_info(episode).bag).resolve().parent
    except (ConversionError, OSError, ValueError):
        return "?"
    home = run.resolve()
    return str(bag.relative_to(home) if bag.is_relative_to(home) else bag)


def _makes(records: Records, name: str, kind: str) -> bool:
    """Whether an input is a model of that kind: a stage's, or one that was handed in."""
    outputs = records.get(name, {}).get("outputs", {name.replace(" ", "/"): None})
    return any(Path(out).name == kind for out in outputs)


def _result(records: Records, name: str) -> dict[str, Any]:
    result = records.get(name, {}).get("result")
    return result if isinstance(result, dict) else {}


# --- how it went ----------------------------------------------------------------------------------------


def _logs(path: Path) -> dict[str, list[dict[str, float]]]:
    """ "iteration_01/policy" and so on → what its training has logged so far, at most MOST_POINTS of it; the
    newest first."""
    logs = {}
    folders = {*path.glob("*/training/*"), *path.glob("*/*/training/*"), *path.glob("*/*/*/training/*")}
    for folder in sorted(folders, key=_changed, reverse=True):
        entries = _read(folder / "log.json")
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            entries = _curves(folder / "events")
        if entries:
            every = -(-len(entries) // MOST_POINTS)
            logs["/".join([*folder.relative_to(path).parts[:-2], folder.name])] = entries[::every]
    return logs


def _curves(folder: Path) -> list[dict[str, float]]:
    """Of a training that is under way."""
    try:
        rows = read_curves(folder)
    except (OSError, ValueError, LookupError):
        return []
    return [{name: v for name, v in row.items() if name not in NOT_SHOWN} for row in rows]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
