"""What people say of recorded attempts: an append-only log, and the state that it adds up to.

One JSON object a line in `<store>/judgements.jsonl`, on disk (fsync) before the call returns:

    {"id": 7, "when": "2026-01-01T12:00:00Z", "who": "ana", "episode": "…", "kind": "outcome",
     "outcome": "failure", "reason": "peg dropped"}

kind is "outcome"; "criterion" (name, met); "stage" (stage, tick: it begins there); "failed" (tick: the moment
at which the attempt was lost); or "undo" (of: an id). Nothing is ever taken out of the log. The command line
and the console use the same functions.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recap_station import storage
from recap_station.files import to_disk

LOG = "judgements.jsonl"
_TRIES = 20  # for a log in an object store that others write to as well
OUTCOMES = ("success", "failure", "discarded")
_WANTED: dict[str, dict[str, type]] = {
    "outcome": {"outcome": str},
    "criterion": {"name": str, "met": bool},
    "stage": {"stage": str, "tick": int},
    "failed": {"tick": int},
    "undo": {"of": int},
}


class JudgementError(ValueError):
    """Something said of an attempt cannot be: one line with what was found and wanted."""


@dataclass(frozen=True)
class Rubric:
    """Criteria of a task's quality, as in the `rubric:` of its YAML.

    criteria: name → question. An attempt is a success if every criterion in `required` is met and at least
    `pass_share` of the others.
    """

    criteria: dict[str, str]
    required: frozenset[str]
    pass_share: float = 0.0

    @staticmethod
    def of(data: Mapping[str, Any]) -> Rubric:
        """From a task's mapping: {criteria: {name: question}, required: [name], pass_share: 0..1}."""
        criteria = {str(k): str(v) for k, v in (data.get("criteria") or {}).items()}
        required = frozenset(data.get("required", criteria))
        share = float(data.get("pass_share", 0.0))
        unknown = sorted(required - set(criteria))
        if unknown or not 0 <= share <= 1:
            found = f"required {unknown[0]!r} is none of {sorted(criteria)}" if unknown else f"{share}"
            raise JudgementError(f"rubric: wanted required names of criteria and pass_share 0..1: {found}")
        return Rubric(criteria, required, share)

    def outcome(self, met: Mapping[str, bool]) -> str | None:
        """success or failure, as soon as the answers given settle it; None before."""
        if not self.criteria:
            return None
        others = [name for name in self.criteria if name not in self.required]
        wanted = self.pass_share * len(others) - 1e-9
        sure = sum(met.get(name, False) for name in others)
        possible = sum(met.get(name, True) for name in others)
        if any(not met.get(name, True) for name in self.required) or possible < wanted:
            return "failure"
        return "success" if all(met.get(name, False) for name in self.required) and sure >= wanted else None


@dataclass(frozen=True)
class Judgement:
    """All that stands of what was said of one attempt. by: who said something, in order; log: its entries,
    undone ones too."""

    outcome: str | None = None
    reason: str = ""
    criteria: dict[str, bool] = field(default_factory=dict)
    stages: tuple[tuple[int, str], ...] = ()  # (tick, stage), ascending
    failed_tick: int | None = None
    log: tuple[dict[str, Any], ...] = ()
    undone: frozenset[int] = frozenset()

    @property
    def by(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry["who"] for entry in self.log))

    def outcome_for(self, rubric: Mapping[str, Any]) -> str | None:
        """The outcome that a person gave, else what the answers to the rubric add up to, else None."""
        return self.outcome or Rubric.of(rubric).outcome(self.criteria)

    @property
    def last(self) -> int | None:
        """Id of the newest entry that stands: what undo takes back."""
        standing = [e["id"] for e in self.log if e["kind"] != "undo" and e["id"] not in self.undone]
        return standing[-1] if standing else None


def replay(entries: Iterable[Mapping[str, Any]]) -> dict[str, Judgement]:
    """Entries in order → episode → its judgement. Pure; raises JudgementError for an entry that is wrong."""
    logs: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        check(entry)
        logs.setdefault(entry["episode"], []).append(dict(entry))
    return {episode: _of_episode(log) for episode, log in logs.items()}


def check(entry: Mapping[str, Any]) -> None:
    """Raise JudgementError unless the entry has what its kind wants."""
    wanted: dict[str, type] = {"id": int, "when": str, "who": str, "episode": str, "kind": str}
    wanted |= _WANTED.get(str(entry.get("kind")), {})
    for name, kind in wanted.items():
        found = entry.get(name)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise JudgementError(f"{name}: wanted {kind.__name__}, found {found!r}")
    if entry["kind"] not in _WANTED:
        raise JudgementError(f"kind: wanted {', '.join(_WANTED)}, found {entry['kind']!r}")
    if entry["kind"] == "outcome" and entry["outcome"] not in OUTCOMES:
        raise JudgementError(f"outcome: wanted {', '.join(OUTCOMES)}, found {entry['outcome']!r}")
    if entry.get("tick", 0) < 0:
        raise JudgementError(f"tick: wanted 0 or more, found {entry['tick']}")


def read_judgements(store: Path) -> dict[str, Judgement]:
    """What stands in a store's log. Raises JudgementError, naming the line, where one cannot be read."""
    return replay(read_log(storage.path(store) / LOG))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a log. A last line without its end was never acknowledged and is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return _read(data, path)


def _read(data: bytes, path: Path | storage.RemotePath) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            check(entry)
        except (ValueError, AttributeError) as error:
            raise JudgementError(f"{path}:{number}: not an entry of the log: {error}") from error
        entries.append(entry)
    return entries


def say(store: Path, who: str, episode: str, kind: str, **what: Any) -> dict[str, Any]:
    """Append one entry, on disk when this returns → the entry. Raises JudgementError, OSError."""
    return _change(store, lambda log: log.append(who, episode, kind, what))


def undo(store: Path, who: str, episode: str) -> dict[str, Any]:
    """Take back the newest thing said of an episode that stands → the entry taken back.

    Raises JudgementError where there is none.
    """

    def take_back(log: _Log | _RemoteLog) -> dict[str, Any]:
        judgement = replay(log.entries).get(episode, Judgement())
        if judgement.last is None:
            raise JudgementError(f"episode {episode!r}: nothing was said of it that could be undone")
        log.append(who, episode, "undo", {"of": judgement.last})
        return next(entry for entry in judgement.log if entry["id"] == judgement.last)

    return _change(store, take_back)


def _change(store: Path, change: Callable[[_Log | _RemoteLog], dict[str, Any]]) -> dict[str, Any]:
    path = storage.path(store) / LOG
    if not isinstance(path, storage.RemotePath):
        with _Log(path) as log:
            return change(log)
    for _ in range(_TRIES):
        with suppress(_OvertakenError):
            return change(_RemoteLog(path))
    raise OSError(f"{path}: others write to it all the time; nothing was recorded")


class _Log:
    """The log, locked against other writers; a line that a crash cut off is cut away before the next."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        new = not path.exists()
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        if new:
            to_disk(path.parent)

    def __enter__(self) -> _Log:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.entries = read_log(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, who: str, episode: str, kind: str, what: Mapping[str, Any]) -> dict[str, Any]:
        entry = _entry(self.entries, who, episode, kind, what)
        whole = os.fstat(self._file.fileno()).st_size
        data = self._path.read_bytes()
        if (end := data.rfind(b"\n") + 1) != whole:
            self._file.truncate(end)
        line = _line(entry)
        if self._file.write(line) != len(line):
            raise OSError(f"{self._path}: the disk took only a part of the entry; it was not recorded")
        os.fsync(self._file.fileno())
        self.entries.append(entry)
        return entry


class _RemoteLog:
    """The log in an object store: put anew with a line more, in place of the version that was read alone."""

    def __init__(self, path: storage.RemotePath):
        self._path = path
        data, self._version = path.read_versioned()
        self._data = data[: data.rfind(b"\n") + 1]
        self.entries = _read(self._data, path)

    def append(self, who: str, episode: str, kind: str, what: Mapping[str, Any]) -> dict[str, Any]:
        entry = _entry(self.entries, who, episode, kind, what)
        if not self._path.replace_if(self._data + _line(entry), self._version):
            raise _OvertakenError
        return entry


class _OvertakenError(Exception):
    """Another wrote between reading and writing."""


def _entry(
    entries: list[dict[str, Any]], who: str, episode: str, kind: str, what: Mapping[str, Any]
) -> dict[str, Any]:
    when = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    number = entries[-1]["id"] + 1 if entries else 1
    entry = {"id": number, "when": when, "who": who, "episode": episode, "kind": kind, **what}
    check(entry)
    return entry


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _of_episode(log: list[dict[str, Any]]) -> Judgement:
    undone = frozenset(entry["of"] for entry in log if entry["kind"] == "undo")
    judgement = Judgement(log=tuple(log), undone=undone)
    stages: dict[str, int] = {}
    for entry in log:
        if entry["id"] in undone:
            continue
        if entry["kind"] == "outcome":
            judgement = replace(judgement, outcome=entry["outcome"], reason=str(entry.get("reason", "")))
        elif entry["kind"] == "criterion":
            judgement = replace(judgement, criteria={**judgement.criteria, entry["name"]: entry["met"]})
        elif entry["kind"] == "stage":
            stages[entry["stage"]] = entry["tick"]
        elif entry["kind"] == "failed":
            judgement = replace(judgement, failed_tick=entry["tick"])
    return replace(judgement, stages=tuple(sorted((tick, stage) for stage, tick in stages.items())))
