"""What every verb prints its result with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Machine-readable last line on standard output.")]


def tell(result: dict[str, Any], as_json: bool, ok: bool = True) -> None:
    """The result of a verb: one JSON line, or a few readable ones."""
    if as_json:
        print(json.dumps({"ok": ok, **result}))
        return
    for name, value in result.items():
        if isinstance(value, list):
            print(f"{name}: {len(value)}")
        elif value is not None:
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
