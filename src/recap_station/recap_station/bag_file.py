"""What every kind of bag file offers: its topics, its messages in order with where they stand, its damage.

Two kinds are read: MCAP (`recap_station.mcap_scan`) and rosbag2's sqlite3 (`recap_station.sqlite_scan`).
Both give back everything that is whole before and after damage, and say in `damage` what was lost; a file
of which nothing can be read raises BagError. `damage` is complete once the messages have been gone through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from recap_station.contract import ContractError

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LARGEST_BLOCK = 1 << 30  # bytes of one chunk or message after decompression; more is taken for damage


class BagError(ContractError):
    """A bag cannot be read or written. One readable line."""


class Place(NamedTuple):
    """Where a message stands in a file: read again from there without reading what is before it.

    MCAP: `offset` of the message's data in the file; in the decompressed chunk that starts at byte `chunk`
    of the file where it is compressed. sqlite3: `offset` is the rowid and `chunk` is −1.
    """

    chunk: int
    offset: int
    size: int


class Found(NamedTuple):
    """One message. `data` is its CDR and holds until the next message is asked for: copy what is kept."""

    topic: str
    time_ns: int  # when it was received
    data: memoryview
    place: Place


class BagFile(Protocol):
    """One file of a bag."""

    path: Path
    topics: dict[str, str]  # name → type
    metadata: dict[str, dict[str, str]]  # record name → its text; later records win
    whole: bool  # False where the writer was killed or the file cut

    @property
    def damage(self) -> list[str]:
        """What is lost, a readable line each."""

    @property
    def unchecked(self) -> bool:
        """Whether some message that was read has no checksum: there damage can be silent."""

    def scan(self, topics: Collection[str]) -> Iterator[Found]:
        """Messages of `topics` in the order of the file, without those that are damaged."""

    def read(self, place: Place) -> bytes:
        """The message found at `place`. Raises BagError where it is no longer there."""


class Troubles:
    """Kinds of trouble → where in the file, so that going through a file twice counts nothing twice."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, None]] = {}

    def note(self, kind: str, at: int) -> None:
        self._found.setdefault(kind, {})[at] = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def count(self, kind: str) -> int:
        return len(self._found.get(kind, ()))

    def lines(self, where: str) -> list[str]:
        """One line a kind: "3 × checksum of a chunk does not agree, first at byte 8234"."""
        lines = []
        for kind, places in self._found.items():
            times = f"{len(places)} × " if len(places) > 1 else ""
            lines.append(f"{times}{kind}, first at {where} {min(places)}")
        return lines
