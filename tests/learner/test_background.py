"""Work beside a robot: what is in the foreground has its core, and nothing outlives who began it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from recap_learner.background import Background, cores_for

pytestmark = pytest.mark.alone

COUNTING = ["-n", "1", "-r", "1", "sum(range(10**10))"]  # minutes of it


def used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_the_foreground_of_another_session_has_the_core() -> None:
    """Where sessions are scheduled as groups (`sched_autogroup_enabled`), a nice value alone would leave the
    background half of the core."""
    core = cores_for(os.sched_getaffinity(0), 1)
    foreground = subprocess.Popen(
        [sys.executable, "-m", "timeit", *COUNTING],
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )
    background = Background("timeit", COUNTING, cores=1)
    try:
        both = [psutil.Process(foreground.pid), psutil.Process(background.process.pid)]
        end = time.monotonic() + 60.0
        while used_s(both[0]) < 0.5 and time.monotonic() < end:
            time.sleep(0.05)
        before = [used_s(one) for one in both]
        while used_s(both[0]) - before[0] < 1.0 and time.monotonic() < end:
            time.sleep(0.05)
        ahead, behind = (used_s(one) - was for one, was in zip(both, before, strict=True))
        assert ahead >= 1.0
        assert behind < ahead / 3
    finally:
        background.stop()
        foreground.kill()
        foreground.wait()


def test_stopped_it_is_over_and_says_how() -> None:
    background = Background("timeit", COUNTING)
    assert not background.ended()
    background.stop()
    assert background.ended()
    assert background.end == "ended by SIGTERM"
