"""A run as a list of stages: each leaves a record and is skipped when its record still fits."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from recap_station.files import write_json

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Stage:
    """One step of a run. work(report) does it and returns what summary.json should hold of it;
    settings are all numbers it depends on besides the stages named in `after`."""

    name: str
    title: str
    settings: Any
    after: tuple[str, ...]
    work: Callable[[Report], dict[str, Any]]
    expect_s: float  # on two cores, for the time-left display of the whole run


class Runner:
    """Runs stages in order in one folder. A record is trusted when the stage's key — its settings and
    the keys of the stages before it — is the one it was made with."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.records = folder / "stages"
        self.console = console
        self.results: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self._keys: dict[str, str] = {}

    def run(self, stages: list[Stage]) -> None:
        for index, stage in enumerate(stages):
            left = sum(s.expect_s for s in stages[index:])
            self._run(stage, f"[{index + 1}/{len(stages)}] {stage.title}", left)

    def _run(self, stage: Stage, title: str, left_s: float) -> None:
        before = [self._keys[name] for name in stage.after]
        text = json.dumps([stage.name, stage.settings, before], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._keys[stage.name] = key
        path = self.records / f"{stage.name}.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        if record.get("key") == key:
            self.console.print(f"{title}: done before ({record['seconds']:.0f} s)")
        else:
            started = time.monotonic()
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            ) as bar:
                task = bar.add_task(title, total=1.0, note=f"about {left_s / 60:.0f} min left in all")
                result = stage.work(lambda f, note: bar.update(task, completed=f, note=note))
                bar.update(task, completed=1.0, note="")
            record = {"key": key, "seconds": time.monotonic() - started, "result": result}
            write_json(path, record)
        self.results[stage.name] = record["result"]
        self.seconds[stage.name] = record["seconds"]


def code_version(checkout: Path) -> str:
    """Commit of the code, with a mark if files were changed since; "unknown" outside a checkout."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
