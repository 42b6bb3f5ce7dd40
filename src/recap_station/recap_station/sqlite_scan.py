"""Reading one sqlite3 file of rosbag2 (.db3), Humble's to Kilted's, whole or damaged.

Rows are read in the order of their ids, as they were written. Where a page is damaged sqlite stops; then the
first id after it that can be read is searched for, and reading goes on from there. sqlite keeps no checksums
of its pages: a changed byte within a message is noticed here only where it breaks the file's structure,
which `PRAGMA quick_check` goes through.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recap_station.bag_file import BagError, Found, Place, Troubles
from recap_station.bag_metadata import UNREADABLE_YAML, from_yaml

MAGIC = b"SQLite format 3\0"
STATEMENT_S = 5.0  # what a statement on a damaged file may take without giving a row
_LARGEST_ID = 2**63 - 1
_SELECT = "SELECT id, topic_id, timestamp, data FROM messages"
_ONE_BY_ONE = 16  # ids tried singly after damage, before the steps double
_STEPS = 100_000  # of sqlite's machine between looks at the clock

BAD_PAGE = "a damaged page"
BAD_ROW = "a row that is no message"
STRUCTURE = "the file's structure is damaged"
UNFINISHED = "a transaction is not finished"


class SqliteScan:
    """One .db3 file, as `recap_station.bag_file.BagFile` describes it.

    `check`: the file's structure is gone through once. Raises BagError where it is no bag or its table of
    topics cannot be read.
    """

    def __init__(self, path: Path, check: bool = True):
        self.path = path
        self.topics: dict[str, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.whole = self.unchecked = True  # sqlite keeps no checksums
        self._check = check
        self._troubles = Troubles()
        with open(path, "rb") as file:
            begins = file.read(len(MAGIC))
        if begins != MAGIC:
            raise BagError(f"{path}: not an sqlite3 file")
        self._database = self._open()
        self._names: dict[int, str] = {}
        try:
            for number, name, kind in self._database.execute("SELECT id, name, type FROM topics"):
                if isinstance(name, str) and isinstance(kind, str):
                    self._names[number] = name
                    self.topics[name] = kind
                else:
                    self._troubles.note(BAD_ROW, 0)
        except sqlite3.Error as error:
            raise BagError(f"{path}: its topics cannot be read ({error})") from error
        self._read_metadata()

    @property
    def damage(self) -> list[str]:
        return self._troubles.lines("row")

    def scan(self, topics: Collection[str]) -> Iterator[Found]:
        if self._check:
            self._check = False
            self._check_structure()
        start: int | None = -(2**63)
        while start is not None:
            try:
                for row in self._rows(start):
                    yield from self._message(row, topics)
                    start = row[0] + 1
                return
            except sqlite3.Error:
                self._troubles.note(BAD_PAGE, max(start, 0))
            # Python's sqlite3 takes a step ahead: the row before one that cannot be read is lost with it.
            while isinstance(row := self._one(start), tuple):
                yield from self._message(row, topics)
                start = row[0] + 1
            start = None if row is None else self._first_readable(start)

    def read(self, place: Place) -> bytes:
        try:
            row = self._database.execute("SELECT data FROM messages WHERE id = ?", (place.offset,)).fetchone()
        except sqlite3.Error as error:
            raise BagError(f"{self.path}: row {place.offset} cannot be read ({error})") from error
        if row is None or not isinstance(row[0], bytes) or len(row[0]) != place.size:
            raise BagError(f"{self.path}: no message of {place.size} bytes in row {place.offset}")
        return row[0]

    def _open(self) -> sqlite3.Connection:
        """Read-only. What a recorder has not yet moved from its log into the file is read too, where the log
        can be used; `immutable` leaves it out, and asks for no lock and no other file."""
        unfinished = [
            name
            for name in (f"{self.path}-wal", f"{self.path}-journal")
            if Path(name).is_file() and Path(name).stat().st_size
        ]
        address = "file:" + quote(str(self.path.absolute()))
        if unfinished:
            self.whole = False
            try:
                database = self._connect(f"{address}?mode=ro")
                database.execute("SELECT count(*) FROM topics").fetchone()
                return database
            except sqlite3.Error:
                self._troubles.note(UNFINISHED, 0)
        return self._connect(f"{address}?mode=ro&immutable=1")

    def _connect(self, address: str) -> sqlite3.Connection:
        database = sqlite3.connect(address, uri=True, check_same_thread=False)
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        self._deadline = float("inf")
        database.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS)
        return database

    def _read_metadata(self) -> None:
        """The copy of metadata.yaml that newer recorders keep in the file."""
        try:
            rows = self._database.execute("SELECT metadata FROM metadata ORDER BY id").fetchall()
            text = next((row[0] for row in reversed(rows) if row[0]), "")
            custom = (from_yaml(text) or {}).get("custom_data") or {}
            self.metadata["rosbag2"] = {"serialized_metadata": text}
            plain = {key: value for key, value in custom.items() if not isinstance(value, (list, dict))}
            self.metadata["recap"] = {str(key): str(value) for key, value in plain.items()}
        except (sqlite3.Error, *UNREADABLE_YAML, AttributeError, TypeError):
            return  # older recorders have no such table

    def _check_structure(self) -> None:
        self._deadline = time.monotonic() + STATEMENT_S + self.path.stat().st_size / 100e6
        try:
            found = self._database.execute("PRAGMA quick_check(5)").fetchall()
            if found != [("ok",)]:
                self._troubles.note(STRUCTURE, 0)
        except sqlite3.Error:
            self._troubles.note(STRUCTURE, 0)

    def _rows(self, start: int) -> Iterator[Any]:
        self._deadline = time.monotonic() + STATEMENT_S
        cursor = self._database.execute(f"{_SELECT} WHERE id >= ? ORDER BY id", (start,))
        for row in cursor:  # one by one: of a batch in which an error comes up nothing is given
            if not self._believable(row, start):  # its id says nothing of where the next one is
                self._troubles.note(BAD_ROW, max(start, 0))
                raise sqlite3.DatabaseError(BAD_ROW)
            yield row
            start = row[0] + 1
            self._deadline = time.monotonic() + STATEMENT_S

    def _one(self, start: int) -> tuple[Any, ...] | bool | None:
        """The first row with an id from `start` on; None: there is none; False: it cannot be read."""
        self._deadline = time.monotonic() + STATEMENT_S
        try:
            query = f"{_SELECT} WHERE id >= ? ORDER BY id LIMIT 1"
            row = self._database.execute(query, (start,)).fetchone()
        except (sqlite3.Error, OverflowError):
            return False
        if row is None:
            return None
        return row if self._believable(row, start) else False

    def _believable(self, row: tuple[Any, ...], start: int) -> bool:
        """Whether a row is a message of a topic that there is, with an id from `start` on."""
        number, topic_id, time_ns, data = row
        typed = all(isinstance(one, int) for one in (number, topic_id, time_ns)) and isinstance(data, bytes)
        return typed and number >= start and topic_id in self._names

    def _message(self, row: Any, topics: Collection[str]) -> Iterator[Found]:
        number, topic_id, time_ns, data = row
        if (name := self._names[topic_id]) in topics:
            yield Found(name, time_ns, memoryview(data), Place(-1, number, len(data)))

    def _first_readable(self, start: int) -> int | None:
        """The first id beyond `start`, which cannot be read, that can be; None where there is none.

        Ids ascend along the pages, so the damage is a stretch of ids: steps that double until a row can be
        read, then halved back to the first.
        """
        bottom = max(start, 0)
        high: int | None = None
        for number in range(1, 64):
            ahead = number if number <= _ONE_BY_ONE else _ONE_BY_ONE << (number - _ONE_BY_ONE)
            top = max(start, 0) + ahead
            if top > _LARGEST_ID:
                return None
            row = self._one(top)
            if row is not False:
                high = row[0] if isinstance(row, tuple) else None
                break
            bottom = top
        while top - bottom > 1:
            middle = (top + bottom) // 2
            row = self._one(middle)
            if row is False:
                bottom = middle
            else:
                high, top = (row[0] if isinstance(row, tuple) else high), middle
        return high
