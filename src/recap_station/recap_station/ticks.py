"""The 50 Hz timeline of an episode: which value of every stream holds at each tick.

One rule for live and offline use: a message belongs to a tick when its stamp is at or before the
tick's time, and the newest such message counts (`hold`). Gaps are marked by age, never filled in.
"""

from __future__ import annotations

import numpy as np

STALE_S = 0.1  # a stream older than this at a tick is a gap


def tick_times(start_ns: int, end_ns: int, rate_hz: float) -> np.ndarray:
    """Times of all ticks in [start, end] → (T,) int64 ns, exact multiples of the period from the start."""
    if end_ns < start_ns:
        raise ValueError(f"an episode ends before it starts: {end_ns} < {start_ns} ns")
    count = int(np.floor((end_ns - start_ns) * 1e-9 * rate_hz + 1e-6)) + 1
    return start_ns + np.round(np.arange(count) * (1e9 / rate_hz)).astype(np.int64)


def hold(stamps_ns: np.ndarray, ticks_ns: np.ndarray) -> np.ndarray:
    """Index of the newest message at or before each tick; −1 where there is none yet.

    stamps_ns: (M,) int64, ascending; ticks_ns: (T,) int64 → (T,) int64. A message stamped exactly at
    a tick belongs to it.
    """
    if len(stamps_ns) > 1 and np.any(np.diff(stamps_ns) < 0):
        raise ValueError("stamps are not in ascending order")
    return np.searchsorted(stamps_ns, ticks_ns, side="right") - 1


def align(
    stamps_ns: np.ndarray, ticks_ns: np.ndarray, how: str, tolerance_s: float = 0.0, period_s: float = 0.0
) -> np.ndarray:
    """`hold`, with −1 also where the message is too old to count → (T,) int64.

    how: "hold" takes any age, "asof" at most tolerance_s, "drop" less than period_s: since the tick before.
    """
    index = hold(stamps_ns, ticks_ns)
    if how == "hold" or not len(stamps_ns):
        return index
    age = ticks_ns - stamps_ns[np.maximum(index, 0)]
    late = age * 1e-9 > tolerance_s if how == "asof" else age >= round(period_s * 1e9)
    return np.where(late, -1, index)


def age_s(stamps_ns: np.ndarray, ticks_ns: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Age of the held message at each tick → (T,) float32 seconds; inf where there is none."""
    if len(stamps_ns) == 0:
        return np.full(len(ticks_ns), np.inf, dtype=np.float32)
    age = (ticks_ns - stamps_ns[np.maximum(index, 0)]) * 1e-9
    return np.where(index < 0, np.inf, age).astype(np.float32)
