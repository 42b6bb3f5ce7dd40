"""Benchmarks by name: the files in benchmarks/, each a program that ends with one line of JSON."""

from __future__ import annotations

import ast
import difflib
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recap.bringup import UsageError


@dataclass(frozen=True)
class Benchmark:
    name: str
    about: str  # first line of its docstring
    path: Path


def find(root: Path) -> list[Benchmark]:
    """The benchmarks of a checkout, by name. Raises UsageError where there are none: in an installation."""
    found = []
    for path in sorted((root / "benchmarks").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found.append(Benchmark(path.stem, text.split("\n")[0], path))
    if not found:
        raise UsageError(f"no benchmarks in {root}: wanted a checkout, with its folder benchmarks/")
    return found


def run(found: Sequence[Benchmark], name: str, arguments: Sequence[str], last_line_only: bool = False) -> int:
    """Run one as a program of its own, in this terminal → its exit code. Raises UsageError on a name there is
    not. `last_line_only`: its JSON alone on standard output, what it says before that on standard error."""
    by_name = {one.name: one for one in found}
    if name not in by_name:
        close = difflib.get_close_matches(name.replace("-", "_"), by_name, n=1, cutoff=0.5)
        hint = f", did you mean {close[0]!r}?" if close else f" (there are: {', '.join(by_name)})"
        raise UsageError(f"no benchmark {name!r}{hint}")
    output = subprocess.PIPE if last_line_only else None
    program = subprocess.Popen(
        [sys.executable, str(by_name[name].path), *arguments], stdout=output, text=True
    )
    # Ctrl-C reaches the whole terminal: the benchmark ends what it started, and is waited for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())
    last = ""
    for line in program.stdout or ():
        if last:
            sys.stderr.write(last)
        last = line
    code = program.wait()
    if last:
        sys.stdout.write(last)
    return code if code >= 0 else 128 - code
