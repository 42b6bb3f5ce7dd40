"""The arbiter's log, a line a tick, in a file: what the bag's mode trace must agree with."""

from __future__ import annotations

import csv
from pathlib import Path

from recap_teleop.settings import Logged

COLUMNS = ("stamp_ns", "mode", "state", "source", "reason")
FLUSH_TICKS = 50


class TickTrace:
    """Writes CSV. A disk that takes no more ends the trace, never the caller: `trouble` says so."""

    def __init__(self, path: Path | str):
        """Raises OSError where the file cannot be made."""
        self._file = open(path, "w", newline="")  # noqa: SIM115
        self._csv = csv.writer(self._file)
        self._csv.writerow(COLUMNS)
        self._ticks = 0
        self.trouble = ""

    def add(self, stamp_ns: int, tick: Logged) -> None:
        """`stamp_ns`: header stamp of the tick's command and of the mode published with it."""
        if self.trouble:
            return
        try:
            self._csv.writerow((stamp_ns, tick.state.mode.name, tick.state.name, tick.source, tick.reason))
            self._ticks += 1
            if self._ticks % FLUSH_TICKS == 0:
                self._file.flush()
        except OSError as error:
            self.trouble = f"{error.strerror}: {self._file.name}"

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.trouble = f"{error.strerror}: {self._file.name}"
