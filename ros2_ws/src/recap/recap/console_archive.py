"""What the console shows of the past: the learner's episodes, judgements and runs behind its interface.

Names come from a browser: an episode must be a plain name of the store, a camera and a tick ones that it has,
a run one that was listed.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recap.console_plan import plan_next
from recap.console_runs import list_runs, read_run
from recap_learner.data import judgements
from recap_learner.data.bag_images import decode_message
from recap_learner.data.episodes import ConversionError, Episode, convert_bags, load_episode
from recap_learner.data.judgements import Judgement, JudgementError, Rubric
from recap_learner.data.store import Store
from recap_station import topics
from recap_station.bag_reader import FilePlace
from recap_station.bags import BagReader
from recap_station.cdr import deserialize, stamp_ns
from recap_station.cdr_scan import compressed_image
from recap_station.contract import ContractError, load_station
from recap_station.ticks import age_s, hold
from recap_teleop.console.archive import ArchiveError

OPEN = 4  # episodes that are kept open
LIVE_S = 1.0  # a published value older than this says nothing of a tick
JPEG = b"\xff\xd8"
JUDGED = ("outcome", "criterion", "stage", "failed")


class StoreArchive:
    """See recap_teleop.console.archive.Archive."""

    def __init__(self, episodes: Path, bags: Path, runs: Path) -> None:
        self._store, self._bags, self._runs = Store(episodes), bags, runs
        self._lock = threading.Lock()  # of what is kept open
        self._open: OrderedDict[str, tuple[Episode, BagReader | None]] = OrderedDict()

    # --- reading ------------------------------------------------------------------------------------

    def attempts(self) -> dict[str, Any]:
        if not self._store.folder.is_dir():
            waiting = len(self._waiting([]))
            return {"rows": [], "problems": [], "agreement": [], "bags_waiting": waiting}
        entries, problems = self._store.index()
        said = self._judgements()
        steps: dict[str, float] = {}
        rows = []
        for entry in entries:
            judgement = said.get(entry.id, Judgement())
            step = steps.setdefault(entry.station, _step_s(entry.station))
            rows.append(
                {
                    "id": entry.id,
                    "task": entry.task,
                    "outcome": judgement.outcome_for(json.loads(entry.rubric)) or entry.outcome,
                    "recorded": entry.outcome,
                    "source": entry.source,
                    "checkpoint": entry.checkpoint,
                    "iteration": _iteration(entry.checkpoint),
                    "length_s": round(entry.ticks * step, 2),
                    "corrected": round(entry.corrected / max(1, entry.ticks), 4),
                    "by": list(judgement.by),
                }
            )
        known = [entry.id for entry in entries]
        return {
            "rows": rows,
            "problems": problems,
            "agreement": agreement(said),
            "bags_waiting": len(self._waiting(known)),
        }

    def attempt(self, episode: str) -> dict[str, Any]:
        loaded, reader = self._opened(episode)
        info = loaded.info
        return {
            "id": info.id,
            "task": info.task.name,
            "prompt": info.task.prompt,
            "source": info.source,
            "checkpoint": info.checkpoint,
            "damage": info.damage,
            "ticks": len(loaded),
            "step_s": info.station.step_s,
            "max_episode_s": info.task.max_episode_s,
            "cameras": list(loaded.image_at),
            "images": {name: _changes(places) for name, places in loaded.image_at.items()},
            "corrections": _spans(loaded.correction),
            "held": _spans(loaded.source == "hold"),
            "stages": _stages(loaded.stage),
            "task_stages": list(info.task.stages),
            "rubric": {"criteria": {}, **info.task.rubric},
            "recorded": {"outcome": info.outcome, "reason": info.reason},
            **(self._labels(info.id, len(loaded)) or _said_live(loaded, reader)),
            "judgement": self._judgement(info.id, info.task.rubric),
        }

    def image(self, episode: str, camera: str, tick: int) -> bytes:
        loaded, reader = self._opened(episode)
        places = loaded.image_at.get(camera)
        if places is None or not 0 <= tick < len(loaded):
            raise ArchiveError(f"episode {episode!r} has no tick {tick} of a camera {camera!r}")
        place = FilePlace(*(int(value) for value in places[tick]))
        if place.file < 0 or reader is None:
            raise ArchiveError(f"tick {tick} has no image of {camera}")
        streams = loaded.info.streams
        kind = streams.image(camera).type if streams else topics.IMAGE_TYPE
        try:
            with self._lock:
                message = reader.read(place)
            if kind == topics.IMAGE_TYPE:
                picture = compressed_image(memoryview(message))
                data = message[picture.offset : picture.offset + picture.size]
                if data.startswith(JPEG):
                    return bytes(data)
            pixels = decode_message(memoryview(message), kind)
        except (ContractError, ConversionError, OSError) as error:
            raise ArchiveError(f"image of {camera} at tick {tick}: {error}") from error
        return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()

    def runs(self) -> list[dict[str, Any]]:
        return list_runs(self._runs)

    def run(self, name: str) -> dict[str, Any]:
        if name not in [run["name"] for run in self.runs()]:
            raise ArchiveError(f"no run {name!r} in {self._runs}")
        return read_run(self._runs / name)

    def plan(self, name: str, steps: dict[str, int]) -> dict[str, Any]:
        if name not in [run["name"] for run in self.runs()]:
            raise ArchiveError(f"no run {name!r} in {self._runs}")
        return plan_next(self._runs / name, self._bags, steps)

    # --- judging ------------------------------------------------------------------------------------

    def judge(self, who: str, episode: str, kind: str, what: dict[str, Any]) -> dict[str, Any]:
        loaded, _ = self._opened(episode)
        task = loaded.info.task
        if kind not in JUDGED:
            raise ArchiveError(f"kind: wanted {', '.join(JUDGED)} or undo, found {kind!r}")
        wanted = {
            "outcome": ("outcome", "reason"), "criterion": ("name", "met"), "stage": ("stage", "tick"),
            "failed": ("tick",),
        }[kind]  # fmt: skip
        given = {name: value for name, value in what.items() if name in wanted}
        if kind == "criterion" and given.get("name") not in Rubric.of(task.rubric).criteria:
            raise ArchiveError(f"criterion {given.get('name')!r}: the task's rubric has none of that name")
        if kind == "stage" and given.get("stage") not in task.stages:
            raise ArchiveError(f"stage {given.get('stage')!r}: wanted {', '.join(task.stages)}")
        tick = given.get("tick", 0)
        if not isinstance(tick, int) or tick >= len(loaded):
            raise ArchiveError(f"tick {tick!r}: wanted a whole number below {len(loaded)}")
        try:
            judgements.say(self._store.folder, who, loaded.info.id, kind, **given)
        except (JudgementError, OSError) as error:
            raise ArchiveError(str(error)) from error
        return self._judgement(loaded.info.id, task.rubric)

    def undo(self, who: str, episode: str) -> dict[str, Any]:
        loaded, _ = self._opened(episode)
        try:
            judgements.undo(self._store.folder, who, loaded.info.id)
        except (JudgementError, OSError) as error:
            raise ArchiveError(str(error)) from error
        return self._judgement(loaded.info.id, loaded.info.task.rubric)

    def convert(self) -> dict[str, Any]:
        known = [entry.id for entry in self._store.index()[0]] if self._store.folder.is_dir() else []
        waiting = self._waiting(known)
        if not waiting:
            return {"made": 0, "problems": []}
        try:
            files, problems = convert_bags(waiting, self._store.folder, unknown=True)
        except (ConversionError, OSError) as error:
            raise ArchiveError(str(error)) from error
        return {"made": len(files), "problems": problems}

    # --- inside -------------------------------------------------------------------------------------

    def _opened(self, episode: str) -> tuple[Episode, BagReader | None]:
        """The episode as converted, without judgements, and its bag where that can be read."""
        with self._lock:
            if episode in self._open:
                self._open.move_to_end(episode)
                return self._open[episode]
        try:
            path = self._store.path(episode)
            if not path.is_file():
                raise ArchiveError(f"no episode {episode!r}")

            loaded = load_episode(path)
        except (ConversionError, OSError) as error:
            raise ArchiveError(str(error).replace("\n", " ")) from error
        reader: BagReader | None = None
        try:
            reader = BagReader(self._store.folder / loaded.info.bag, check=False)
            if loaded.info.files and tuple(file.name for file in reader.files) != loaded.info.files:
                reader = None  # its files are others than when it was converted
        except (ContractError, OSError):
            pass
        with self._lock:
            self._open[episode] = (loaded, reader)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        return loaded, reader

    def _waiting(self, known: Iterable[str]) -> list[Path]:
        """Closed bags of which there is no episode yet."""
        found = sorted(path.parent for path in self._bags.glob("*/metadata.yaml"))
        converted = set(known)
        return [bag for bag in found if bag.name not in converted and f"{bag.name}_attempt1" not in converted]

    def _judgements(self) -> dict[str, Judgement]:
        try:
            return self._store.judgements()
        except JudgementError as error:
            raise ArchiveError(str(error)) from error

    def _judgement(self, episode: str, rubric: Mapping[str, Any]) -> dict[str, Any]:
        judgement = self._judgements().get(episode, Judgement())
        plain = asdict(judgement)
        plain["undone"] = sorted(judgement.undone)
        return {**plain, "outcome": judgement.outcome_for(rubric), "by": list(judgement.by)}

    def _labels(self, episode: str, ticks: int) -> dict[str, Any]:
        """Value, advantage and indicator of the newest labelling that has this episode; {} where none has."""
        for tag in reversed(self._store.tags()):
            labels = self._store.load_labels(tag, episode)
            if labels is not None and all(len(column) == ticks for column in labels.values()):
                found = {name: _plain(column) for name, column in labels.items()}
                return {"value": None, "advantage": None, "indicator": None, **found, "tag": tag}
        return {}


def _said_live(episode: Episode, reader: BagReader | None) -> dict[str, Any]:
    """Without labels: the value as it was published during the attempt, where it was."""
    nothing = {"value": None, "advantage": None, "indicator": None, "tag": ""}
    if reader is None:
        return nothing
    try:
        messages = [deserialize(cdr, topics.VALUE_TYPE) for _, _, cdr in reader.messages({topics.VALUE})]
    except (ContractError, OSError):
        return nothing
    if not messages:
        return nothing
    stamps, values = np.array([stamp_ns(m) for m in messages]), np.array([m.value for m in messages])
    order = np.argsort(stamps, kind="stable")
    at = hold(stamps[order], episode.time_ns)
    fresh = age_s(stamps[order], episode.time_ns, at) < LIVE_S
    return {**nothing, "value": _plain(np.where(fresh, values[order][at], np.nan)), "tag": "live"}


def agreement(said: Mapping[str, Judgement]) -> list[dict[str, Any]]:
    """Every two reviewers and the attempts that both gave an outcome: how often alike, and Cohen's κ, which
    is 0 where they agree as often as chance would, 1 where always; None where chance alone agrees always."""
    given: dict[str, dict[str, str]] = {}
    for episode, judgement in said.items():
        for entry in judgement.log:
            if entry["kind"] == "outcome" and entry["id"] not in judgement.undone:
                given.setdefault(entry["who"], {})[episode] = entry["outcome"]
    pairs = []
    for a, b in combinations(sorted(given), 2):
        both = sorted(given[a].keys() & given[b].keys())
        if not both:
            continue
        first, second = ([given[who][episode] for episode in both] for who in (a, b))
        alike = sum(x == y for x, y in zip(first, second, strict=True)) / len(both)
        chance = sum(first.count(o) * second.count(o) for o in judgements.OUTCOMES) / len(both) ** 2
        kappa = None if chance == 1.0 else round((alike - chance) / (1.0 - chance), 3)
        pairs.append({"a": a, "b": b, "both": len(both), "alike": round(alike * len(both)), "kappa": kappa})
    return pairs


def _plain(column: np.ndarray) -> list[Any]:
    """For JSON, with None for what is no finite number."""
    if column.dtype == bool:
        return column.tolist()
    rounded = np.round(column.astype(np.float64), 4)
    return [value if np.isfinite(value) else None for value in rounded.tolist()]


def _spans(mask: np.ndarray) -> list[list[int]]:
    """Runs of True → half-open [start, end] each."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask.astype(bool), False].astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def _stages(stage: np.ndarray) -> list[list[Any]]:
    """[tick, name] where each begins."""
    begins = [k for k in range(len(stage)) if k == 0 or stage[k] != stage[k - 1]]
    return [[k, str(stage[k])] for k in begins if stage[k]]


def _changes(places: np.ndarray) -> list[int]:
    """Ticks that show another picture than the tick before: those that a browser needs to fetch."""
    new = np.any(np.diff(places, axis=0, prepend=-2) != 0, axis=1) & (places[:, 0] >= 0)
    return np.flatnonzero(new).tolist()


def _step_s(station: str) -> float:
    try:
        return load_station(station).step_s
    except ContractError:
        return 0.02  # another machine's robot: lengths are shown at the usual rate


def _iteration(checkpoint: str) -> str:
    """ "iteration_01" of a checkpoint's path or identity; "" where it says nothing of one."""
    parts = [part for part in Path(checkpoint).parts if part.startswith("iteration_")]
    return parts[-1] if parts else ""


__all__ = ["StoreArchive", "agreement"]
