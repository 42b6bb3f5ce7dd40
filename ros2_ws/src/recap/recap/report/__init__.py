"""The report of a run: one HTML file that shows what was learned, how well, and how it was controlled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path

from recap.report import attempts, comparison, control, data, learning, page, result
from recap.report.run import Run
from recap_station.files import replace_file

_SECTIONS = (
    ("Result", "Is the last policy better?", result.show),
    ("Comparison", "Other ways to learn, other ways to ask", comparison.show),
    ("Attempts", "Attempts, as camera and value function saw them", attempts.show),
    ("Value", "Value function", learning.show_value),
    ("Advantage", "Advantage and labels", learning.show_advantage),
    ("Timing", "Control timing, live over ROS 2", control.show),
    ("Data", "Data, training and settings", data.show),
)


def write_report(run: Path) -> Path:
    """Write `run`/report.html from what is on disk there → its path.

    A run that stopped half-way gives a report too: every part that cannot be shown says what is missing.
    Raises FileNotFoundError if there is no such folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run folder")
    found = Run(run)
    head = page.part(partial(result.head, found))
    sections = [(name, title, _of_tasks(found, show)) for name, title, show in _SECTIONS]
    html = page.document(f"RECAP: {run.resolve().name}", head, sections)
    out = run / "report.html"
    replace_file(out, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return out


def _of_tasks(run: Run, show: Callable[[Run], str]) -> str:
    """A section, once a task where the run has several."""
    if len(run.tasks) == 1:
        return page.part(partial(show, run.of(run.tasks[0])))
    return "".join(
        f'<h2 class="task">{escape(task)}</h2>{page.part(partial(show, run.of(task)))}' for task in run.tasks
    )
