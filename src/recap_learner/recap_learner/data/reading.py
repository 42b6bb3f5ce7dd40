"""Finding bags and reading them: one bag → its attempts, each as episodes' ticks, by the contract that it
carries or that was given for it.

Images stay in the bag and are read from there. The ticks are made in `recap_learner.data.attempts` from what
`recap_learner.data.collect` gathers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from recap_learner.data.attempts import command_span, cut, describe, task_of, to_episode
from recap_learner.data.collect import Collector
from recap_learner.data.episode_file import OUTCOMES, ConversionError, Episode, EpisodeInfo
from recap_station import storage
from recap_station.bag_reader import BagReader, bag_files, is_bag_file, span_ns
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.streams import Streams, default_streams, load_streams

_SPLIT_NS = 10_000_000_000  # between two files of one bag at most
_OTHERS = {
    ".bag": "a ROS 1 bag, which is not read (rosbags-convert makes one of ROS 2 of it)",
    ".gz": "a file compressed by gzip, which is not read (gunzip it)",
}


@dataclass(frozen=True)
class Cell:
    """What bags are read as, in place of the contract that they may carry. `task` None: the bag's."""

    station: Station
    streams: Streams
    task: Task | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """As `EpisodeInfo.told` has it."""
        return ("station", "task") if self.task else ("station",)


def load_cell(station: str | Path, task: str | Path = "") -> Cell:
    """By name or path. Raises ContractError."""
    found = load_station(station)
    return Cell(found, load_streams(station, found), load_task(task) if task else None)


def find_bags(paths: Iterable[Path]) -> list[Path]:
    """Bags among `paths`, which are bags (folders or single files) or folders of bags; each once.

    Raises ConversionError or OSError where there is something else.
    """
    found, problems = survey_bags(paths)
    if problems:
        raise problems[0]
    return found


def survey_bags(paths: Iterable[Path]) -> tuple[list[Path], list[ConversionError | OSError]]:
    """The same, and what is wrong with the others of `paths`, or with folders in them."""
    found: dict[Path, None] = {}
    problems: list[ConversionError | OSError] = []
    for path in map(storage.surveyed, map(storage.path, paths)):
        try:
            found.update(dict.fromkeys(_bags_at(path, problems)))
        except (ConversionError, OSError) as error:
            problems.append(error)
    return list(found), problems


def problem_line(problem: ConversionError | OSError) -> str:
    """What `survey_bags` has found, in one line with its place."""
    if isinstance(problem, OSError) and problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem).replace("\n", " ")


def read_attempts(bag: Path, store: Path, cell: Cell | None = None) -> list[Episode]:
    """The attempts of one bag, one or several, with or without an outcome. Raises ConversionError where
    nothing of it can be used, or where there is no contract to read it by."""
    bag = storage.fresh(bag)
    made_of = storage.version(bag_sources(bag))  # as it is before it is read
    with storage.borrowed(bag) as folder:
        return _read(BagReader(folder), bag, store, cell, made_of)


def bag_sources(bag: Path) -> list[Path]:
    """The files that say what a bag is."""
    return [*bag_files(bag), bag / "metadata.yaml"] if bag.is_dir() else [bag]


def _read(reader: BagReader, bag: Path, store: Path, cell: Cell | None, made_of: str) -> list[Episode]:
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
        bag=storage.relative_to(store, bag),
        outcome=about.get("recap.outcome", "unknown"),
        reason=about.get("recap.reason", ""),
        source=about.get("recap.source", "rollout"),
        checkpoint=about.get("recap.checkpoint", ""),
        seed=_number(about.get("recap.seed", "")),
        task=task or task_of(None, station, 1.0),
        station=station,
        damage=damage,
        unchecked=reader.unchecked,
        files=tuple(file.name for file in reader.files),
        streams=streams,
        made_of=made_of,
        told=cell.told if cell else (),
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


def _bags_at(path: Path, problems: list[ConversionError | OSError]) -> list[Path]:
    """A bag, or those in a folder; folders in it that cannot be looked into go to the problems."""
    if path.is_file() and is_bag_file(path):
        return [path]
    if not path.is_dir():
        what = next((kind for ending, kind in _OTHERS.items() if path.name.lower().endswith(ending)), "none")
        raise ConversionError(f"{path}: wanted a bag or a folder of bags, found {what}")
    inside = [] if (path / "metadata.yaml").is_file() else sorted(p for p in path.iterdir() if p.is_dir())
    nested, shut = [], False
    for folder in inside:
        try:
            nested += _bags_in(folder)
        except OSError as error:
            problems.append(error)
            shut = True
    bags = [*bag_files(path), *nested] if nested else _bags_in(path)
    if not bags and not shut:
        raise ConversionError(f"{path}: holds no bag (a folder with an .mcap or .db3 file)")
    return bags


def _bags_in(folder: Path) -> list[Path]:
    """A folder that is a bag, or single files in it that are one each; none where it holds no messages."""
    files = bag_files(folder)
    if (folder / "metadata.yaml").is_file() or (files and _one_recording(folder, files)):
        return [folder]
    return files


def _one_recording(folder: Path, files: list[Path]) -> bool:
    """Whether files without metadata.yaml are what a recorder has split one bag into. It names them after
    their folder; where that was renamed they are numbered from 0 on, and each begins when the last ended."""
    names = [bag_name(file) for file in files]
    stems = {re.sub(r"_\d+$", "", name) for name in names}
    if len(stems) > 1:
        return False
    [stem] = stems
    if stem == folder.absolute().name:
        return True
    if names != [f"{stem}_{number}" for number in range(len(files))]:
        return False
    if isinstance(folder, storage.RemotePath):  # its files would be fetched for it: the names must do
        return True
    spans = [span for span in map(span_ns, files) if span is not None]
    return all(abs(later[0] - earlier[1]) <= _SPLIT_NS for earlier, later in pairwise(spans))


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


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return -1


def _check_outcome(info: EpisodeInfo, bag: Path) -> None:
    if info.outcome not in OUTCOMES:
        raise ConversionError(no_outcome(info.outcome, bag))


def no_outcome(outcome: str, bag: Path) -> str:
    return (
        f"it has no outcome (found {outcome!r}, wanted success, failure or discarded); "
        f"./recap label {bag} --outcome <one of them>"
    )
