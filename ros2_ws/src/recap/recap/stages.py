"""A run's stages on a terminal: a bar for each at work, a line for each that is over, a table of times."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from recap_learner.stages import Report

__all__ = ["Report", "Shown", "about_code", "code_version"]


class Shown:
    """A `Display` of recap_learner.stages. expect_s: stage's name → its seconds, for the time left."""

    def __init__(self, console: Console, expect_s: Mapping[str, float] | None = None) -> None:
        self.console, self.expect_s = console, dict(expect_s or {})
        self.seconds: dict[str, float] = {}  # by stage, of the run that made it
        self.titles: dict[str, str] = {}
        self._worked, self._started = 0.0, time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Shown:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def begin(self, name: str, title: str) -> Report:
        left = sum(s for n, s in self.expect_s.items() if n not in self.seconds)
        note = f"about {left / 60:.0f} min left in all" if left else ""
        task = self._tasks[name] = self._bars.add_task(title, total=1.0, note=note)
        return lambda fraction, text: self._bars.update(task, completed=fraction, note=text)

    def end(self, name: str, title: str, seconds: float, before: bool) -> None:
        self.seconds[name], self.titles[name] = seconds, title
        self._worked += 0.0 if before else seconds
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        total = max(len(self.expect_s), len(self.seconds))
        place = f"[{len(self.seconds)}/{total}] " if self.expect_s else ""
        how = f"done before ({seconds:.0f} s)" if before else f"{seconds:.1f} s"
        self.console.print(f"{place}{title}: {how}", highlight=False, markup=False)

    def times(self) -> list[str]:
        """Wall time by stage, and how much of it overlapped."""
        total = sum(self.seconds.values())
        width = max((len(t) for t in self.titles.values()), default=0)
        lines = [
            f"{self.titles[name]:{width}}  {s:7.1f} s  {s / total:4.0%}" for name, s in self.seconds.items()
        ]
        wall = time.monotonic() - self._started
        if self._worked:
            beside = max(0.0, 1 - wall / self._worked)
            lines.append(
                f"stages done now took {self._worked:.1f} s in {wall:.1f} s of wall time "
                f"({beside:.0%} beside others)"
            )
        return lines


def about_code(checkout: Path) -> dict[str, Any]:
    """What every record says of how it was made."""
    return {
        "code_version": code_version(checkout),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def code_version(checkout: Path) -> str:
    """Commit of the code, with a mark if files were changed since; "unknown" outside a checkout."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
