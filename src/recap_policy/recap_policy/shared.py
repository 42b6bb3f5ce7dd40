"""Memory that two processes share: the near side's images go out through it, the far side's chunks come back.

A memfd has no name: it is gone with the last process that holds it, however that one ends, so nothing leaks
and nothing is left locked. There is no lock: a slot belongs to the near side until the message that names it
is sent, then to the far side until that one answers. Pages take memory once they are written.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recap_station.contract import ContractError

if TYPE_CHECKING:
    from typing_extensions import Buffer

SLOTS = 4  # requests that may be under way
SLOT_BYTES = 32 << 20  # of one request's images; four raw cameras of 1080p are 25 MB

Span = tuple[int, int]  # offset and length within a slot [bytes]


class SharedSlots:
    """`SLOTS` slots of `SLOT_BYTES`. The near side makes it, the far side opens it by its descriptor."""

    def __init__(self, descriptor: int | None = None):
        if descriptor is None:
            descriptor = os.memfd_create("recap-inference", os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, SLOTS * SLOT_BYTES)
            # Neither side can pull the pages away from under the other.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)

    def write(self, slot: int, parts: Iterable[Buffer]) -> list[Span]:
        """Copy bytes into a slot, one part behind the other. Raises ContractError where they do not fit."""
        spans: list[Span] = []
        at = 0
        for part in parts:
            view = memoryview(part).cast("B")
            if at + len(view) > SLOT_BYTES:
                raise ContractError(f"images of more than {SLOT_BYTES} bytes in one observation")
            start = slot * SLOT_BYTES + at
            self._map[start : start + len(view)] = view
            spans.append((at, len(view)))
            at += len(view)
        return spans

    def read(self, slot: int, span: Span) -> np.ndarray:
        """(length,) uint8, not a copy: valid until the slot is written again."""
        offset, length = span
        if not (0 <= slot < SLOTS and 0 <= offset <= offset + length <= SLOT_BYTES):
            raise ContractError(f"slot {slot}, bytes {offset} + {length}: wanted {SLOTS} of {SLOT_BYTES}")
        return np.frombuffer(self._map, np.uint8, length, slot * SLOT_BYTES + offset)

    def write_array(self, slot: int, values: np.ndarray) -> tuple[int, ...]:
        """Copy an array of float64 to a slot's start → its shape."""
        self.write(slot, [np.ascontiguousarray(values, np.float64).data])
        return values.shape

    def read_array(self, slot: int, shape: Sequence[int]) -> np.ndarray:
        """What `write_array` left there, copied."""
        count = int(np.prod(shape))
        return self.read(slot, (0, 8 * count)).view(np.float64).reshape(shape).copy()

    def close(self) -> None:
        """Give descriptor and memory back; what `read` gave keeps its memory as long as it lives."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        with contextlib.suppress(BufferError):
            self._map.close()
