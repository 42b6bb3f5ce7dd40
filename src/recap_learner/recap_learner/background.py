"""Work beside a robot that the robot must not feel: processes of their own, of idle priority, on few cores.

The kernel runs a process of the idle class (SCHED_IDLE) only where nobody else wants the core, and treats its
disk accesses alike; the limit on cores keeps it from sharing more caches than it has to. Both are inherited
by what the process starts. Such a process ends with the one that began it, however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from recap_station.parent import end_with_parent

STOP_S = 1.5  # less than a launcher waits before it kills
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")


def cores_for(allowed: Collection[int], count: int) -> list[int]:
    """The cores that `count` of them come to: the last ones, for the first serve most interrupts. 0: all."""
    return sorted(allowed)[-count:] if count else sorted(allowed)


class Background:
    """A Python module as such a process. What it prints as lines of JSON comes through a queue, read by a
    thread; its stderr is this process's."""

    def __init__(self, module: str, arguments: Sequence[str], cores: int = 0) -> None:
        """cores: how many it, and all that it starts, may use; 0: those that this process may.

        To be called in a thread that lasts: the process ends with it.
        """
        self.module = module
        on = cores_for(os.sched_getaffinity(0), cores)
        threads = dict.fromkeys(_POOLS, str(len(on)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
            start_new_session=True,
            preexec_fn=lambda: _retire(on),
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self) -> list[dict[str, Any]]:
        """What it has said since the last call."""
        found = []
        with suppress(Empty):
            while True:
                with suppress(ValueError):
                    found.append(json.loads(self._lines.get_nowait()))
        return found

    def ended(self) -> bool:
        """Whether it is over, with all that it started, and what it said can be had."""
        if self.process.poll() is None:
            return False
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what outlived it would hold its output open
        return not self._reader.is_alive()

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        if code is None:
            return "under way"
        if code < 0:
            with suppress(ValueError):
                return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def stop(self) -> None:
        """End it and whatever it started; what it had saved lets it go on later."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        with suppress(ProcessLookupError):  # also what outlived it
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # of idle priority, it may take a while to end
            self.process.wait(STOP_S)
        self._reader.join(STOP_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self._lines.put(line)


def say(event: Mapping[str, Any]) -> None:
    """For such a process: tell the one that began it."""
    print(json.dumps(event), flush=True)


def _retire(cores: Sequence[int]) -> None:
    """Before the process's program begins."""
    end_with_parent(signal.SIGTERM)
    os.sched_setaffinity(0, cores)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        os.nice(19)
    # Where the kernel groups processes by session, each group gets an equal share of a core, whatever the
    # classes and nice values inside it: this one's group is to give way too.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
