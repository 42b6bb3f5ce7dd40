"""Which step of which chunk is due: by ticks counted, never by an estimate of the latency.

A chunk inferred from the observation of tick k and arriving at tick k + d starts at its row d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recap_station.contract import ContractError

EXECUTE_STEPS = 25  # of a chunk, before the next is due; fewer react sooner and cost more inference
LEAD_STEPS = 4  # how far ahead of that it is asked for; meanwhile the steps of the last one are carried out


@dataclass(frozen=True)
class Chunk:
    """positions: (horizon, dof) float64 absolute joint commands within the limits, in the station's order."""

    positions: np.ndarray
    subtask: str = ""
    indicator: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Ahead:
    """What a new chunk is to go on from: what the last one holds from the observation's tick on.

    positions: (n, dof) [rad; gripper 0..1], n >= 1; frozen: how many of these the robot carries out before
    the new chunk is there, whatever that holds, 0 <= frozen <= n.
    """

    positions: np.ndarray
    frozen: int


class ChunkBuffer:
    """Holds the newest chunk. The next is due `lead` ticks before `execute` of its rows have passed."""

    def __init__(self, execute: int = EXECUTE_STEPS, lead: int = 0):
        if not 0 <= lead < execute:
            raise ContractError(f"execute is {execute} steps and lead {lead}, wanted 0 <= lead < execute")
        self.execute, self.lead = execute, lead
        self._chunk: Chunk | None = None
        self._start = 0

    def push(self, chunk: Chunk, observation_tick: int) -> None:
        """Row i of the chunk is meant for tick observation_tick + i. A chunk older than the held is ignored.

        Raises ContractError where a number is not finite, and on a chunk that ends before the next is due.
        """
        if len(chunk.positions) < self.execute:
            raise ContractError(f"the chunk has {len(chunk.positions)} steps, wanted at least {self.execute}")
        if not np.isfinite(chunk.positions).all():
            raise ContractError("the chunk holds a number that is not finite")
        if self._chunk is None or observation_tick >= self._start:
            self._chunk, self._start = chunk, observation_tick

    def pop(self, tick: int) -> np.ndarray | None:
        """The row for `tick` (dof,), or None before the first chunk and past the last one's end."""
        row = tick - self._start
        if self._chunk is None or not 0 <= row < len(self._chunk.positions):
            return None
        return self._chunk.positions[row]

    def ahead(self, tick: int) -> Ahead | None:
        """What a chunk asked for at `tick` goes on from; None before the first chunk and past its end."""
        row = tick - self._start
        if self._chunk is None or not 0 <= row < len(self._chunk.positions):
            return None
        rest = self._chunk.positions[row:]
        return Ahead(rest, min(self.lead, len(rest)))

    def flush(self) -> None:
        """Forget everything: nothing comes out until a fresh chunk is pushed."""
        self._chunk = None

    def needs_chunk(self, tick: int) -> bool:
        return self._chunk is None or tick - self._start >= self.execute - self.lead
