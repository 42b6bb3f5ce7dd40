"""Statistics of a steady tick: periods, missed ticks, time spent."""

from __future__ import annotations

from collections import deque

import numpy as np


class TickStatistics:
    """Periods of the last `window` ticks, and counts since the start. Times in ns of a steady clock."""

    def __init__(self, period_s: float, window: int = 1000):
        self.period_s = period_s
        self.ticks = 0
        self.missed = 0
        self.max_period_ns = 0
        self._periods: deque[int] = deque(maxlen=window)
        self._busy: deque[int] = deque(maxlen=window)
        self._last = 0
        self._last_due = 0

    def tick(self, now_ns: int, next_due_ns: int) -> None:
        """A tick began; `next_due_ns` is when the schedule wants the next one."""
        if self.ticks:
            period = now_ns - self._last
            self._periods.append(period)
            self.max_period_ns = max(self.max_period_ns, period)
            self.missed += max(0, round((next_due_ns - self._last_due) / (self.period_s * 1e9)) - 1)
        self.ticks += 1
        self._last, self._last_due = now_ns, next_due_ns

    def done(self, now_ns: int) -> None:
        """The tick's work is done."""
        self._busy.append(now_ns - self._last)

    def summary(self) -> dict[str, float]:
        """rate_hz, period_p50_ms, period_p99_ms, busy_p99_ms of the window; period_max_ms, ticks, missed."""
        periods = np.array(self._periods or [self.period_s * 1e9]) / 1e6
        return {
            "rate_hz": float(1e3 / periods.mean()),
            "period_p50_ms": float(np.percentile(periods, 50)),
            "period_p99_ms": float(np.percentile(periods, 99)),
            "period_max_ms": self.max_period_ns / 1e6,
            "busy_p99_ms": float(np.percentile(self._busy, 99)) / 1e6 if self._busy else 0.0,
            "ticks": self.ticks,
            "missed": self.missed,
        }
