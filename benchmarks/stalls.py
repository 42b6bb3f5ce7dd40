"""Does the machine itself stand still? Beside a measurement, or alone. The last line is JSON.

    python benchmarks/stalls.py [--seconds 60]

One watcher on each core, at a real-time priority above everything of ours, wakes every 4 ms and notes when it
was late. What holds it up is no node: the kernel, or a host that gave the core to somebody else. A missed
tick of a loop at 50 Hz is the machine's where a watcher stood still at that moment. Without leave to take
such a priority (CAP_SYS_NICE) nothing is watched, and nothing excused.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

PERIOD_S = 0.004
LATE_MS = 5.0  # from here on it counts
PRIORITY = 95


class Stalls:
    """Watches from its making on; a context manager that leaves no process. Before threads are started."""

    def __init__(self) -> None:
        context = get_context("fork")
        self._pipes: list[Connection] = []
        self._watchers = []
        for core in sorted(os.sched_getaffinity(0)):
            ours, theirs = context.Pipe()
            watcher = context.Process(target=_watch, args=(core, theirs), daemon=True)
            watcher.start()
            theirs.close()
            self._pipes.append(ours)
            self._watchers.append(watcher)

    def __enter__(self) -> Stalls:
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.kill()
            watcher.join()

    def seen(self) -> list[tuple[float, float]] | None:
        """(when it should have woken, on time.monotonic; how late [ms]) so far, of all cores; None: nothing
        was watched."""
        found: list[tuple[float, float]] = []
        for pipe in self._pipes:
            pipe.send(None)
            told = pipe.recv()
            if told is None:
                return None
            found += told
        return sorted(found)


def excused(moments: list[float], seen: list[tuple[float, float]] | None, within_s: float) -> int:
    """How many of some moments (time.monotonic) had a stall at most `within_s` before them."""
    return sum(any(0 <= moment - at <= within_s for at, _ in seen or ()) for moment in moments)


def summary(seen: list[tuple[float, float]] | None) -> dict[str, Any]:
    """`stalls` of at least LATE_MS on a core, and the longest; None where nothing was watched."""
    if seen is None:
        return {"stalls": None, "stall_max_ms": None}
    return {"stalls": len(seen), "stall_max_ms": round(max((ms for _, ms in seen), default=0.0), 1)}


def _watch(core: int, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the measurement decides what Ctrl-C means
    late: list[tuple[float, float]] | None = []
    try:
        os.sched_setaffinity(0, {core})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError:
        late = None
    due = time.monotonic()
    try:
        while True:
            due = max(due + PERIOD_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            ms = 1e3 * (time.monotonic() - due)
            if late is not None and ms >= LATE_MS:
                late.append((due, ms))
            if pipe.poll():
                pipe.recv()
                pipe.send(late)
                late = late if late is None else []
    except (EOFError, OSError):
        return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    if given.seconds <= 0:
        parser.error(f"--seconds: wanted more than 0, found {given.seconds:g}")
    with Stalls() as stalls:
        time.sleep(given.seconds)
        print(json.dumps({**summary(stalls.seen()), "seconds": given.seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
