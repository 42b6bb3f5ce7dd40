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

from recap_learner.episodes import SUFFIX, Episode, load_episode, read_images
from recap_learner.returns import Normalizer
from recap_station import topics
from recap_station.bags import BagReader
from recap_station.cdr import deserialize, stamp_ns

# Records of the stages (recap.stages) → where summary.json holds their results.
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
    "evaluate": ("policies",),
}

# What results are called in the report.
_RESULTS = {
    "policies": "the evaluation of both policies",
    "comparison": "the comparison of both policies",
    "value": "a value function",
    "demonstrations": "the demonstrations",
    "vision": "the vision tower",
}


class Missing(Exception):
    """Something that the report would show is not there. One line that says what."""


@dataclass(frozen=True)
class EpisodeLabels:
    """Label columns of one episode, (T,) each: value, advantage float32; indicator, forced bool."""

    value: np.ndarray
    advantage: np.ndarray
    indicator: np.ndarray
    forced: np.ndarray


class Run:
    """One run folder. `summary` is summary.json, or what the finished stages recorded so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "episodes"
        path = folder / "summary.json"
        self.finished = path.exists()
        self.summary: dict[str, Any] = json.loads(path.read_text()) if self.finished else self._so_far()

    def need(self, *keys: str) -> Any:
        """summary[key][key]…; raises Missing where it is not there."""
        found: Any = self.summary
        for key in keys:
            if not isinstance(found, dict) or found.get(key) is None:
                raise Missing(f"Not there yet: {_RESULTS.get(keys[0], keys[0])}.")
            found = found[key]
        return found

    def attempts(self, iteration: str) -> list[dict[str, Any]]:
        """Evaluation attempts of one policy (recap.rollout.Attempt as dictionaries)."""
        return json.loads(self._file(iteration, "eval.json").read_text())

    def values(self, iteration: str) -> dict[str, np.ndarray]:
        """Held-out value of every tick: episode id → (T,) float32."""
        with np.load(self._file(iteration, "values.npz")) as stored:
            return {name: stored[name] for name in stored.files}

    @cached_property
    def labels(self) -> tuple[dict[str, EpisodeLabels], dict[str, Any]]:
        """Labels of iteration 1: episode id → columns, and what they were made from."""
        table = pq.read_table(self._file("iteration_01", "labels.parquet"))
        about = json.loads((table.schema.metadata or {}).get(b"recap.labels", b"{}"))
        names = np.asarray(table["episode"].to_pylist())
        columns = [table[n].to_numpy() for n in ("value", "advantage", "indicator", "forced")]
        # A sidecar holds its episodes one after the other.
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.empty(0, int)
        found = {}
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
            found[str(names[start])] = EpisodeLabels(*(column[start:end] for column in columns))
        return found, about

    @cached_property
    def episodes(self) -> list[Episode]:
        """All converted episodes that were not discarded."""
        files = sorted(self.store.glob(f"*{SUFFIX}"))
        if not files:
            raise Missing("No attempt has been converted to an episode yet.")
        episodes = [load_episode(file) for file in files]
        return [e for e in episodes if e.info.outcome != "discarded"]

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
        return Normalizer(round(info.task.max_episode_s * info.station.control_rate_hz))

    @cached_property
    def value_seconds(self) -> float:
        """Seconds of an attempt that a difference of 1 in value stands for."""
        return self.normalizer.scale * self.episodes[0].info.station.step_s

    def is_live(self, episode: Episode) -> bool:
        return "live" in Path(episode.info.bag).parts

    def bag(self, episode: Episode) -> Path:
        return (self.store / episode.info.bag).resolve()

    def pictures(self, episode: Episode, ticks: np.ndarray) -> list[np.ndarray]:
        """Images of the first camera at the given ticks → (H, W, 3) uint8 each."""
        index = episode.image[episode.info.station.camera_names[0]][ticks].clip(min=0)
        unique, back = np.unique(index, return_inverse=True)
        camera = episode.info.station.camera_names[0]
        images = list(read_images(self.bag(episode), camera, unique, episode.info.streams))
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
        folder = self.folder / "iteration_01" / "live"
        bags = sorted(p for p in folder.glob("*") if any(p.glob("*.mcap")))
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
        for path in sorted(self.folder.glob("*/training/*/log.json")):
            found[f"{path.parts[-4]}/{path.parts[-2]}"] = json.loads(path.read_text())
        if not found:
            raise Missing("No training has been finished yet.")
        return found

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """ "pretrain/policy" and so on → what its config.json says: identity, lineage and more."""
        found = {}
        for folder in ("pretrain", "iteration_00", "iteration_01"):
            for path in sorted((self.folder / folder).glob("*/config.json"), reverse=True):
                found[f"{folder}/{path.parts[-2]}"] = json.loads(path.read_text())
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

    def _file(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        if not path.exists():
            raise Missing(f"{'/'.join(parts)} is not there yet.")
        return path

    def _so_far(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"seconds": {}}
        for path in (self.folder / "stages").glob("*.json"):
            record = json.loads(path.read_text())
            summary["seconds"][path.stem] = record["seconds"]
            if where := _FROM_STAGES.get(path.stem):
                inner = summary
                for key in where[:-1]:
                    inner = inner.setdefault(key, {})
                inner[where[-1]] = record["result"]
        return summary

    @staticmethod
    def _messages(bag: Path, topic: str, kind: str) -> Iterator[Any]:
        for _, _, cdr in BagReader(bag).messages([topic]):
            yield deserialize(cdr, kind)
