"""Training frames: the moments of episodes that models are trained and evaluated on.

A frame is a tick at which a new image of the first camera had just come, at most `samples.FRAME_HZ`
times a second. The frozen vision tower is run once over each frame and its tokens are cached beside
the store, so that value functions, policies and seeds after that cost no image decoding.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from recap_learner.data.episodes import Episode, load_episode, read_images
from recap_learner.data.judgements import read_judgements
from recap_learner.data.samples import HORIZON, frame_ticks
from recap_learner.data.store import load_judged
from recap_policy.checkpoint import Tower, load_vision, vision_identity
from recap_policy.objects import ObjectTower
from recap_station.files import replace_file
from recap_station.parent import end_with_parent


@dataclass(frozen=True)
class Frames:
    """Frames of many episodes, in memory. F frames, C cameras, P tokens of width W, D joints.

    tokens (F, C, P, W) float16, without any where C is 0; state (F, D) float32; episode (F,) int index into
    `episodes`; tick (F,) int64; tower: identity of the vision tower that made the tokens; failed_at: episode
    id → tick at which a person marked the attempt as lost; store: folder of the episodes, from which images
    can be read.
    """

    episodes: list[Episode]
    tower: str
    tokens: np.ndarray
    state: np.ndarray
    episode: np.ndarray
    tick: np.ndarray
    failed_at: dict[str, int] = field(default_factory=dict)
    store: Path | None = None

    def __len__(self) -> int:
        return len(self.tick)

    @property
    def stages(self) -> np.ndarray:
        return np.array(
            [self.episodes[e].stage[t] for e, t in zip(self.episode, self.tick, strict=True)], dtype=object
        )

    @property
    def prompts(self) -> np.ndarray:
        return np.array([self.episodes[e].info.task.prompt for e in self.episode], dtype=object)

    def per_tick(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Pick from episode id → (T, ...) columns the rows of all frames → (F, ...)."""
        return np.array(
            [columns[self.episodes[e].info.id][t] for e, t in zip(self.episode, self.tick, strict=True)]
        )

    def chunks(self) -> np.ndarray:
        """The HORIZON executed commands from each frame on → (F, H, D) float32; the last one is held."""
        chunks = np.empty((len(self), HORIZON, self.state.shape[1]), dtype=np.float32)
        ahead = np.arange(HORIZON)
        for index, episode in enumerate(self.episodes):
            rows = np.flatnonzero(self.episode == index)
            at = np.minimum(self.tick[rows, None] + ahead, len(episode) - 1)
            chunks[rows] = episode.command[at]
        return chunks

    def without(self, dropped: Sequence[int]) -> Frames:
        """All but the episodes at the given indices."""
        kept = [i for i in range(len(self.episodes)) if i not in set(dropped)]
        new_index = {old: new for new, old in enumerate(kept)}
        part = self.where(np.isin(self.episode, kept))
        episode = np.array([new_index[i] for i in part.episode], dtype=int)
        return replace(part, episodes=[self.episodes[i] for i in kept], episode=episode)

    def where(self, rows: np.ndarray) -> Frames:
        """The same frames, restricted to `rows` (mask or indices)."""
        return replace(
            self,
            tokens=self.tokens[rows],
            state=self.state[rows],
            episode=self.episode[rows],
            tick=self.tick[rows],
        )


def load_frames(
    files: Sequence[Path],
    vision: Path | None,
    workers: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Frames:
    """Frames of the given episode files, with tokens by the vision tower stored in folder `vision`; None:
    without, for who reads images. workers: processes that run it; 0: one a core."""
    tower = vision_identity(vision) if vision else ""
    if vision and isinstance(objects := load_vision(vision), ObjectTower):
        episodes = load_judged(files)
        return _frames(files, episodes, tower, [_see_objects(objects, e) for e in episodes])
    folder = files[0].parent / "tokens" / tower
    missing = [file for file in files if vision and not _cache(folder, file).exists()]
    if vision and 0 < len(missing) <= _FEW:  # sooner done than processes are started
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the processes: the same tokens bit for bit
        _encode(load_vision(vision), folder, missing)
        torch.set_num_threads(threads)
    elif missing:
        shards = np.array_split(np.array([str(m) for m in missing]), max(1, len(missing) // 4))
        context = get_context("spawn")
        done = 0
        workers = workers or len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(workers, context, _start_worker, (str(vision), str(folder))) as pool:
            for count in pool.map(_encode_shard, [shard.tolist() for shard in shards]):
                done += count
                if progress:
                    progress(done / len(missing), f"{done}/{len(missing)} episodes seen")
    tokens = [np.load(_cache(folder, file)) for file in files] if vision else []
    return _frames(files, load_judged(files), tower, tokens)


def _frames(
    files: Sequence[Path], episodes: list[Episode], tower: str, tokens: Sequence[np.ndarray]
) -> Frames:
    ticks = [frame_ticks(episode) for episode in episodes]
    episodes = [replace(e, objects=np.empty((len(e), 0), np.float32)) for e in episodes]  # seen by now
    count = sum(map(len, ticks))
    return Frames(
        episodes=episodes,
        tower=tower,
        tokens=np.concatenate(tokens) if tokens else np.empty((count, 0, 0, 0), np.float16),
        state=np.concatenate([e.state[t] for e, t in zip(episodes, ticks, strict=True)]),
        episode=np.repeat(np.arange(len(episodes)), [len(t) for t in ticks]),
        tick=np.concatenate(ticks),
        failed_at={
            name: said.failed_tick
            for store in {file.parent for file in files}
            for name, said in read_judgements(store).items()
            if said.failed_tick is not None
        },
        store=files[0].parent,
    )


@torch.no_grad()
def _see_objects(tower: ObjectTower, episode: Episode) -> np.ndarray:
    """(F, 1, P, W) float16. Raises ValueError on an episode without states of things."""
    objects = episode.objects[frame_ticks(episode)] if episode.objects.size else np.empty((0, 0), np.float32)
    if objects.shape[1:] != (tower.config.features,):
        raise ValueError(
            f"{episode.info.id}: states of {objects.shape[1]} numbers, wanted {tower.config.features}: "
            "record attempts with observation 'state'"
        )
    return tower(torch.from_numpy(objects))[:, None].to(torch.float16).numpy()


def _cache(folder: Path, file: Path) -> Path:
    # The file's size and time stand for its content: an episode file is written once.
    stat = file.stat()
    key = hashlib.sha256(f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return folder / f"{file.name.split('.')[0]}.{key}.npy"


_FEW = 4
_tower: Tower
_folder: Path


def _start_worker(vision: str, folder: str) -> None:
    global _tower, _folder
    os.nice(5)
    end_with_parent(signal.SIGTERM)  # a pool's workers would wait for a killed parent for ever
    torch.set_num_threads(1)
    _tower = load_vision(Path(vision))
    _folder = Path(folder)


def _encode_shard(files: list[str]) -> int:
    _encode(_tower, _folder, [Path(name) for name in files])
    return len(files)


@torch.no_grad()
def _encode(tower: Tower, folder: Path, files: Sequence[Path]) -> None:
    for file in files:
        episode = load_episode(file)
        ticks = frame_ticks(episode)
        about, bag = episode.info, episode.info.bag_in(file.parent)
        by_camera = []
        for camera in episode.info.station.camera_names:
            wanted = episode.image[camera][ticks]
            unique, back = np.unique(wanted, return_inverse=True)
            images = np.stack(list(read_images(bag, camera, unique, about.streams, about.files)))
            tokens = [tower(torch.from_numpy(images[i : i + 64])) for i in range(0, len(images), 64)]
            by_camera.append(torch.cat(tokens).to(torch.float16).numpy()[back])
        stacked = np.stack(by_camera, axis=1)
        replace_file(_cache(folder, file), partial(_save, stacked))


def _save(data: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, data)
