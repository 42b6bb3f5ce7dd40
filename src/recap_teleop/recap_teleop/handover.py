"""Two ways from one source to the next without a jump: `slew` and `clutch`.

`slew` walks to the leader's pose, `clutch` starts where the robot is and takes the leader's motion alone.
Both begin at a fraction of the velocity limits and have all of them `handover_s` later: see `speed_at`.
"""

from __future__ import annotations

import numpy as np

STYLES = ("slew", "clutch")


def speed_at(since_s: float, first: float, duration_s: float) -> float:
    """Fraction of the velocity limits, `since_s` after a change of hands: `first`, rising evenly to 1."""
    if since_s >= duration_s:
        return 1.0
    return first + (1.0 - first) * max(0.0, since_s) / duration_s


class Clutch:
    """The leader's motion relative to the follower's pose at the moment of engaging.

    Arms keep the offset between leader and follower for as long as the clutch is engaged; grippers are
    absolute, since a person must be able to close them fully whatever they were at the press.
    """

    def __init__(self, is_gripper: np.ndarray):
        self._is_gripper = is_gripper
        self._offset: np.ndarray | None = None

    @property
    def engaged(self) -> bool:
        return self._offset is not None

    def engage(self, follower: np.ndarray, leader: np.ndarray) -> None:
        """Both (dof,): where the command comes to rest if nobody moves, and the leader's pose now."""
        self._offset = np.where(self._is_gripper, 0.0, follower - leader)

    def release(self) -> None:
        self._offset = None

    def follow(self, leader: np.ndarray) -> np.ndarray:
        """(dof,) command for the leader's pose; the pose itself while not engaged."""
        return leader if self._offset is None else leader + self._offset
