"""Last part of the report: data, training, time, lineage and settings."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path

import numpy as np

from recap.report import figures, page
from recap.report.run import Missing, Run

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
_ROUNDS = {"pretrain": "pre-training", "iteration_00": "SFT", "iteration_01": "RECAP"}
_MODELS = ("vision", "value", "policy")
_LABELLED_BY = {
    "pretrain/policy": "pretrain/value",
    "iteration_00/policy": "all positive",
    "iteration_01/policy": "iteration_01/value, corrections positive",
}


def show(run: Run) -> str:
    return (
        page.pair(
            page.part(lambda: _demonstrations(run), "Demonstrations")
            + page.part(lambda: _vision(run), "What the vision tower sees"),
            page.part(lambda: _rollouts(run), "Attempts of the SFT policy, learned from"),
        )
        + page.part(lambda: _training(run), "Training")
        + page.pair(
            page.part(lambda: _seconds(run), "Where the time went"),
            page.part(lambda: _lineage(run), "What was made from what") + _settings(run),
        )
    )


def _demonstrations(run: Run) -> str:
    found = run.need("demonstrations")
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
    rows = []
    for name, title in (("live", "live over ROS 2"), ("rollouts", "headless")):
        episodes = [e for e in run.rollouts if run.is_live(e) == (name == "live")]
        if episodes:
            success = float(np.mean([e.info.success for e in episodes]))
            person = float(np.mean(np.concatenate([e.correction for e in episodes])))
            takeovers = page.number((run.summary.get(name) or {}).get("takeovers"))
            counted = [str(len(episodes)), page.percent(success), takeovers, page.percent(person)]
            rows.append([title, *counted])
    heads = ("how", "attempts", "success", "takeovers", "by a person")
    shown = "<h3>Attempts of the SFT policy, learned from</h3>"
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
                line = _ROUNDS.get(round_, round_) + (f", fold {int(fold) + 1}" if fold else "")
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
        if name in _LABELLED_BY:
            made.append(f"labels: {_LABELLED_BY[name]}")
        identity = f"<br><code class=muted>{escape(str(checkpoint.get('identity', '')))}</code>"
        rows.append([f"<b>{escape(name)}</b>{identity}", "<br>".join(escape(line) for line in made)])
    return "<h3>What was made from what</h3>" + page.table((), rows)


def _settings(run: Run) -> str:
    shown = ""
    for title, key in (("Settings of the run", "config"), ("Labels and last losses", "training")):
        if run.summary.get(key):
            shown += page.folded(title, run.summary[key])
    return shown
