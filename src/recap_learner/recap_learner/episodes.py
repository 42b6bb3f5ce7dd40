"""From rosbags to labelled episodes: one row per 50 Hz tick, written beside the bags, never into them.

An episode holds states, commands, who commanded, the stage and which image of each camera belongs to
each tick. Images stay in the bag and are read from there. The ticks are made in `recap_learner.attempts`
from what `recap_learner.collect` gathers; the file is described in `recap_learner.episode_file`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recap_learner.attempts import command_span, cut, describe, task_of, to_episode
from recap_learner.bag_images import decode_jpeg, read_images
from recap_learner.collect import Collector
from recap_learner.episode_file import (
    OUTCOMES,
    SUFFIX,
    ConversionError,
    Episode,
    EpisodeInfo,
    load_episode,
    read_info,
    save_episode,
)
from recap_station.bag_reader import BagReader, bag_files, is_bag_file
from recap_station.contract import ContractError, Station, Task, load_station, load_task
from recap_station.streams import Streams, default_streams, load_streams

__all__ = [
    "OUTCOMES", "SUFFIX", "Cell", "ConversionError", "Episode", "EpisodeInfo", "convert_bags", "decode_jpeg",
    "find_bags", "load_cell", "load_episode", "read_attempts", "read_bag", "read_images", "read_info",
    "save_episode",
]  # fmt: skip


_ATTEMPT = re.compile(rf"(.+)_attempt(\d+){re.escape(SUFFIX)}")


@dataclass(frozen=True)
class Cell:
    """What bags are read as, in place of the contract that they may carry. `task` None: the bag's."""

    station: Station
    streams: Streams
    task: Task | None = None


def load_cell(station: str | Path, task: str | Path = "") -> Cell:
    """By name or path. Raises ContractError."""
    found = load_station(station)
    return Cell(found, load_streams(station, found), load_task(task) if task else None)


def convert_bags(
    bags: Iterable[Path],
    store: Path,
    progress: Callable[[float, str], None] | None = None,
    cell: Cell | None = None,
    workers: int = 1,
    unknown: bool = False,
) -> tuple[list[Path], list[str]]:
    """Convert bags, or folders of bags, into `store` → (files written or already there, problems).

    A bag that was changed since, such as by a new outcome, is converted anew. One that cannot be used
    becomes one line in the problems; the others go on. cell: for bags that carry no contract. unknown: also
    attempts without an outcome, to be given one later; else they are problems. Raises OSError where the
    store cannot be written.
    """
    folders = find_bags(bags)
    files: list[Path] = []
    problems: list[str] = []
    with _mapping(workers) as run:
        several = _attempts_in(store)
        results = run(_Job(store, cell, unknown), [(bag, several.get(bag_name(bag), [])) for bag in folders])
        for index, (made, wrong) in enumerate(results):
            files += made
            problems += wrong
            if progress:
                progress((index + 1) / len(folders), f"{index + 1}/{len(folders)} bags")
    return files, problems


def find_bags(paths: Iterable[Path]) -> list[Path]:
    """Bags among `paths`, which are bags (folders or single files) or folders of bags; each once."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file() and is_bag_file(path):
            found[path] = None
            continue
        if not path.is_dir():
            raise ConversionError(f"{path}: wanted a bag or a folder of bags, found none")
        inside = [] if (path / "metadata.yaml").is_file() else sorted(p for p in path.iterdir() if p.is_dir())
        nested = [bag for folder in inside for bag in _bags_in(folder)]
        bags = [*bag_files(path), *nested] if nested else _bags_in(path)
        if not bags:
            raise ConversionError(f"{path}: holds no bag (a folder with an .mcap or .db3 file)")
        found.update(dict.fromkeys(bags))
    return list(found)


def read_attempts(bag: Path, store: Path, cell: Cell | None = None) -> list[Episode]:
    """The attempts of one bag, one or several, with or without an outcome. Raises ConversionError where
    nothing of it can be used, or where there is no contract to read it by."""
    reader = BagReader(bag)
    about = reader.metadata
    station, streams, task = _contract(about, cell)
    streams = streams.resolved(reader.topics)
    collector = Collector(station, streams)
    add = collector.add
    for topic, time_ns, data, place in reader.scan([t for t in streams.topics if t in reader.topics]):
        add(topic, time_ns, data, place)
    collected = collector.collected()
    damage = "; ".join([*reader.damage, *collected.notes])
    try:
        attempts = cut(collected.events, *command_span(collected, station))
    except ConversionError as error:
        raise ConversionError(f"{error}{f' ({damage})' if damage else ''}") from error
    base = EpisodeInfo(
        id=bag_name(bag),  # not the episode's: one whose recorder was restarted has two bags
        bag=os.path.relpath(bag, store),
        outcome=about.get("recap.outcome", "unknown"),
        reason=about.get("recap.reason", ""),
        source=about.get("recap.source", "rollout"),
        checkpoint=about.get("recap.checkpoint", ""),
        seed=_number(about.get("recap.seed", "")),
        task=task or task_of(None, station, 1.0),
        station=station,
        damage=damage,
        files=tuple(file.name for file in reader.files),
        streams=streams,
    )
    episodes = []
    for number, attempt in enumerate(attempts, 1):
        info = describe(base, attempt, task, number if len(attempts) > 1 else 0)
        try:
            episodes.append(to_episode(collected, attempt, station, info))
        except ConversionError:
            if len(attempts) == 1:
                raise
            left = f"attempt {number} of {len(attempts)} has no ticks"
            base = replace(base, damage=f"{base.damage}; {left}" if base.damage else left)
    if not episodes:
        raise ConversionError(f"none of {len(attempts)} attempts has ticks")
    return episodes


def read_bag(folder: Path, store: Path) -> Episode:
    """Read one attempt's bag. Raises ConversionError if it has no outcome, no contract or many attempts."""
    episodes = read_attempts(folder, store)
    if len(episodes) > 1:
        raise ConversionError(f"{len(episodes)} attempts, wanted one")
    _check_outcome(episodes[0].info, folder)
    return episodes[0]


def bag_name(bag: Path) -> str:
    """What a bag's episodes are called after."""
    name = bag.absolute().name
    for ending in (".zstd", ".zst", ".mcap", ".db3") if bag.is_file() else ():
        name = name.removesuffix(ending)
    return name.lstrip(".") or "bag"


@dataclass(frozen=True)
class _Job:
    """Converts one bag → (files, problems); whatever is wrong with it, the others go on. Called with the bag
    and the episode files in the store that are named as if it held several attempts."""

    store: Path
    cell: Cell | None
    unknown: bool

    def __call__(self, work: tuple[Path, list[Path]]) -> tuple[list[Path], list[str]]:
        bag, several = work
        try:
            made = self._made_of(bag, several)
            done = self._up_to_date(bag, made)
            outcomes = self._convert(bag, set(made)) if done is None else done
        except (ConversionError, ContractError) as error:
            return [], [f"{bag}: {error}".replace("\n", " ")]
        except _StoreError as error:
            raise error.reason from None
        except Exception as error:  # somebody else's data
            return [], [f"{bag}: {type(error).__name__}: {error}".replace("\n", " ")]
        refused = {outcome for outcome in outcomes.values() if outcome not in OUTCOMES and not self.unknown}
        files = [file for file, outcome in outcomes.items() if outcome not in refused]
        return files, [f"{bag}: {_no_outcome(outcome, bag)}" for outcome in refused]

    def _convert(self, bag: Path, old: set[Path]) -> dict[Path, str]:
        """→ episode file → outcome. Old files, of attempts that the bag no longer has, go."""
        self._check_name(self._target(bag_name(bag)), bag)
        episodes = read_attempts(bag, self.store, self.cell)
        outcomes = {}
        for episode in episodes:
            target = self._target(episode.info.id)
            outcomes[target] = episode.info.outcome
            if episode.info.outcome not in OUTCOMES and not self.unknown:
                continue
            self._check_name(target, bag)
            try:
                save_episode(episode, target)
            except OSError as error:
                raise _StoreError(error) from error
        for file in old - set(outcomes):
            file.unlink(missing_ok=True)
        return outcomes

    def _up_to_date(self, bag: Path, made: dict[Path, dict[str, Any]]) -> dict[Path, str] | None:
        """The bag's episodes where they are no older than it and read as asked; else None."""
        sources = [*bag_files(bag), bag / "metadata.yaml"] if bag.is_dir() else [bag]
        newest = max((file.stat().st_mtime_ns for file in sources if file.is_file()), default=0)
        outcomes = {}
        for file, about in made.items():
            if file.stat().st_mtime_ns < newest or (self.cell and not _same_cell(about, self.cell)):
                return None
            outcomes[file] = about["outcome"]
        return outcomes or None

    def _target(self, name: str) -> Path:
        return self.store / f"{name}{SUFFIX}"

    def _check_name(self, target: Path, bag: Path) -> None:
        """Raises ConversionError where the file is the episode of another bag of the same name."""
        other = self._about(target).get("bag")
        place = bag if other is None else self.store / other
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
            if "bag" in about and (self.store / about["bag"]).resolve() == bag.resolve()
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


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[[_Job, list[Any]], Iterable[Any]]]:
    """`map` here, or over so many processes."""
    if workers <= 1:
        yield map
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(["recap_learner.episodes"])
    with ProcessPoolExecutor(workers, context) as pool:
        yield lambda job, bags: pool.map(job, bags)


def _attempts_in(store: Path) -> dict[str, list[Path]]:
    """Bag's name → episode files named as of several attempts of it, in their order."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in store.glob(f"*_attempt*{SUFFIX}"):
        if matched := _ATTEMPT.fullmatch(file.name):
            found.setdefault(matched[1], []).append((int(matched[2]), file))
    return {name: [file for _, file in sorted(files)] for name, files in found.items()}


def _bags_in(folder: Path) -> list[Path]:
    """A folder that is a bag, or single files in it that are one each; none where it holds no messages."""
    files = bag_files(folder)
    if (folder / "metadata.yaml").is_file() or len(files) == 1:
        return [folder]
    stems = {re.sub(r"_\d+$", "", bag_name(file)) for file in files}
    return files if len(stems) > 1 else [folder] if files else []


def _contract(about: Mapping[str, str], cell: Cell | None) -> tuple[Station, Streams, Task | None]:
    """By what a bag is read: what was given, else what it carries."""
    task: Task | None = None
    try:
        if "recap.task" in about:
            task = Task.from_dict(json.loads(about["recap.task"]))
        if cell is not None:
            return cell.station, cell.streams, cell.task or task
        if "recap.station" not in about or task is None:
            raise ConversionError(
                "its metadata holds no contract (recap.station, recap.task): not an attempt of this stack; "
                "say what it is by --station STATION.yaml"
            )
        station = Station.from_dict(json.loads(about["recap.station"]))
    except ConversionError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"its contract cannot be read: {error!r}") from error
    return station, default_streams(station), task


def _same_cell(about: Mapping[str, Any], cell: Cell) -> bool:
    def plain(data: Any) -> Any:
        return json.loads(json.dumps(data))

    if about.get("station") != plain(cell.station.to_dict()):
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


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return -1


def _check_outcome(info: EpisodeInfo, bag: Path) -> None:
    if info.outcome not in OUTCOMES:
        raise ConversionError(_no_outcome(info.outcome, bag))


def _no_outcome(outcome: str, bag: Path) -> str:
    return (
        f"it has no outcome (found {outcome!r}, wanted success, failure or discarded); "
        f"./recap label {bag} --outcome <one of them>"
    )
