"""From rosbags to labelled episodes: one row per 50 Hz tick, written beside the bags, never into them.

An episode holds states, commands, who commanded, the stage and which image of each camera belongs to
each tick. Images stay in the bag and are read from there. The ticks are made in `recap_learner.data.attempts`
from what `recap_learner.data.collect` gathers; the file is described in `recap_learner.data.episode_file`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recap_learner.data.bag_images import decode_jpeg, read_images
from recap_learner.data.episode_file import (
    OUTCOMES,
    SUFFIX,
    ConversionError,
    Episode,
    EpisodeInfo,
    load_episode,
    read_info,
    save_episode,
)
from recap_learner.data.machines import Lost, spread
from recap_learner.data.reading import (
    Cell,
    bag_name,
    bag_sources,
    find_bags,
    load_cell,
    no_outcome,
    problem_line,
    read_attempts,
    read_bag,
    survey_bags,
)
from recap_learner.data.store import Store
from recap_station import storage
from recap_station.bags import amend_metadata
from recap_station.contract import ContractError

__all__ = [
    "OUTCOMES", "SUFFIX", "Cell", "ConversionError", "Episode", "EpisodeInfo", "amend_bags", "convert_bags",
    "decode_jpeg", "find_bags", "load_cell", "load_episode", "read_attempts", "read_bag", "read_images",
    "read_info", "save_episode",
]  # fmt: skip


_Result = tuple[list[Path], list[str]]  # files, problems
_SHARED = "bags and store are to be on a file system that all machines share, or at an address (s3://...)"
_ATTEMPT = re.compile(rf"(.+)_attempt(\d+){re.escape(SUFFIX)}")


def convert_bags(
    bags: Iterable[Path],
    store: Path,
    progress: Callable[[float, str], None] | None = None,
    cell: Cell | None = None,
    workers: int = 1,
    unknown: bool = False,
    ray: str = "",
) -> tuple[list[Path], list[str]]:
    """Convert bags, or folders of bags, into `store` → (files written or already there, problems).

    A bag that was changed since, such as by a new outcome, is converted anew. One that cannot be used
    becomes one line in the problems; the others go on. cell: for bags that carry no contract. workers, ray:
    see `recap_learner.data.machines.spread`; what comes out is the same. unknown: also attempts without an
    outcome, to be given one later; else they are problems. Raises OSError where the store cannot be written,
    MachinesError where the cluster cannot be had.
    """
    store = storage.path(store)
    if ray:  # seen from other folders
        store, bags = store.absolute(), [storage.path(bag).absolute() for bag in bags]
    store.mkdir(parents=True, exist_ok=True)
    found, unfound = _found(bags)
    several = _attempts_in(store)
    named: dict[str, list[tuple[Path, list[Path]]]] = {}  # of one name, one after the other: they would clash
    for bag in found:
        named.setdefault(bag_name(bag), []).append((bag, several.get(bag_name(bag), [])))
    groups = list(named.values())
    results: dict[Path, _Result] = {}
    for number, answer in spread(_Job(store, cell, unknown), groups, workers, ray):
        if isinstance(answer, Lost):
            line = f"every worker that had it ended {answer.reason}; is there memory enough for --workers?"
            answer = [([], [f"{bag}: {line}"]) for bag, _ in groups[number]]
        results |= {bag: result for (bag, _), result in zip(groups[number], answer, strict=True)}
        if progress:
            progress(len(results) / len(found), f"{len(results)}/{len(found)} bags")
    files = [file for bag in found for file in results[bag][0]]
    problems = unfound + [line for bag in found for line in results[bag][1]]
    if ray:
        problems += [f"{file}: made on another machine and not seen here; {_SHARED}" for file in files
                     if not file.exists()]  # fmt: skip
        files = [file for file in files if file.exists()]
    return files, problems


def amend_bags(
    bags: Iterable[Path],
    said: Mapping[str, str],
    progress: Callable[[float, str], None] | None = None,
    workers: int = 1,
    ray: str = "",
) -> tuple[list[Path], list[str]]:
    """Change the metadata of bags, or folders of bags → (bags changed, a line for each that cannot be).

    workers, ray: as of `convert_bags`.
    """
    found, unfound = _found([storage.path(bag).absolute() for bag in bags] if ray else bags)
    answers: dict[int, str] = {}
    for number, answer in spread(_Amend(dict(said)), found, workers, ray):
        lost = isinstance(answer, Lost)
        answers[number] = f"{found[number]}: every worker ended {answer.reason}" if lost else answer
        if progress:
            progress(len(answers) / len(found), f"{len(answers)}/{len(found)} bags")
    done = [bag for number, bag in enumerate(found) if not answers[number]]
    return done, unfound + [answers[number] for number in range(len(found)) if answers[number]]


def _found(bags: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Bags, and a line for each place that has none. Raises the first of those where there is no bag."""
    found, problems = survey_bags(bags)
    if problems and not found:
        raise problems[0]
    return found, [problem_line(problem) for problem in problems]


@dataclass(frozen=True)
class _Amend:
    """Changes the metadata of one bag → what is wrong with it; nothing where it is done."""

    said: dict[str, str]

    def __call__(self, bag: Path) -> str:
        try:
            if not bag.exists():
                raise ConversionError(f"{bag}: not there on machine {socket.gethostname()}; {_SHARED}")
            amend_metadata(bag, self.said)
        except Exception as error:  # somebody else's data
            expected = isinstance(error, (ValueError, OSError))
            line = f"{'' if expected else f'{type(error).__name__}: '}{error}".replace("\n", " ")
            return line if line.startswith(str(bag)) else f"{bag}: {line}"
        return ""


@dataclass(frozen=True)
class _Job:
    """Converts bags of one name → (files, problems) of each; whatever is wrong with one, the others go on.
    Called with each bag and the episode files in the store that are named as if it held several attempts."""

    store: Path
    cell: Cell | None
    unknown: bool

    def __call__(self, work: list[tuple[Path, list[Path]]]) -> list[_Result]:
        if not isinstance(self.store, storage.RemotePath) and not self.store.is_dir():
            raise FileNotFoundError(f"{self.store}: not there on machine {socket.gethostname()}; {_SHARED}")
        return [self._one(bag, several) for bag, several in work]

    def _one(self, bag: Path, several: list[Path]) -> _Result:
        try:
            if not bag.exists():
                raise ConversionError(f"not there on machine {socket.gethostname()}; {_SHARED}")
            made = self._made_of(bag, several)
            done = self._up_to_date(bag, made)
            outcomes = self._convert(bag, set(made)) if done is None else done
        except (ConversionError, ContractError) as error:
            return [], [f"{bag}: {error}".replace("\n", " ")]
        except _StoreError as error:
            raise error.reason from None
        except storage.StorageError as error:
            return [], [str(error)]
        except Exception as error:  # somebody else's data
            return [], [f"{bag}: {type(error).__name__}: {error}".replace("\n", " ")]
        refused = {outcome for outcome in outcomes.values() if outcome not in OUTCOMES and not self.unknown}
        files = [file for file, outcome in outcomes.items() if outcome not in refused]
        return files, [f"{bag}: {no_outcome(outcome, bag)}" for outcome in refused]

    def _convert(self, bag: Path, old: set[Path]) -> dict[Path, str]:
        """→ episode file → outcome. Old files, of attempts that the bag no longer has, go."""
        store = Store(self.store)
        self._check_name(self._target(bag_name(bag)), bag)  # before the work; again when it is written
        episodes = read_attempts(bag, self.store, self.cell)
        outcomes = {}
        for episode in episodes:
            target = self._target(episode.info.id)
            outcomes[target] = episode.info.outcome
            if episode.info.outcome not in OUTCOMES and not self.unknown:
                continue
            try:
                store.add(episode, partial(self._check_name, target, bag))
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:  # the bag's, not the store's
                    size = len(os.fsencode(target.name))
                    raise ConversionError(f"its episode's file has a name too long: {size} bytes") from error
                raise _StoreError(error) from error
        for file in old - set(outcomes):
            with suppress(FileNotFoundError):
                store.remove(file.name.removesuffix(SUFFIX))
        return outcomes

    def _up_to_date(self, bag: Path, made: dict[Path, dict[str, Any]]) -> dict[Path, str] | None:
        """The bag's episodes where they were made of it as it is, and read as asked; else None."""
        now = storage.version(bag_sources(bag))
        outcomes = {}
        for file, about in made.items():
            if about.get("made_of") != now or not _same_cell(about, self.cell):
                return None
            outcomes[file] = about["outcome"]
        return outcomes or None

    def _target(self, name: str) -> Path:
        return self.store / f"{name}{SUFFIX}"

    def _check_name(self, target: Path, bag: Path) -> None:
        """Raises ConversionError where the file is the episode of another bag of the same name."""
        other = self._about(target).get("bag")
        place = bag if other is None else storage.place_in(self.store, other)
        if place.resolve() != bag.resolve() and place.exists():
            raise ConversionError(
                f"{target} is the episode of {place.resolve()} already; rename one of the bags"
            )

    def _made_of(self, bag: Path, several: list[Path]) -> dict[Path, dict[str, Any]]:
        """The episode files that were made of this bag → what they say of themselves."""
        found = {file: self._about(file) for file in (self._target(bag_name(bag)), *several)}
        return {
            file: about
            for file, about in found.items()
            if "bag" in about and storage.place_in(self.store, about["bag"]).resolve() == bag.resolve()
        }

    def _about(self, file: Path) -> dict[str, Any]:
        """What an episode file says of itself; nothing where there is none, or it cannot be read."""
        try:
            return json.loads((pq.read_schema(file).metadata or {}).get(b"recap.episode", b"{}"))
        except (OSError, ValueError):  # pyarrow's errors are of these kinds
            return {}


class _StoreError(Exception):
    """The store cannot be written: that is wrong for every bag."""

    def __init__(self, reason: OSError):
        super().__init__(reason)
        self.reason = reason


def _attempts_in(store: Path) -> dict[str, list[Path]]:
    """Bag's name → episode files named as of several attempts of it, in their order."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in store.glob(f"*_attempt*{SUFFIX}"):
        if matched := _ATTEMPT.fullmatch(file.name):
            found.setdefault(matched[1], []).append((int(matched[2]), file))
    return {name: [file for _, file in sorted(files)] for name, files in found.items()}


def _same_cell(about: Mapping[str, Any], cell: Cell | None) -> bool:
    """Whether an episode was read as the cell says, or by what its bag carries where there is none."""
    told = about.get("told")  # older ones do not say
    if told is not None and tuple(told) != (cell.told if cell else ()):
        return False
    if cell is None:
        return True

    def plain(data: Any) -> Any:
        return json.loads(json.dumps(data))

    if about.get("station") != plain(cell.station.to_dict()):
        return False
    if cell.task is not None and about.get("task") != plain(cell.task.to_dict()):
        return False
    given = plain(cell.streams.to_dict())
    found = about.get("streams") or {}
    images = {camera: {**one, "type": ""} for camera, one in (found.get("images") or {}).items()}
    wanted = {camera: {**one, "type": ""} for camera, one in given["images"].items()}
    keys = [key for key in given if key != "images"]
    same = all(_untyped(found.get(key)) == _untyped(given[key]) for key in keys)
    return same and images == wanted


def _untyped(stream: Any) -> Any:
    if isinstance(stream, list):
        return [_untyped(one) for one in stream]
    return {**stream, "type": ""} if stream else stream
