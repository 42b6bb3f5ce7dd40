"""Training samples from images: which moments, and a batch of them from memory-mapped columns.

No torch here: the loader's worker processes import this module and start in a moment.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recap_learner.data.episodes import ConversionError, Episode
from recap_learner.data.image_index import PictureReader, locate_images
from recap_learner.data.images import ImageCache, decode
from recap_learner.data.store import Store

FRAME_HZ = 10.0
HORIZON = 50  # ticks of a chunk
UNLABELLED = -1  # indicator of a tick that the tag has no label of


def frame_ticks(episode: Episode, rate_hz: float = FRAME_HZ) -> np.ndarray:
    """Ticks of the frames of an episode, at most `rate_hz` a second → (F,) int64."""
    station = episode.info.station
    if not episode.image and episode.objects.size:  # seen whenever one looks
        return np.arange(0, len(episode), round(station.control_rate_hz / rate_hz), dtype=np.int64)
    first = episode.image[station.camera_names[0]]
    everywhere = np.all([index >= 0 for index in episode.image.values()], axis=0)
    fresh = np.flatnonzero(everywhere & (np.diff(first, prepend=-1) > 0))
    spacing = station.control_rate_hz / rate_hz
    chosen: list[int] = []
    for tick in fresh:
        if not chosen or tick - chosen[-1] >= spacing - 1e-6:
            chosen.append(int(tick))
    return np.array(chosen, dtype=np.int64)


def sample_ticks(episode: Episode, rate_hz: float | None) -> np.ndarray:
    """Ticks of an episode to train on → (S,) int64: every camera has an image, somebody commands, no gap."""
    if rate_hz is None:
        ticks = np.flatnonzero(np.all([index >= 0 for index in episode.image.values()], axis=0))
    else:
        ticks = frame_ticks(episode, rate_hz)
    return ticks[(episode.source[ticks] != "hold") & ~episode.gap[ticks]].astype(np.int64)


@dataclass(frozen=True)
class LoaderConfig:
    """size: (height, width) of the images; rate_hz: moments taken of each second, None: every tick;
    workers: processes, 0: in this one; prefetch: batches that each has ready; cache_bytes: memory for decoded
    images, shared by all workers; tag: labels of the indicator, "" for none."""

    batch: int = 128
    size: tuple[int, int] = (96, 96)
    horizon: int = HORIZON
    rate_hz: float | None = FRAME_HZ
    workers: int = 2
    prefetch: int = 2
    cache_bytes: int = 256 << 20
    seed: int = 0
    tag: str = ""


@dataclass
class Samples:
    """What batches are made of, as memory-mapped columns that all workers share.

    N ticks of all episodes end to end, S samples, M images of all cameras end to end. In `folder`:
    state, command (N, D); indicator (N,); subtask (N,) number; image (N, C) row among the images, −1: none;
    last (S,) the last tick of the sample's episode; place (M, 3) file, offset, length.
    """

    folder: Path
    how: LoaderConfig
    files: list[Path]
    prompts: list[str]  # by episode
    subtasks: list[str]
    starts: np.ndarray  # (E + 1,) first tick of each episode
    count: int  # of samples
    digest: str

    @staticmethod
    def write(
        folder: Path,
        episodes: Sequence[Episode],
        store: Store,
        how: LoaderConfig,
        ticks: Sequence[np.ndarray] | None = None,
    ) -> Samples:
        """ticks: those of each episode; None: `sample_ticks`."""
        if not episodes:
            raise ValueError(f"{store.folder}: no episode that is not discarded")
        stations = {e.info.station.fingerprint: e.info.station for e in episodes}
        if len(stations) != 1:
            found = sorted(s.name for s in stations.values())
            raise ValueError(f"{store.folder}: wanted episodes of one station, found {found}")
        cameras = next(iter(stations.values())).camera_names
        subtasks: dict[str, int] = {}
        files: dict[Path, int] = {}
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _NAMES}
        start = images = 0
        for at, episode in enumerate(episodes):
            tables = locate_images(episode, store.folder)
            rows = np.full((len(episode), len(cameras)), -1, np.int64)
            for number, camera in enumerate(cameras):
                table, index = tables[camera], episode.image[camera]
                rows[:, number] = np.where(index >= 0, index + images, -1)
                file = np.array([files.setdefault(f, len(files)) for f in table.files], np.int64)
                columns["place"].append(np.stack([file[table.file], table.offset, table.length], axis=1))
                images += len(table)
            columns["image"].append(rows)
            columns["state"].append(episode.state)
            columns["command"].append(episode.command)
            columns["indicator"].append(_indicator(store, episode, how.tag))
            names = [subtasks.setdefault(str(name), len(subtasks)) for name in episode.stage]
            columns["subtask"].append(np.array(names, np.int32))
            chosen = sample_ticks(episode, how.rate_hz) if ticks is None else ticks[at]
            columns["sample"].append(chosen + start)
            columns["last"].append(np.full(len(chosen), start + len(episode) - 1, np.int64))
            start += len(episode)
        digest = hashlib.sha256()
        for name, parts in columns.items():
            whole = np.concatenate(parts)
            np.save(folder / f"{name}.npy", whole)
            if name not in ("place",):  # where the bag lies does not matter, what it holds does
                digest.update(whole.tobytes())
        slots = min(images, how.cache_bytes // (how.size[0] * how.size[1] * 3))
        ImageCache.make(folder, slots, images, how.size, how.seed)
        return Samples(
            folder=folder,
            how=how,
            files=list(files),
            prompts=[e.info.task.prompt for e in episodes],
            subtasks=list(subtasks),
            starts=np.cumsum([0, *(len(e) for e in episodes)]),
            count=sum(len(part) for part in columns["sample"]),
            digest=digest.hexdigest()[:16],
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: paths, not what they hold."""
        return {k: v for k, v in self.__dict__.items() if k not in ("columns", "_cache", "_pictures")}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype of each array of a batch."""
        batch, dof = self.how.batch, self.columns["state"].shape[1]
        cameras = self.columns["image"].shape[1]
        return {
            "images": ((batch, cameras, *self.how.size, 3), np.uint8),
            "state": ((batch, dof), np.float32),
            "chunk": ((batch, self.how.horizon, dof), np.float32),
            "indicator": ((batch,), np.int8),
            "subtask": ((batch,), np.int32),
            "episode": ((batch,), np.int64),
            "tick": ((batch,), np.int64),
        }

    def fill(self, chosen: np.ndarray, out: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Make the batch of samples `chosen` (B,) in `out`, laid out as in `shapes` → cost_s by step."""
        begin = time.thread_time()
        data = self.columns
        tick = data["sample"][chosen]
        ahead = np.minimum(tick[:, None] + np.arange(self.how.horizon), data["last"][chosen][:, None])
        episode = np.searchsorted(self.starts, tick, side="right") - 1
        out["state"][...] = data["state"][tick]
        out["chunk"][...] = data["command"][ahead]
        out["indicator"][...] = data["indicator"][tick]
        out["subtask"][...] = data["subtask"][tick]
        out["episode"][...] = episode
        out["tick"][...] = tick - self.starts[episode]
        rows = data["image"][tick]
        cost = {"read": 0.0, "decode": 0.0, "align": time.thread_time() - begin}
        self._images(rows, out["images"], cost)
        return cost

    def _images(self, rows: np.ndarray, images: np.ndarray, cost: dict[str, float]) -> None:
        """rows (B, C) → images (B, C, h, w, 3) uint8, read in the order in which they lie on the disk."""
        out = images.reshape(-1, *self.how.size, 3)
        flat, place = rows.ravel(), self.columns["place"]
        missing = [at for at, row in enumerate(flat) if not self._cache.take(int(row), out[at])]
        where = place[flat[missing]]
        for which in np.lexsort((where[:, 1], where[:, 0])):
            at, (file, offset, length) = missing[which], where[which].tolist()
            begin = time.thread_time()
            data = self._pictures.read(file, offset, length)
            read = time.thread_time()
            try:
                decode(data, self.how.size, out[at])
            except ConversionError as error:
                raise ConversionError(f"{self.files[file]}: image at byte {offset}: {error}") from error
            self._cache.put(int(flat[at]), out[at])
            cost["read"] += read - begin
            cost["decode"] += time.thread_time() - read

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in _NAMES}

    @cached_property
    def _cache(self) -> ImageCache:
        return ImageCache(self.folder, self.how.size)

    @cached_property
    def _pictures(self) -> PictureReader:
        return PictureReader(self.files)


_NAMES = ("state", "command", "indicator", "subtask", "image", "sample", "last", "place")


def _indicator(store: Store, episode: Episode, tag: str) -> np.ndarray:
    labels = store.load_labels(tag, episode.info.id) if tag else None
    if labels is None:
        return np.full(len(episode), UNLABELLED, np.int8)
    if len(labels["indicator"]) != len(episode):
        raise ValueError(
            f"labels {tag!r} of {episode.info.id}: {len(labels['indicator'])} ticks, the episode has "
            f"{len(episode)}: label it anew"
        )
    return labels["indicator"].astype(np.int8)
