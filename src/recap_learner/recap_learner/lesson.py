"""Which converted attempts one iteration learns from, written down before it begins: killed, it goes on with
the same, whatever has come in meanwhile.

    <run>/iteration_KK/attempts.json          {"older": [ids], "fresh": [ids]}
    <run>/iteration_KK/attempts_failed.json   the same, of a training that ended with an error
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from recap_learner.data.store import Entry, Store
from recap_learner.watching import TO_LEARN, Attempt
from recap_policy.description import CheckpointError, read
from recap_station.files import write_json

STARTS = ("pretrained", "last")  # models that an iteration may go on from
FILE, FAILED = "attempts.json", "attempts_failed.json"


@dataclass(frozen=True)
class Lesson:
    """Ids of attempts. fresh: those that no training before has begun with."""

    older: tuple[str, ...]
    fresh: tuple[str, ...]

    def files(self, store: Store) -> list[Path]:
        """Their episode files, in an order that does not depend on when they were recorded."""
        return [store.path(name) for name in sorted((*self.older, *self.fresh))]


def counted(store: Store, task: str = "", rate_hz: float = 50.0) -> tuple[list[Attempt], list[str]]:
    """What is counted of a store's attempts, with people's judgements → (attempts, lines about files that are
    none). task: its name; "": of every task; rate_hz: of the ticks, for the durations."""
    if not store.folder.is_dir():
        return [], []
    entries, problems = store.index()
    said = store.judgements()

    def outcome(entry: Entry) -> str:
        judgement = said.get(entry.id)
        return (judgement and judgement.outcome_for(json.loads(entry.rubric))) or entry.outcome

    found = [
        Attempt(e.id, outcome(e), e.source == "demonstration", e.corrected > 0, e.ticks / rate_hz)
        for e in entries
        if task in ("", e.task)
    ]
    return found, problems


def trained(run: Path) -> frozenset[str]:
    """Ids of the attempts that the run's last training began with, whatever became of it."""
    for folder in sorted(run.glob("iteration_*"), reverse=True):
        for name in (FILE, FAILED):
            with suppress(OSError, ValueError, KeyError):
                return frozenset(_ids(folder / name))
        with suppress(CheckpointError, KeyError):
            return frozenset(read(folder / "policy").lineage["episodes"])
    return frozenset()


def lesson(run: Path, k: int, attempts: Iterable[Attempt]) -> Lesson:
    """The attempts of iteration k: those it has begun with, else all that succeeded or failed, from now on.

    Raises ValueError where there is none.
    """
    path = run / f"iteration_{k:02d}" / FILE
    if path.is_file():
        data = json.loads(path.read_text())
        return Lesson(tuple(data["older"]), tuple(data["fresh"]))
    known, before = [a for a in attempts if a.outcome in TO_LEARN], trained(run)
    if not known:
        raise ValueError(f"{run}: no attempt with an outcome, wanted some to learn from; ./recap label")
    made = Lesson(
        tuple(sorted(a.id for a in known if a.id in before)),
        tuple(sorted(a.id for a in known if a.id not in before)),
    )
    write_json(path, asdict(made))
    return made


def set_aside(run: Path, k: int) -> None:
    """Iteration k has failed: its next try begins with what is there then."""
    folder = run / f"iteration_{k:02d}"
    with suppress(FileNotFoundError):
        os.replace(folder / FILE, folder / FAILED)


def next_iteration(run: Path) -> int:
    """The one after the last that has a policy."""
    return max((int(p.parent.name.split("_")[1]) for p in run.glob("iteration_*/policy")), default=0) + 1


def recorded_bags(run: Path) -> list[Path]:
    """The run's own folders of bags: demonstrations and every iteration's rollouts."""
    folders = [run / "demonstrations"]
    for part in ("live", "bags"):
        folders += sorted(run.glob(f"iteration_*/{part}"))
    return [folder for folder in folders if folder.is_dir() and any(folder.iterdir())]


def _ids(path: Path) -> list[str]:
    data = json.loads(path.read_text())
    return [*data["older"], *data["fresh"]]
