"""Arms put elsewhere are told from arms that lag behind."""

from __future__ import annotations

import numpy as np

from recap_station.contract import load_station
from recap_teleop.displaced import SETTLE_S, Displaced

STATION = load_station("aloha")
HELD = STATION.home


def away(distance: float) -> np.ndarray:
    return HELD + np.where(STATION.is_gripper, 0.0, distance)


def test_arms_that_come_to_rest_late_were_not_put_elsewhere() -> None:
    displaced = Displaced(STATION)
    assert not displaced.watch(0.0, away(0.3), None)
    for tick in range(1, 80):
        assert not displaced.watch(0.02 * tick, away(0.3 * 0.95**tick), HELD)


def test_arms_moved_by_hand_and_arms_reset_in_a_leap_were() -> None:
    by_hand = Displaced(STATION)
    assert not by_hand.watch(0.00, away(0.0), HELD)
    assert not by_hand.watch(0.02, away(0.04), HELD)
    assert by_hand.watch(0.04, away(0.06), HELD)
    reset = Displaced(STATION)
    assert not reset.watch(0.00, away(0.3), None)
    assert not reset.watch(0.02, away(0.29), HELD)
    assert reset.watch(0.04, away(-0.5), HELD)
    assert reset.watch(0.06, away(-0.5), HELD)  # remembered: nothing puts it where it is held


def test_a_gripper_that_grips_and_a_late_measurement_are_no_leap() -> None:
    displaced = Displaced(STATION)
    gripping = HELD + np.where(STATION.is_gripper, 0.5, 0.0)
    assert not displaced.watch(0.00, gripping, HELD)
    late = Displaced(STATION)
    assert not late.watch(0.0, away(0.5), None)
    assert not late.watch(0.2, away(0.1), HELD)  # 2 rad/s over ten ticks: no leap


def test_arms_stuck_elsewhere_are_held_there_in_the_end() -> None:
    displaced = Displaced(STATION)
    assert not displaced.watch(0.0, away(0.2), HELD)
    assert not displaced.watch(SETTLE_S, away(0.2), HELD)
    assert displaced.watch(SETTLE_S + 0.1, away(0.2), HELD)
