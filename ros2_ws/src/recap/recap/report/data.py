"""Last part of the report: data, training, time, lineage and settings."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from recap.report import figures, page
from recap.report.missing import Missing
from recap.report.run import Run
from recap_learner.data.episodes import Episode
from recap_learner.evaluation.recorded_evaluation import attempt_of

_STAGES = {
    "demonstrations": "demonstrations",
    "vision": "vision pre-training",
    "episodes": "bags to episodes",
    "pretrain_value": "pre-train value",
    "pretrain_policy": "pre-train policy",
    "sft": "SFT policy",
    "live": "live attempts, ROS 2",
    "rollouts": "rollouts, headless",
    "value": "value function",
    "policy": "RECAP policy",
    "evaluate": "evaluation",
}
_ROUNDS = {"pretrain": "pre-training", "iteration_00": "SFT"}
_MODELS = ("vision", "value", "policy")
_PARTS = (  # of the data, in minutes
    ("demonstrations", figures.ORANGE, ""),
    ("policy, attempt succeeded", figures.BLUE, ""),
    ("policy, attempt failed", figures.VERMILLION, "xx"),
    ("corrections by a person", figures.PURPLE, "////"),
)


def show(run: Run) -> str:
    return (
        page.part(lambda: _composition(run), "What was learned from")
        + page.pair(
            page.part(lambda: _demonstrations(run), "Demonstrations")
            + page.part(lambda: _vision(run), "What the vision tower sees"),
            page.part(lambda: _rollouts(run), "Attempts of the policies, learned from"),
        )
        + page.part(lambda: _training(run), "Training")
        + page.pair(
            page.part(lambda: _seconds(run), "Where the time went"),
            page.part(lambda: _lineage(run), "What was made from what") + _settings(run),
        )
    )


def _composition(run: Run) -> str:
    """Minutes of each kind, by where they were collected."""
    step = run.episodes[0].info.station.step_s
    rows: dict[str, list[float]] = {}
    for e in sorted(run.episodes, key=lambda e: run.iteration(e) or 0):
        demonstration, number = e.info.source == "demonstration", run.iteration(e)
        name = "demonstrations" if demonstration else f"iteration {number}" if number else "other attempts"
        minutes = rows.setdefault(name, [0.0] * len(_PARTS))
        corrected = float(e.correction.sum()) * step / 60
        alone = 0 if demonstration else 1 if e.info.success else 2
        minutes[alone] += e.duration_s / 60 - corrected
        minutes[3] += corrected
    return page.picture(
        figures.stacked(list(rows.items()), _PARTS, "minutes of attempts"),
        "Minutes of data by kind and iteration",
        f"{page.count(len(run.episodes), 'attempt')} in all. All that came before an iteration is "
        "learned from in it: what a policy did well, what it did badly, and what people did instead.",
        "What was learned from",
        wide=True,
    ) + "".join(page.note(f"Left out: {problem}") for problem in run.damaged)


def _demonstrations(run: Run) -> str:
    found = run.need("demonstrations")
    if "success" not in found:
        raise Missing("How the demonstrations went was not noted.")
    rows = [
        [
            escape(name),
            str(p["attempts"]),
            page.percent(p["success"]),
            page.number(p.get("mean_success_s"), 1, "s"),
        ]
        for name, p in [*found.get("by_style", {}).items(), ("all", found)]
    ]
    heads = ("style of the scripted expert", "attempts", "success", "mean time of a success")
    return "<h3>Demonstrations</h3>" + page.table(heads, rows, frozenset({1, 2, 3}))


def _vision(run: Run) -> str:
    errors = run.need("vision", "median_error_m")
    bars = [
        (point.replace("_", " "), 1000 * error, figures.SKY, f"{1000 * error:.1f} mm")
        for point, error in errors.items()
    ]
    return page.picture(
        figures.bars(bars, "median error [mm]"),
        "Bars of the vision tower's median error by point",
        "The vision tower was pre-trained on rendered scenes to say where these points are; this is how far "
        "off it is in scenes that it had not seen.",
        "What the vision tower sees",
    )


def _rollouts(run: Run) -> str:
    groups: dict[tuple[int, str], list[Episode]] = {}
    for e in run.rollouts:
        how = "live over ROS 2" if run.is_live(e) else "headless"
        groups.setdefault((run.iteration(e) or 0, how), []).append(e)
    rows = []
    for (number, how), episodes in sorted(
        groups.items(), key=lambda item: (item[0][0], item[0][1] == "headless")
    ):
        success = float(np.mean([e.info.success for e in episodes]))
        person = float(np.mean(np.concatenate([e.correction for e in episodes])))
        takeovers = sum(attempt_of(e).takeovers for e in episodes)
        title = f"iteration {number}, {how}" if number else how
        rows.append([title, str(len(episodes)), page.percent(success), str(takeovers), page.percent(person)])
    heads = ("how", "attempts", "success", "takeovers", "by a person")
    shown = "<h3>Attempts of the policies, learned from</h3>"
    shown += page.table(heads, rows, frozenset({1, 2, 3, 4}))
    lost = Counter(str(e.stage[-1]) or "unknown" for e in run.rollouts if not e.info.success)
    order = [*run.episodes[0].info.task.stages, "unknown"]
    bars = [(stage, lost[stage], figures.VERMILLION, str(lost[stage])) for stage in order if lost[stage]]
    if bars:
        shown += page.picture(
            figures.bars(bars, "failed attempts"),
            "Bars of failures by sub-task",
            "The sub-task in which failed attempts ended.",
            "Where they failed",
        )
    return shown


def _training(run: Run) -> str:
    logs = run.training_logs()
    panels: dict[str, dict[str, list[dict[str, float]]]] = {}
    for model in _MODELS:
        for name in sorted(logs, key=lambda n: (n.split("/")[0] != "pretrain", n)):
            round_, _, made = name.partition("/")
            kind, _, fold = made.partition(".fold")
            if kind == model:
                named = f"RECAP {round_[10:].lstrip('0')}" if round_.startswith("iteration_") else round_
                line = _ROUNDS.get(round_, named) + (f", fold {int(fold) + 1}" if fold else "")
                panels.setdefault(model, {})[line] = logs[name]
    return page.picture(
        figures.curves(panels),
        "Training losses",
        "Loss on the training batches. Each fold of the value function learns from one half of the attempts "
        "and judges the other.",
        "Training",
        wide=True,
    )


def _seconds(run: Run) -> str:
    seconds = {name: s for name, s in run.summary.get("seconds", {}).items() if name != "total"}
    if not seconds:
        raise Missing("No stage has been finished yet.")
    order = [*(n for n in _STAGES if n in seconds), *(n for n in seconds if n not in _STAGES)]
    rows = [(_STAGES.get(n, n), seconds[n], figures.GREY, f"{seconds[n]:.0f} s") for n in order]
    return page.picture(
        figures.bars(rows, "time [s]"),
        "Time by stage",
        f"{sum(seconds.values()) / 60:.1f} minutes in all.",
        "Where the time went",
    )


def _lineage(run: Run) -> str:
    rows = []
    for name, checkpoint in run.checkpoints().items():
        lineage = checkpoint.get("lineage") or {}
        start = lineage.get("start")
        made = [f"from {'/'.join(Path(start).parts[-2:])}" if start else "from nothing"]
        if "episodes" in lineage:
            made.append(f"on {len(lineage['episodes']):,} attempts, {lineage['frames']:,} frames")
        if name.endswith("policy"):
            made.append(f"labels: {_labelled_by(name, lineage)}")
        identity = f"<br><code class=muted>{escape(str(checkpoint.get('identity', '')))}</code>"
        rows.append([f"<b>{escape(name)}</b>{identity}", "<br>".join(escape(line) for line in made)])
    stages = {
        name: {
            "inputs": record.get("inputs"),
            "outputs": {
                out: about.get("sha256") if isinstance(about, dict) else about
                for out, about in (record.get("outputs") or {}).items()
            },
            "began": record.get("began"),
            "code": record.get("code_version"),
        }
        for name, record in run.records.items()
        if record.get("inputs") is not None
    }
    shown = "<h3>What was made from what</h3>" + page.table((), rows)
    return shown + (
        page.folded("Every stage, with hashes of what went in and came out", stages) if stages else ""
    )


def _labelled_by(name: str, lineage: dict[str, Any]) -> str:
    round_ = name.split("/")[0]
    arm = (lineage.get("arm") or {}).get("name") or ("sft" if round_ == "iteration_00" else "recap")
    if arm == "sft":
        return "all positive"
    return f"{round_}/value" + ("" if round_ == "pretrain" else ", corrections positive")


def _settings(run: Run) -> str:
    shown = ""
    for title, key in (("Settings of the run", "config"), ("Labels and last losses", "training")):
        if run.summary.get(key):
            shown += page.folded(title, run.summary[key])
    return shown
