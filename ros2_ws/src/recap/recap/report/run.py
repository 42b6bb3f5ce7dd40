"""What a run left on disk, read for its report. Nothing here fails on a run that stopped half-way:
what is not there raises `Missing` with a line for the reader of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recap.report.missing import Missing
from recap.results import Result, find_results, main_line
from recap_learner.data.episodes import SUFFIX, Episode, load_episode, read_images, read_info
from recap_learner.data.judgements import read_judgements
from recap_learner.data.store import judged
from recap_learner.value.returns import Normalizer
from recap_station import topics
from recap_station.bags import BagReader
from recap_station.cdr import deserialize, stamp_ns

# Records of the stages, without the iteration before the name → where summary.json holds their results.
_FROM_STAGES = {
    "demonstrations": ("demonstrations",),
    "vision": ("vision",),
    "pretrain_value": ("value", "pretrain"),
    "value": ("value", "recap"),
    "pretrain_policy": ("training", "pretrain_policy"),
    "sft": ("training", "sft"),
    "policy": ("training", "policy"),
    "live": ("live",),
    "rollouts": ("rollouts",),
}

# What results are called in the report.
_RESULTS = {
    "value": "a value function",
    "demonstrations": "the demonstrations",
    "vision": "the vision tower",
}


@dataclass(frozen=True)
class EpisodeLabels:
    """Label columns of one episode, (T,) each: value, advantage float32; indicator, forced bool."""

    value: np.ndarray
    advantage: np.ndarray
    indicator: np.ndarray
    forced: np.ndarray


class Run:
    """One run folder, or with `task` what it holds of one of its tasks. `summary` is summary.json, or what
    the finished stages recorded so far."""

    def __init__(self, folder: Path, task: str = "") -> None:
        self.folder, self.task = folder, task
        self.home = folder / task  # of iterations and demonstrations
        self.store = folder / "episodes"
        self.damaged: list[str] = []  # episodes that cannot be read, once `episodes` was asked for
        path = folder / "summary.json"
        self.summary: dict[str, Any] = _json(path) or self._so_far()

    def of(self, task: str) -> Run:
        return self if task == self.task else Run(self.folder, task)

    @cached_property
    def tasks(self) -> list[str]:
        """Folders of its tasks; [""] where it has one task, whose iterations lie in the run itself."""
        inside = {path.parent.name for path in self.folder.glob("*/iteration_*")}
        return sorted(inside - {"stages"}) or [""]

    @cached_property
    def iterations(self) -> list[Path]:
        """Folders of the iterations, in order; the first, of SFT, is 0."""
        return sorted(p for p in self.home.glob("iteration_*") if p.name[10:].isdigit() and p.is_dir())

    def newest(self, name: str) -> Path:
        """A file of the last iteration that has it. Raises Missing."""
        for folder in reversed(self.iterations):
            if (folder / name).exists():
                return folder / name
        raise Missing(f"No iteration has {name} yet.")

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """Stage → its record, from manifest.json, or from stages/ where that is not there."""
        manifest = _json(self.folder / "manifest.json").get("stages")
        if isinstance(manifest, dict):
            return manifest
        return {p.stem: _json(p) for p in sorted((self.folder / "stages").glob("[!.]*.json"))}

    @property
    def code_version(self) -> str:
        said = [r.get("code_version") for r in self.records.values()]
        return str(self.summary.get("code_version") or next(filter(None, reversed(said)), ""))

    @cached_property
    def _found(self) -> tuple[list[Result], list[str]]:
        results, problems = find_results(self.folder)
        return [r.with_stages(self._stages) for r in results], problems

    @cached_property
    def _stages(self) -> tuple[str, ...]:
        """Of the task, in order; empty where nothing says."""
        for file in sorted(self.store.glob(f"*{SUFFIX}")):
            try:
                info = read_info(file)
            except (OSError, ValueError):
                continue
            if not self.task or self.task == info.task.name:
                return tuple(info.task.stages)
        return ()

    @property
    def results(self) -> list[Result]:
        """All evaluations of this task."""
        return [r for r in self._found[0] if not self.task or r.task in ("", self.task)]

    @property
    def result_problems(self) -> list[str]:
        return self._found[1]

    @cached_property
    def main_line(self) -> list[Result]:
        return main_line(self.results)

    @cached_property
    def value_reports(self) -> dict[str, dict[str, Any]]:
        """Of which attempts → what was found of a value function on those held out."""
        found = {}
        for name, record in self.records.items():
            *before, stage = name.split(".")
            result = record.get("result")
            if not isinstance(result, dict) or (self.task and before and before[0] not in (self.task, "")):
                continue
            if stage == "pretrain_value":
                found["of demonstrations"] = result
            elif stage == "value":
                number = next((p[10:].lstrip("0") for p in before if p.startswith("iteration_")), "1")
                found[f"of iteration {number or '0'}"] = result
        if not found:
            old = {"pretrain": "of demonstrations", "recap": "of iteration 1"}
            found = {old.get(k, k): v for k, v in (self.summary.get("value") or {}).items() if v}
        if not found:
            raise Missing("Not there yet: a value function.")
        return found

    def need(self, *keys: str) -> Any:
        """summary[key][key]…; raises Missing where it is not there."""
        found: Any = self.summary
        for key in keys:
            if not isinstance(found, dict) or found.get(key) is None:
                raise Missing(f"Not there yet: {_RESULTS.get(keys[0], keys[0])}.")
            found = found[key]
        return found

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Held-out value of every tick, of the last iteration: episode id → (T,) float32."""
        with np.load(self.newest("values.npz")) as stored:
            return {name: stored[name] for name in stored.files}

    @cached_property
    def labels(self) -> tuple[dict[str, EpisodeLabels], dict[str, Any]]:
        """Labels of the last iteration: episode id → columns, and what they were made from."""
        table = pq.read_table(self.newest("labels.parquet"))
        about = json.loads((table.schema.metadata or {}).get(b"recap.labels", b"{}"))
        names = np.asarray(table["episode"].to_pylist())
        columns = [table[n].to_numpy() for n in ("value", "advantage", "indicator", "forced")]
        # A sidecar holds its episodes one after the other.
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.empty(0, int)
        found = {}
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
            found[str(names[start])] = EpisodeLabels(*(column[start:end] for column in columns))
        return found, about

    def threshold(self, about: dict[str, Any]) -> float:
        """Of this task's advantages; infinite where nothing was to be positive."""
        found = about.get("threshold")
        task = self.episodes[0].info.task.name
        if isinstance(of_task := (about.get("thresholds") or {}).get(task), dict):
            found = of_task.get("advantage")
        return float("inf") if found is None else float(found)

    @cached_property
    def episodes(self) -> list[Episode]:
        """All converted episodes that were not discarded, with what people said of them."""
        files = sorted(self.store.glob(f"*{SUFFIX}"))
        if not files:
            raise Missing("No attempt has been converted to an episode yet.")
        said, kept = read_judgements(self.store), []
        self.damaged.clear()
        for file in files:
            try:
                episode = judged(load_episode(file), said)
            except (OSError, ValueError) as error:  # one that is damaged: the others are shown
                self.damaged.append(f"{file.name}: {error}")
                continue
            if episode.info.outcome != "discarded":
                kept.append(episode)
        found = [
            e for e in kept if not self.task or self.task in (e.info.task.name, Path(e.info.task.name).stem)
        ]
        if not found:
            why = f" ({self.damaged[0]})" if self.damaged else ""
            raise Missing(f"Every attempt was discarded, is damaged, or is of another task{why}.")
        return found

    @property
    def rollouts(self) -> list[Episode]:
        """Attempts of the policy, live and headless."""
        found = [e for e in self.episodes if e.info.source != "demonstration"]
        if not found:
            raise Missing("No attempt of the policy has been converted to an episode yet.")
        return found

    @cached_property
    def normalizer(self) -> Normalizer:
        info = self.episodes[0].info
        try:
            said = (self.labels[1].get("normalizers") or {}).get(info.task.name) or {}
            return Normalizer(**said)
        except (Missing, TypeError, OSError, ValueError):  # labels that do not say
            pass
        return Normalizer(round(info.task.max_episode_s * info.station.control_rate_hz))

    @cached_property
    def value_seconds(self) -> float:
        """Seconds of an attempt that a difference of 1 in value stands for."""
        return self.normalizer.scale * self.episodes[0].info.station.step_s

    def is_live(self, episode: Episode) -> bool:
        return "live" in Path(episode.info.bag).parts

    def iteration(self, episode: Episode) -> int | None:
        """By the place of its bag; None: a demonstration, or from elsewhere."""
        numbers = [p[10:] for p in Path(episode.info.bag).parts if p.startswith("iteration_")]
        return int(numbers[-1]) if numbers and numbers[-1].isdigit() else None

    def bag(self, episode: Episode) -> Path:
        return (self.store / episode.info.bag).resolve()

    def pictures(self, episode: Episode, ticks: np.ndarray) -> list[np.ndarray]:
        """Images of the first camera at the given ticks → (H, W, 3) uint8 each."""
        index = episode.image[episode.info.station.camera_names[0]][ticks].clip(min=0)
        unique, back = np.unique(index, return_inverse=True)
        camera = episode.info.station.camera_names[0]
        about = episode.info
        images = list(read_images(self.bag(episode), camera, unique, about.streams, about.files))
        return [images[i] for i in back]

    def live_value(self, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
        """(times in s since the start, values) that the value topic carried; empty if it was silent."""
        start, points = int(episode.time_ns[0]), []
        for message in self._messages(self.bag(episode), topics.VALUE, topics.VALUE_TYPE):
            points.append(((stamp_ns(message) - start) / 1e9, message.value))
        times, values = np.array(points, dtype=float).reshape(-1, 2).T
        inside = (times >= 0) & (times <= episode.duration_s)
        return times[inside], values[inside]

    def command_periods_ms(self) -> np.ndarray:
        """Time between commands to the robot during the live attempts, from the stamps in their bags."""
        bags = sorted(p for p in self.home.glob("iteration_*/live/*") if any(p.glob("*.mcap")))
        if not bags:
            raise Missing("No bag of a live attempt is there.")
        periods = []
        for bag in bags:
            commands = self._messages(bag, topics.JOINT_COMMAND, topics.JOINT_STATE_TYPE)
            periods.append(np.diff([stamp_ns(message) for message in commands]) / 1e6)
        found = np.concatenate(periods)
        if not len(found):
            raise Missing("The bags of the live attempts hold no commands.")
        return found

    def training_logs(self) -> dict[str, list[dict[str, float]]]:
        """ "pretrain/policy" and so on → entries of its training log."""
        found = {}
        for path in sorted(
            [*self.folder.glob("pretrain/training/*/log.json"), *self.home.glob("*/training/*/log.json")]
        ):
            found[f"{path.parts[-4]}/{path.parts[-2]}"] = json.loads(path.read_text())
        if not found:
            raise Missing("No training has been finished yet.")
        return found

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """ "pretrain/policy" and so on → what its config.json says: identity, lineage and more."""
        found = {}
        for folder in (self.folder / "pretrain", *self.iterations, self.folder / "generalist"):
            paths = [
                *sorted(folder.glob("*/config.json"), reverse=True),
                *sorted(folder.glob("arms/*/policy/config.json")),
            ]
            for path in paths:
                name = str(path.parent.relative_to(self.home if self.home in path.parents else self.folder))
                found[name] = json.loads(path.read_text())
        if not found:
            raise Missing("No model has been trained yet.")
        return found

    def live_log(self) -> dict[str, Any]:
        """What the attempts client measured, from the summary or from its own file."""
        found = dict(self.summary.get("live") or {})
        path = self.folder / "logs" / "attempts.json"
        if path.exists():
            found = {**json.loads(path.read_text()), **found}
        if not found:
            raise Missing("No live attempt over ROS 2 has been recorded yet.")
        return found

    def _so_far(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"seconds": {}}
        for name, record in self.records.items():
            summary["seconds"][name] = record.get("seconds", 0.0)
            if (where := _FROM_STAGES.get(name.rpartition(".")[2])) and "result" in record:
                inner = summary
                for key in where[:-1]:
                    inner = inner.setdefault(key, {})
                inner[where[-1]] = record["result"]
        return summary

    @staticmethod
    def _messages(bag: Path, topic: str, kind: str) -> Iterator[Any]:
        for _, _, cdr in BagReader(bag).messages([topic]):
            yield deserialize(cdr, kind)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
