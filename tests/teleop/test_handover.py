"""Handover arithmetic: approach at a limited speed, or keep the offset to the leader."""

from __future__ import annotations

import numpy as np

from recap_teleop.handover import Clutch, slew


def test_slew_limits_each_joint_by_itself_and_arrives() -> None:
    step = np.array([0.1, 0.2])
    np.testing.assert_allclose(slew(np.zeros(2), np.array([1.0, -0.05]), step), [0.1, -0.05])
    position = np.zeros(2)
    for _ in range(10):
        position = slew(position, np.array([1.0, -1.0]), step)
    np.testing.assert_allclose(position, [1.0, -1.0])


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
