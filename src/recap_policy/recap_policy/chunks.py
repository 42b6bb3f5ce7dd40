"""Which step of which chunk is due: by ticks counted, never by an estimate of the latency.

A chunk inferred from the observation of tick k and arriving at tick k + d starts at its row d.
"""

from __future__ import annotations

import numpy as np

from recap_station.contract import ContractError


class ChunkBuffer:
    """Holds the newest chunk. A fresh one is due every `execute` ticks after the last observation."""

    def __init__(self, execute: int = 25):
        if execute < 1:
            raise ContractError(f"execute is {execute} steps, wanted at least 1")
        self.execute = execute
        self._chunk: np.ndarray | None = None
        self._start = 0

    def push(self, chunk: np.ndarray, observation_tick: int) -> None:
        """chunk: (horizon, dof), row i meant for tick observation_tick + i. An older chunk than the held is ignored.

        Raises ContractError where a number is not finite.
        """
        if not np.isfinite(chunk).all():
            raise ContractError("the chunk holds a number that is not finite")
        if self._chunk is None or observation_tick >= self._start:
            self._chunk, self._start = chunk, observation_tick

    def pop(self, tick: int) -> np.ndarray | None:
        """The row for `tick` (dof,), or None before the first chunk and past the last one's end."""
        row = tick - self._start
        if self._chunk is None or not 0 <= row < len(self._chunk):
            return None
        return self._chunk[row]

    def flush(self) -> None:
        """Forget everything: nothing comes out until a fresh chunk is pushed."""
        self._chunk = None

    def needs_chunk(self, tick: int) -> bool:
        return self._chunk is None or tick - self._start >= self.execute
