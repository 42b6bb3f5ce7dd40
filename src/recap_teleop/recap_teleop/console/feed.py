"""The newest of everything that the live page shows, between two threads: one writes, one reads.

Nothing waits and nothing grows: a slot is replaced in one assignment, and a ring of fixed length keeps the
last half minute of the 50 Hz signals.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap_teleop.board import NodeSeen, Snapshot

KEPT_S = 30.0
VALUES = 3000  # of the value function, at up to 50 Hz
HEAD = struct.Struct("<BxxxIIId")  # kind, first sample's number, samples, columns, time of the first [s]
SAMPLES = 2
FIXED = 3  # columns before the joints: seconds since the first, mode, value


@dataclass(frozen=True)
class Frame:
    """A camera's picture as it came; `number` counts."""

    number: int
    jpeg: bytes
    at_s: float


@dataclass(frozen=True)
class Policy:
    """What the newest chunk of actions says."""

    subtask: str = ""
    indicator: str = ""
    checkpoint: str = ""
    inference_s: float = 0.0
    at_s: float = 0.0


@dataclass(frozen=True)
class Withheld:
    """A checkpoint that the learner does not offer by itself, and why; "" where there is none."""

    checkpoint: str = ""
    reasons: tuple[str, ...] = ()


class Feed:
    """Written by the thread of ROS. A sample is (1 + 2 + 2 · dof) float32: time, mode, value, then every
    joint's command and every joint's measurement in the station's order; NaN where nothing is known."""

    def __init__(self, cameras: int, dof: int, rate_hz: float) -> None:
        self.frames: list[Frame | None] = [None] * cameras
        self.snapshot: Snapshot | None = None
        self.nodes: tuple[NodeSeen, ...] = ()
        self.policy = Policy()
        self.withheld = Withheld()
        self.columns = FIXED + 2 * dof
        self.count = 0  # samples so far
        self._size = round(KEPT_S * rate_hz)
        self._times = np.zeros(self._size)
        self._rows = np.full((self._size, self.columns), np.nan, dtype=np.float32)
        self._state = np.full(dof, np.nan)
        self._value, self._value_s = np.nan, -np.inf
        self._values: deque[tuple[float, float]] = deque(maxlen=VALUES)
        self.episode = ""

    # --- the writer's side --------------------------------------------------------------------------

    def camera(self, index: int, jpeg: bytes, at_s: float) -> None:
        before = self.frames[index]
        self.frames[index] = Frame(before.number + 1 if before else 1, jpeg, at_s)

    def state(self, positions: np.ndarray) -> None:
        self._state = positions

    def value(self, value: float, at_s: float) -> None:
        self._value, self._value_s = value, at_s
        self._values.append((at_s, value))

    def began(self, episode: str) -> None:
        """Another attempt: the value curve begins anew."""
        if episode != self.episode:
            self.episode, self._values = episode, deque(maxlen=VALUES)

    def command(self, positions: np.ndarray, mode: int, at_s: float) -> None:
        """One tick of the control loop, with what was measured and expected by then."""
        row = self._rows[self.count % self._size]
        row[1], row[2] = mode, self._value if at_s - self._value_s < 1.0 else np.nan
        dof = len(positions)
        row[FIXED : FIXED + dof], row[FIXED + dof :] = positions, self._state
        self._times[self.count % self._size] = at_s
        self.count += 1

    # --- the reader's side --------------------------------------------------------------------------

    def samples(self, since: int, most: int) -> tuple[int, bytes]:
        """Samples after the first `since`, at most the newest `most` → (count by then, message or b"")."""
        count = self.count
        first = max(since, count - min(most, self._size - 50), 0)  # the writer may be 50 ahead
        if first >= count:
            return count, b""
        at = np.arange(first, count) % self._size
        rows, times = self._rows[at], self._times[at]
        rows[:, 0] = times - times[0]
        head = HEAD.pack(SAMPLES, first, count - first, self.columns, times[0])
        return count, head + rows.tobytes()

    def values(self) -> list[tuple[float, float]]:
        """(time [s], value) of the attempt so far."""
        return [(round(at, 3), round(value, 5)) for at, value in tuple(self._values)]

    def to_dict(self, now_s: float) -> dict[str, Any]:
        """What is said of the policy, for JSON."""
        policy = self.policy
        fresh = bool(policy.at_s) and now_s - policy.at_s < 5.0
        return {
            "subtask": policy.subtask if fresh else "",
            "indicator": policy.indicator if fresh else "",
            "checkpoint": policy.checkpoint,
            "inference_ms": round(1e3 * policy.inference_s, 1),
            "chunk_age_s": round(now_s - policy.at_s, 2) if policy.at_s else None,
        }
