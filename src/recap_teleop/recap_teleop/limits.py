"""Limits of every command: position, velocity and acceleration, kept at each tick without exception.

Commands are positions p_k, one a tick. With steps v_k = p_k - p_{k-1} the contract asks, joint by joint, for

    lower <= p_k <= upper,  |v_k| <= V = max_velocity * dt,  |v_k - v_{k-1}| <= A = max_acceleration * dt^2.

A command that moves must be able to stop: braking by A a tick from a step v covers v + (v - A) + (v - 2A)
+ ..., the step itself included. `fastest` inverts that sum exactly, for discrete ticks (its continuous limit
is v = sqrt(2 A d)), so that a step no larger than `fastest(room)` can always be followed by one that brakes
by A at most and still fits into the room left: the three limits never contradict each other.
"""

from __future__ import annotations

import numpy as np

from recap_station.contract import Station


def braking_distance(step: np.ndarray, brake: np.ndarray) -> np.ndarray:
    """Distance covered by steps of |step|, |step| - brake, |step| - 2 brake, ... down to none, the first
    included. All (dof,), per tick."""
    count = np.ceil(np.abs(step) / brake)
    return count * np.abs(step) - brake * count * (count - 1) / 2


def fastest(room: np.ndarray, brake: np.ndarray) -> np.ndarray:
    """Largest step after which one can brake to a stop within `room` (>= 0), that step included. (dof,)."""
    count = np.maximum(1.0, np.ceil((np.sqrt(1.0 + 8.0 * room / brake) - 1.0) / 2.0))
    return room / count + brake * (count - 1.0) / 2.0


class Limiter:
    """The command sent last, how fast it moves, and what may come next. Vectors (dof,) float64."""

    def __init__(self, station: Station):
        self.lower, self.upper = station.lower, station.upper
        self.step = station.max_velocity * station.step_s  # largest per tick
        self.change = station.max_acceleration * station.step_s**2  # of the step, largest per tick
        self.sent: np.ndarray | None = None
        self.moving = np.zeros(station.dof)  # the last step
        self._target: np.ndarray | None = None

    def clip(self, positions: np.ndarray) -> np.ndarray:
        return np.clip(positions, self.lower, self.upper)

    def put(self, positions: np.ndarray) -> np.ndarray:
        """The robot stands there: nothing moves, whatever was sent before."""
        self.sent = self.clip(positions)
        self.halt()
        return self.sent

    def halt(self) -> None:
        """Stop at once, with no regard for acceleration: for an emergency stop alone."""
        self.moving = np.zeros_like(self.moving)
        self.forget()

    def forget(self) -> None:
        """The next target is somebody else's: how far it is from the last one says nothing of its pace."""
        self._target = None

    @property
    def resting(self) -> np.ndarray:
        """Where the command comes to rest when it brakes from now on."""
        assert self.sent is not None
        left = braking_distance(self.moving, self.change) - np.abs(self.moving)
        return self.sent + np.sign(self.moving) * left

    def brake(self) -> np.ndarray:
        """Next command: as much slower as is allowed, then the last one again and again."""
        self.forget()
        return self._go(np.zeros_like(self.moving), self.step)

    def follow(self, target: np.ndarray, speed: float = 1.0) -> np.ndarray:
        """Next command towards `target`, at no more than `speed` of the velocity limit.

        A target that itself moves within the limits is followed exactly, without lag: its last step is what
        is wanted, and only what is missing beside it is caught up, no faster than can be braked again.
        """
        assert self.sent is not None
        target = self.clip(target)
        pace = np.zeros_like(target) if self._target is None else target - self._target
        pace = np.clip(pace, -self.step, self.step)
        self._target = target
        missing = target - self.sent - pace
        wanted = pace + np.sign(missing) * fastest(np.abs(missing), self.change)
        return self._go(wanted, self.step * speed)

    def _go(self, wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
        """Take the step `wanted` as far as it is allowed; acceleration has the last word, since the other
        limits were kept in time for it (see the module's text)."""
        assert self.sent is not None
        most_up = np.minimum(most, fastest(self.upper - self.sent, self.change))
        most_down = np.minimum(most, fastest(self.sent - self.lower, self.change))
        step = np.clip(wanted, -most_down, most_up)
        step = np.clip(step, self.moving - self.change, self.moving + self.change)
        before = self.sent
        self.sent = self.clip(before + step)
        self.moving = self.sent - before
        return self.sent
