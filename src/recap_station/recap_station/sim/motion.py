"""Smooth motion of one arm's tip: minimum-jerk moves whose goal may change on the way.

At every tick the minimum-jerk curve from the present position, velocity and acceleration to the goal in the
time left is followed for one tick, so a new goal bends the path instead of breaking it.
"""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np

from recap_station.contract import Station
from recap_station.sim.arms import ARM_DOF, Arm, Unreachable, reach_down

TOP_SPEED = 0.75  # m/s in the middle of a fast move
TOP_TURN = 3.5  # rad/s
SHORTEST_S = 0.22
GRIP_S = 0.36  # for the whole way; within the velocity limit of 6 per second
JOIN_S = 0.4  # time to bend a pose that does not point straight down into one that does


class Blend:
    """Several numbers moving together to a goal along minimum-jerk curves."""

    def __init__(self, position: np.ndarray) -> None:
        self.position = np.array(position, dtype=np.float64)
        self.goal = self.position.copy()
        self._v = np.zeros_like(self.position)
        self._a = np.zeros_like(self.position)
        self.left_s = 0.0

    def go(self, goal: np.ndarray, duration_s: float) -> None:
        self.goal = np.array(goal, dtype=np.float64)
        self.left_s = max(duration_s, 0.06)

    def advance(self, dt: float) -> np.ndarray:
        T = self.left_s
        if dt >= T:
            # what is left after the last tick of a curve is far below a micrometre
            self.position, self.left_s = self.goal.copy(), 0.0
            self._v[:] = 0.0
            self._a[:] = 0.0
            return self.position
        d, v, a = self.goal - self.position, self._v, self._a
        c3 = (20 * d - 12 * v * T - 3 * a * T**2) / (2 * T**3)
        c4 = (-30 * d + 16 * v * T + 3 * a * T**2) / (2 * T**4)
        c5 = (12 * d - 6 * v * T - a * T**2) / (2 * T**5)
        t = dt
        self.position = self.position + v * t + a * t**2 / 2 + c3 * t**3 + c4 * t**4 + c5 * t**5
        self._v = v + a * t + 3 * c3 * t**2 + 4 * c4 * t**3 + 5 * c5 * t**4
        self._a = a + 6 * c3 * t + 12 * c4 * t**2 + 20 * c5 * t**3
        self.left_s = T - dt
        return self.position


class TipMotion:
    """Commands for one arm: where its tip goes, how a bar in it would be turned, how far it opens."""

    def __init__(
        self, station: Station, arm: Arm, first: int, tip: np.ndarray, yaw: float, state: np.ndarray
    ) -> None:
        """Starts exactly at the measured `state` (dof,), whose tip is at `tip` with heading `yaw`."""
        self._arm, self._dt = arm, station.step_s
        limits = slice(first, first + ARM_DOF + 1)
        self._most = 0.95 * station.max_velocity[limits] * station.step_s
        self._lower, self._upper = station.lower[limits], station.upper[limits]
        measured = state[limits]
        self.pose = Blend(np.append(tip, yaw))
        self.hand = Blend(measured[ARM_DOF:])
        self._last = measured.copy()
        self._join_s = 0.0
        try:
            self._joints = reach_down(arm, tip, yaw, measured[5])
            self._offset = measured[:ARM_DOF] - self._joints
        except Unreachable:
            self._joints = measured[:ARM_DOF].copy()
            self._offset = np.zeros(ARM_DOF)

    @property
    def goal(self) -> np.ndarray:
        return self.pose.goal

    @property
    def left_s(self) -> float:
        return self.pose.left_s

    def go(self, tip: np.ndarray, yaw: float, speed: float = 1.0) -> None:
        """Move to `tip` with a bar's heading of `yaw` (whichever half turn is nearer)."""
        yaw += math.pi * round((self.pose.position[3] - yaw) / math.pi)
        goal = np.append(tip, yaw)
        far = float(np.linalg.norm(goal[:3] - self.pose.position[:3]))
        turn = abs(yaw - self.pose.position[3])
        duration = max(1.875 * far / TOP_SPEED, 1.875 * turn / TOP_TURN, SHORTEST_S) / speed
        self.pose.go(goal, duration)

    def follow(self, tip: np.ndarray, yaw: float, speed: float = 1.0) -> None:
        """Correct the goal on the way without starting the move anew, unless it moved far."""
        yaw += math.pi * round((self.pose.position[3] - yaw) / math.pi)
        goal = np.append(tip, yaw)
        moved = float(np.abs(goal - self.pose.goal).max())
        if moved > 0.02:
            self.go(tip, yaw, speed)
        elif moved > 0.002:
            self.pose.go(goal, max(self.pose.left_s, SHORTEST_S))

    def grip(self, opening: float, speed: float = 1.0) -> None:
        if abs(self.hand.goal[0] - opening) > 1e-6:
            self.hand.go(
                np.array([opening]), max(GRIP_S * abs(opening - self.hand.position[0]), 0.15) / speed
            )

    def advance(self, tremor: np.ndarray) -> np.ndarray:
        """One tick → command (7,) within the joint and velocity limits; `tremor` (3,) is added to the tip."""
        pose, hand = self.pose.advance(self._dt), self.hand.advance(self._dt)
        with suppress(Unreachable):  # else it stays where it last could be; the goal will change
            self._joints = reach_down(self._arm, pose[:3] + tremor, pose[3], self._joints[5])
        self._join_s = min(self._join_s + self._dt, JOIN_S)
        s = self._join_s / JOIN_S
        fade = 1.0 - s**3 * (10 - 15 * s + 6 * s * s)
        wanted = np.append(self._joints + fade * self._offset, hand)
        step = np.clip(wanted - self._last, -self._most, self._most)
        self._last = np.clip(self._last + step, self._lower, self._upper)
        return self._last
