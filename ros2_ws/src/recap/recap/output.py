"""What every verb prints its result with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Workers = Annotated[int, typer.Option(min=1, help="Processes of this machine to work in.")]
Ray = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Ray cluster to work on: HOST:PORT, ray://HOST:PORT or auto.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable last line on standard output.")]


def console(as_json: bool) -> Console:
    """With --json, standard output is kept for the one line."""
    return Console(stderr=as_json)


@contextmanager
def bar(title: str, as_json: bool) -> Iterator[Callable[[float, str], None]]:
    """A progress bar, driven by report(fraction, note); off a terminal it is shown once something is done."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
    note = TextColumn("{task.fields[note]}")
    shown = Progress(*columns, TimeElapsedColumn(), note, console=console(as_json))
    task = shown.add_task(title, total=1.0, note="")

    def report(fraction: float, text: str) -> None:
        shown.start()
        shown.update(task, completed=fraction, note=text)

    if shown.console.is_terminal:
        shown.start()
    try:
        yield report
    finally:
        if shown.live.is_started:
            shown.stop()


def tell(result: dict[str, Any], as_json: bool, ok: bool = True) -> None:
    """The result of a verb: one JSON line, or a few readable ones."""
    if as_json:
        print(json.dumps({"ok": ok, **result}))
        return
    for name, value in result.items():
        if isinstance(value, (list, dict)):
            print(f"{name}: {len(value)}")
        elif value is not None:
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
