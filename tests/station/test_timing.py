"""Tick statistics: missed ticks by the schedule, periods by the clock."""

from __future__ import annotations

import pytest

from recap_station.timing import TickStatistics

MS = 1_000_000


def test_late_ticks_are_not_missed_and_skipped_ones_are() -> None:
    statistics = TickStatistics(0.02)
    for now, due in [(0, 20), (20, 40), (55, 60), (60, 80), (125, 140), (140, 160)]:
        statistics.tick(now * MS, due * MS)
        statistics.done((now + 1) * MS)
    summary = statistics.summary()
    assert summary["ticks"] == 6
    assert summary["missed"] == 2  # those due at 80 and 100; the one due at 120 came late
    assert summary["period_max_ms"] == 65.0
    assert summary["busy_p99_ms"] == pytest.approx(1.0)


def test_steady_ticks_have_the_rate_they_were_asked_for() -> None:
    statistics = TickStatistics(0.02, window=10)
    for k in range(100):
        statistics.tick(k * 20 * MS, (k + 1) * 20 * MS)
    summary = statistics.summary()
    assert summary["rate_hz"] == pytest.approx(50.0) and summary["missed"] == 0
    assert summary["period_p50_ms"] == summary["period_p99_ms"] == 20.0
