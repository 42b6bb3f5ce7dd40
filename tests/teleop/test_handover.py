"""Handover arithmetic: approach at a limited speed, or keep the offset to the leader."""

from __future__ import annotations

import numpy as np

from recap_teleop.handover import Clutch, speed_at


def test_speed_rises_evenly_from_the_first_to_all_of_it() -> None:
    assert [speed_at(t, 0.5, 2.0) for t in (0.0, 1.0, 2.0, 9.0)] == [0.5, 0.75, 1.0, 1.0]
    assert speed_at(0.0, 0.5, 0.0) == 1.0  # no duration: no slowing down


def test_clutch_keeps_the_arms_offset_and_lets_grippers_through() -> None:
    clutch = Clutch(np.array([False, True]))
    leader = np.array([0.4, 0.9])
    np.testing.assert_array_equal(clutch.follow(leader), leader)
    clutch.engage(follower=np.array([1.0, 0.1]), leader=leader)
    np.testing.assert_allclose(clutch.follow(leader), [1.0, 0.9])
    np.testing.assert_allclose(clutch.follow(leader + 0.05), [1.05, 0.95])
    clutch.release()
    assert not clutch.engaged
    np.testing.assert_array_equal(clutch.follow(leader), leader)
