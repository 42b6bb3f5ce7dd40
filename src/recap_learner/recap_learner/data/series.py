"""One stream as it arrived, and what its stamps are worth: clocks that jump back, stamps that cannot be."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import numpy as np

from recap_learner.data.messages import Read, Unusable
from recap_station.cdr_scan import CdrError
from recap_station.contract import ContractError
from recap_station.streams import TRAJECTORY_TYPE, Stream

JUMP_S = 0.1  # stamps that go back further than this are a clock that jumped; less is order of arrival
OUTLIER_S = 5.0  # a stamp this much farther from its message's receipt than its neighbours' is a damaged one
FEW = 10  # stamps in a row at most that go out of order and come back: damaged, no clock that jumped
TURNS_SHARE = 0.05  # of stamps that jump back: two clocks, not one that jumped


class Series:
    """One stream as it arrived: own stamps and times of receipt in ns, and what was kept of each message.

    `latched`: what comes first may be old. `places` are kept of images alone.
    """

    def __init__(self, stream: Stream, read: Read, latched: bool = False, placed: bool = False):
        self.stream = stream
        self.items: list[Any] = []
        self.places: list[tuple[int, int, int, int]] = []
        self.first_reason: ContractError | None = None
        self._read, self._latched, self._placed = read, latched, placed
        self._own, self._received = array("q"), array("q")
        self._left_out: Counter[str] = Counter()

    def add(self, received_ns: int, data: memoryview, place: tuple[int, int, int, int]) -> None:
        try:
            parts = self._read(data, received_ns)
        except (CdrError, Unusable) as error:
            kind = str(error) if isinstance(error, Unusable) else "a message that cannot be read"
            self._left_out[kind] += 1
            self.first_reason = self.first_reason or error
            return
        for own, item in parts:
            self._own.append(own)
            self._received.append(received_ns)
            self.items.append(item)
            if self._placed:
                self.places.append(place)

    @property
    def received(self) -> np.ndarray:
        return np.array(self._received, dtype=np.int64)

    def settle(self) -> tuple[np.ndarray, np.ndarray, list[str], int]:
        """→ stamps (M,) int64 ns in order of arrival, which stretch of the clock each belongs to (M,), notes,
        and the number of stretches.

        Stamps are the messages' own, or those of receipt where the stream says so or has no others. A stamp
        that cannot be is left out (stretch −1). A clock that jumps back by more than JUMP_S begins a new
        stretch.
        """
        received, own = self.received, np.array(self._own, dtype=np.int64)
        topic, trajectory = self.stream.topic, self.stream.type == TRAJECTORY_TYPE
        notes = [f"{count} × {kind} on {topic}" for kind, count in self._left_out.items()]
        by_receipt = self.stream.time == "receive" and not trajectory
        stamps = received if by_receipt else np.where(own == 0, received, own)
        kept = np.ones(len(stamps), bool)
        if not (by_receipt or trajectory or self._latched) and len(stamps) > 2:
            kept = _possible(stamps, received)
            if not kept.all():
                notes.append(f"{np.count_nonzero(~kept)} × a stamp that cannot be on {topic}")
        clock = received[kept] if trajectory else stamps[kept]  # points lie ahead, and are superseded
        back = _jumps_back(clock)
        if _takes_turns(back, clock):
            notes.append(f"stamps of two clocks take turns on {topic}: times of receipt are used")
            stamps, back = received, back[:0]
        stretch = np.full(len(stamps), -1)
        stretch[kept] = np.searchsorted(back, np.arange(len(clock)), side="right")
        return stamps, stretch, notes, len(back) + 1


def _jumps_back(stamps: np.ndarray) -> np.ndarray:
    """Which stamps are further back than the one before by more than JUMP_S."""
    return np.flatnonzero(np.diff(stamps) < -JUMP_S * 1e9) + 1


def _takes_turns(back: np.ndarray, stamps: np.ndarray) -> bool:
    return len(back) > max(1, TURNS_SHARE * len(stamps))


def _possible(stamps: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Which of at least three stamps can be meant (M,): not those far from their receipt where their
    neighbours' are not, nor up to FEW in a row that are out of order, off their receipt and back again."""
    off = stamps - received
    around = np.pad(off, 1, mode="reflect")
    usual = np.median(np.stack([around[:-2], off, around[2:]]), axis=0)
    kept = np.abs(off - usual) <= OUTLIER_S * 1e9
    rest = np.flatnonzero(kept)
    back = _jumps_back(stamps[rest])
    if not _takes_turns(back, rest):
        for at in back.tolist():
            kept[rest[_excursion(off[rest], at)]] = False
    return kept


def _excursion(off: np.ndarray, at: int) -> slice:
    """Around a jump back, the stamps before it that ran ahead or those after it that fell behind, where the
    next one is as far from its receipt as the last one before them; else none. A recorder that stalls delays
    receipts alone: its stamps are in order, and nobody asks here."""
    for length in range(1, FEW + 1):
        for start in (at - length, at):
            end = start + length
            if start < 1 or end >= len(off):
                continue
            apart = np.abs(off[start : end + 1] - off[start - 1]) > JUMP_S * 1e9
            if apart[:-1].all() and not apart[-1]:
                return slice(start, end)
    return slice(at, at)
