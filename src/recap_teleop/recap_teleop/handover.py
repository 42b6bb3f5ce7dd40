"""Two ways from one source to the next without a jump: `slew` and `clutch`."""

from __future__ import annotations

import numpy as np

STYLES = ("slew", "clutch")


def slew(last: np.ndarray, target: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(dof,) from `last` towards `target`, each joint by at most `step` (rad per tick; gripper units)."""
    return last + np.clip(target - last, -step, step)


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
        """Both (dof,): the last command sent, and the leader's pose now."""
        self._offset = np.where(self._is_gripper, 0.0, follower - leader)

    def release(self) -> None:
        self._offset = None

    def follow(self, leader: np.ndarray) -> np.ndarray:
        """(dof,) command for the leader's pose; the pose itself while not engaged."""
        return leader if self._offset is None else leader + self._offset
