"""What the attempts client makes of arrivals."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from recap.nodes.attempts_node import timing, wants_more


def test_a_late_message_is_a_long_period_and_only_a_missing_one_is_a_missed_tick() -> None:
    stamps = np.arange(101) * 0.02
    received = stamps.copy()
    received[50] += 0.015
    found = timing([received.tolist()], [stamps.tolist()])
    assert found["rate_hz"] == pytest.approx(50.0) and found["missed_ticks"] == 0
    assert found["period_max_ms"] == pytest.approx(35.0)
    assert found["period_p50_ms"] == pytest.approx(20.0)
    keep = np.ones(101, bool)
    keep[[10, 11, 40]] = False
    assert timing([stamps[keep].tolist()], [stamps[keep].tolist()])["missed_ticks"] == 3


def test_pauses_between_stretches_do_not_count() -> None:
    first, second = np.arange(50) * 0.02, 100.0 + np.arange(50) * 0.02
    found = timing([first.tolist(), [], second.tolist()], [first.tolist(), [], second.tolist()])
    assert found["missed_ticks"] == 0 and found["messages"] == 100
    assert sum(found["period_histogram"]["counts"]) == 98
    assert timing([], []) == {"messages": 0}


def test_attempts_go_on_until_a_person_has_taken_over_often_enough_but_not_for_ever() -> None:
    def made(each: int, attempts: int, wanted: int) -> int:
        takeovers: list[int] = []
        while wants_more(takeovers, attempts, wanted):
            takeovers.append(each)
        return len(takeovers)

    assert made(1, 6, 2) == 6 and made(0, 6, 0) == 6  # enough already
    assert made(0, 6, 2) == 12  # no help is wanted
    assert made(1, 3, 5) == 5
