"""A folder of episodes: what is in it, by an index; putting in, taking out and labelling one at a time.

    <store>/<id>.episode.parquet        the ticks (`recap_learner.data.episode_file`)
    <store>/labels/<tag>/<id>.parquet   value, advantage, indicator of every tick, by the run that made them
    <store>/judgements.jsonl            what people said of the attempts (`recap_learner.data.judgements`)
    <store>/index.parquet               one row an episode: a summary, rebuilt of the files that changed

The episode files are the truth. Each is put in place in one step and is on the disk before the call returns,
so a crash or a power cut leaves the old or the new one. The index only saves reading them: every row carries
its file's size and time and is made anew where they differ, so an index that is old, lost or damaged costs
time and nothing else.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_learner.data.episode_file import SUFFIX, ConversionError, Episode, load_episode, save_episode
from recap_learner.data.judgements import Judgement, read_judgements
from recap_station import storage
from recap_station.files import replace_file

INDEX = "index.parquet"
_LEFTOVER_S = 3600.0
LABEL_COLUMNS = {"value": np.float32, "advantage": np.float32, "indicator": np.bool_, "forced": np.bool_}


@dataclass(frozen=True)
class Entry:
    """One episode in the index. outcome: as converted, before people's judgements; corrected: ticks that a
    person commanded; size, time_ns, inode: of the file that the row was made of."""

    id: str
    outcome: str
    source: str
    task: str
    rubric: str  # the task's, as JSON
    station: str
    checkpoint: str
    ticks: int
    corrected: int
    size: int
    time_ns: int
    inode: int

    def made_of(self, stat: os.stat_result) -> bool:
        return (self.size, self.time_ns, self.inode) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)


class Store:
    """Readers need no lock; writers of one episode, of the index and of the log exclude each other."""

    def __init__(self, folder: Path | str):
        self.folder = storage.path(folder)

    def path(self, episode: str) -> Path:
        """Its file. Raises ConversionError for a name that would lie outside the store."""
        if not episode or "/" in episode or "\0" in episode or episode.startswith("."):
            raise ConversionError(f"episode {episode!r}: wanted a name without '/' that starts with no '.'")
        return self.folder / f"{episode}{SUFFIX}"

    def files(self) -> list[Path]:
        """Episode files, sorted by name. Raises FileNotFoundError where there is no such folder."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: wanted a folder of episodes, found none")
        return sorted(p for p in self.folder.glob(f"*{SUFFIX}") if p.is_file() and not p.name.startswith("."))

    def index(self) -> tuple[list[Entry], list[str]]:
        """(one entry an episode, sorted; a line for each file that is none). Reads only what changed."""
        known = self._saved_index()
        entries: list[Entry] = []
        problems: list[str] = []
        for file in self.files():
            with suppress(FileNotFoundError):  # taken out meanwhile
                stat = file.stat()
                entry = known.get(file.name.removesuffix(SUFFIX))
                if entry is None or not entry.made_of(stat):
                    try:
                        entry = _summary(file)
                    except FileNotFoundError:
                        raise
                    except Exception as error:  # whatever is wrong with one file, the others are there
                        problems.append(f"{file}: {error}".replace("\n", " "))
                        continue
                entries.append(entry)
        if entries != list(known.values()):
            with suppress(OSError), self.lock():  # a store that cannot be written is read all the same
                self._save_index(entries)
        return entries, problems

    def add(self, episode: Episode, check: Callable[[], None] | None = None) -> Path:
        """Write an episode, or write it anew; labels of other ticks than its own go.

        check: called while other writers are kept out, raises what speaks against writing.
        """
        path = self.path(episode.info.id)
        with self.lock():
            if check:
                check()
            self._sweep()
            if not _has_ticks_of(path, episode):  # or a removal that was killed has left them
                self._remove_labels(episode.info.id)
            save_episode(episode, path)
        return path

    def remove(self, episode: str) -> None:
        """Take an episode and its labels out; its bag, and what people said of it, stay.

        Raises FileNotFoundError where it is not in the store.
        """
        path = self.path(episode)
        with self.lock():
            if not path.exists():
                raise FileNotFoundError(f"{self.folder}: no episode {episode!r}")
            path.unlink()
            self._remove_labels(episode)

    def load(self, episode: str) -> Episode:
        """An episode with people's judgement of it applied."""
        path = self.path(episode)
        try:
            return load_judged([path])[0]
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.folder}: no episode {episode!r}") from None

    def tags(self) -> list[str]:
        """Tags that some episode has labels of, oldest first."""
        folders = [p for p in self.folder.glob("labels/*") if p.is_dir()]
        return [p.name for p in sorted(folders, key=lambda p: p.stat().st_mtime_ns)]

    def save_labels(
        self, tag: str, episode: str, columns: Mapping[str, np.ndarray], about: Mapping[str, Any]
    ) -> Path:
        """Write the labels of one episode under a tag. columns: any of LABEL_COLUMNS, (T,) each."""
        unknown = sorted(set(columns) - set(LABEL_COLUMNS))
        if unknown:
            raise ValueError(f"label column {unknown[0]!r}: wanted {', '.join(LABEL_COLUMNS)}")
        table = pa.table({n: np.asarray(v, LABEL_COLUMNS[n]) for n, v in columns.items()})
        table = table.replace_schema_metadata({"recap.labels": json.dumps(dict(about))})
        path = self._label_path(tag, episode)
        with self.lock():
            replace_file(path, lambda temporary: pq.write_table(table, temporary))
        return path

    def load_labels(self, tag: str, episode: str) -> dict[str, np.ndarray] | None:
        """Column → (T,) of one episode under a tag; None where it has none."""
        path = self._label_path(tag, episode)
        try:
            with open(path, "rb") as file:
                table = pq.read_table(file)
        except FileNotFoundError:
            return None
        return {name: table[name].to_numpy() for name in table.column_names}

    def judgements(self) -> dict[str, Judgement]:
        """What people said, by episode."""
        return read_judgements(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other writers, in this process and others. The system lets go of it when a process dies."""
        with storage.excluding(self.folder):
            yield

    def _remove_labels(self, episode: str) -> None:
        for labels in self.folder.glob(f"labels/*/{glob.escape(episode)}.parquet"):
            labels.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what writers that were killed have left half-written."""
        for temporary in self.folder.glob(f".*{SUFFIX}.*"):
            with suppress(OSError):
                if time.time() - temporary.stat().st_mtime > _LEFTOVER_S:
                    temporary.unlink()

    def _label_path(self, tag: str, episode: str) -> Path:
        if not tag or "/" in tag or tag.startswith("."):
            raise ValueError(f"tag {tag!r}: wanted a name without '/' that starts with no '.'")
        name = self.path(episode).name.removesuffix(SUFFIX)
        return self.folder / "labels" / tag / f"{name}.parquet"

    def _saved_index(self) -> dict[str, Entry]:
        try:
            with open(self.folder / INDEX, "rb") as file:
                rows = pq.read_table(file).to_pylist()
            return {row["id"]: Entry(**row) for row in rows}
        except (OSError, pa.ArrowException, TypeError, KeyError):  # none, or of another version
            return {}

    def _save_index(self, entries: Iterable[Entry]) -> None:
        rows = [asdict(entry) for entry in entries]
        columns = {field.name: [row[field.name] for row in rows] for field in fields(Entry)}
        table = pa.table(columns)
        replace_file(self.folder / INDEX, lambda temporary: pq.write_table(table, temporary), lasting=False)


def load_judged(files: Iterable[Path]) -> list[Episode]:
    """Episodes of files, with the judgements that stand beside each applied to its outcome."""
    said: dict[Path, dict[str, Judgement]] = {}
    episodes = []
    for file in files:
        if file.parent not in said:
            said[file.parent] = read_judgements(file.parent)
        episodes.append(judged(load_episode(file), said[file.parent]))
    return episodes


def judged(episode: Episode, said: Mapping[str, Judgement]) -> Episode:
    """The episode with the outcome and the stages that people gave it, where they did."""
    judgement = said.get(episode.info.id)
    if judgement is None:
        return episode
    if outcome := judgement.outcome_for(episode.info.task.rubric):
        info = replace(episode.info, outcome=outcome, reason=judgement.reason or episode.info.reason)
        episode = replace(episode, info=info)
    if judgement.stages:
        stage = episode.stage.copy()
        for tick, name in judgement.stages:
            stage[tick:] = name
        episode = replace(episode, stage=stage)
    return episode


def _has_ticks_of(path: Path, episode: Episode) -> bool:
    try:
        with open(path, "rb") as file:
            before = pq.read_table(file, columns=["time_ns"])["time_ns"].to_numpy()
    except (OSError, pa.ArrowException, KeyError):  # none there, or damaged
        return False
    return np.array_equal(before, episode.time_ns)


def _summary(file: Path) -> Entry:
    stat = file.stat()  # before it is read: one which takes its place meanwhile is read anew next time
    with open(file, "rb") as opened:
        table = pq.read_table(opened, columns=["correction"])
    metadata = table.schema.metadata or {}
    if b"recap.episode" not in metadata:
        raise ConversionError("not an episode file")
    about = json.loads(metadata[b"recap.episode"])
    corrected = table["correction"].to_numpy()
    return Entry(
        id=file.name.removesuffix(SUFFIX),
        outcome=about["outcome"],
        source=about["source"],
        task=about["task"]["name"],
        rubric=json.dumps(about["task"].get("rubric", {})),
        station=about["station"]["name"],
        checkpoint=about["checkpoint"],
        ticks=len(corrected),
        corrected=int(corrected.sum()),
        size=stat.st_size,
        time_ns=stat.st_mtime_ns,
        inode=stat.st_ino,
    )
