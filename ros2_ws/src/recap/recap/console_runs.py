"""Learning runs as the console shows them: what stands in a run's folder, read by file.

Nothing is computed anew and nothing is taken for granted: a run that is under way, was killed, or is of
another version shows what there is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STAGES = "stages"


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Runs in the folder, the one that was at work last first."""
    runs = []
    for path in folder.iterdir() if folder.is_dir() else ():
        stages = sorted((path / STAGES).glob("*.json"), key=_changed)
        if stages:
            summary = path / "summary.json"
            runs.append(
                {
                    "name": path.name,
                    "changed_s": _changed(stages[-1]),
                    "last_stage": stages[-1].stem,
                    "done": summary.is_file(),
                }
            )
    return sorted(runs, key=lambda run: -run["changed_s"])


def read_run(path: Path) -> dict[str, Any]:
    """Stages with their seconds and results, evaluations of every policy, and the manifest where there is
    one."""
    stages = []
    for file in sorted((path / STAGES).glob("*.json"), key=_changed):
        record = _read(file)
        if isinstance(record, dict):
            result = record.get("result")
            stages.append({"stage": file.stem, "seconds": record.get("seconds"), "result": _small(result)})
    evaluations = []
    for stage in stages:
        result = stage["result"]
        if not isinstance(result, dict):
            continue
        for name, found in {stage["stage"]: result, **result}.items():  # of one policy, or of several
            if isinstance(found, dict) and {"attempts", "success_ci95"} <= found.keys():
                evaluations.append({"policy": name, "stage": stage["stage"], **found})
    return {
        "name": path.name,
        "stages": stages,
        "evaluations": evaluations,
        "logs": _logs(path),
        "manifest": _small(_read(path / "manifest.json")),
        "report": (path / "report.html").is_file(),
    }


def _logs(path: Path) -> dict[str, list[dict[str, float]]]:
    """ "pretrain/policy" and so on → entries of its training log, at most 300 of them."""
    logs = {}
    for file in sorted(path.glob("*/training/*/log.json")):
        entries = _read(file)
        if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
            every = max(1, len(entries) // 300)
            logs[f"{file.parts[-4]}/{file.parts[-2]}"] = entries[::every]
    return logs


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _small(value: Any, deep: int = 0) -> Any:
    """Without what is too long or too deep to be read by a person."""
    if isinstance(value, dict):
        return {str(k): _small(v, deep + 1) for k, v in value.items()} if deep < 6 else "…"
    if isinstance(value, list):
        return [_small(v, deep + 1) for v in value[:200]] if deep < 6 else "…"
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
