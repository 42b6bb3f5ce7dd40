"""Batches for training from images: shuffled, prefetched by worker processes, resumable, the same every time.

Images are read from the bags by offset and decoded at the smallest of the JPEG scales 1, 1/2, 1/4, 1/8 that
is no smaller than what the model wants. What comes out depends on the store, the settings and the seed alone:
not on the number of workers, nor on the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recap_learner.data.episodes import ConversionError
from recap_learner.data.samples import LoaderConfig, Samples
from recap_learner.data.scratch import Scratch
from recap_learner.data.store import Store, load_judged
from recap_learner.data.workers import Workers


@dataclass(frozen=True)
class TrainingBatch:
    """B samples, C cameras in the station's order, H steps, D joints.

    images (B, C, h, w, 3) uint8 RGB; state (B, D) and chunk (B, H, D) float32 [rad; gripper 0..1], the last
    command held past the end; indicator (B,) int8: 1 positive, 0 negative, −1 unlabelled; episode (B,) int64
    index into `TrainingLoader.episodes`; tick (B,) int64. cost_s: processor time of read, decode and align.
    """

    images: torch.Tensor
    state: torch.Tensor
    chunk: torch.Tensor
    prompt: list[str]
    subtask: list[str]
    indicator: torch.Tensor
    episode: torch.Tensor
    tick: torch.Tensor
    cost_s: dict[str, float]


class TrainingLoader:
    """Iterating gives the rest of this epoch, or the next; `close()` ends the workers.

    Discarded attempts, ticks at which nobody commanded and gaps are left out; the last, smaller batch of an
    epoch is dropped. Raises ValueError where nothing is left or the stations differ.
    """

    def __init__(self, store: Store, how: LoaderConfig, episodes: Sequence[str] | None = None):
        """episodes: which, in this order; None: all of the store."""
        self.how = how
        names = [e.id for e in store.index()[0]] if episodes is None else list(episodes)
        used = [e for e in load_judged([store.path(n) for n in names]) if e.info.outcome != "discarded"]
        self.episodes = [e.info.id for e in used]
        self._folder = Scratch(how.cache_bytes)
        self._workers: Workers | None = None
        try:
            self._data = Samples.write(self._folder.path, used, store, how)
            if self._data.count < how.batch:
                raise ValueError(f"{store.folder}: {self._data.count} samples, wanted a batch of {how.batch}")
        except BaseException:
            self._folder.cleanup()
            raise
        self.epoch = 0
        self.batch = 0  # of this epoch, the next one to give
        self._ahead = (0, 0)  # epoch and batch to ask the workers for next, into the next epoch too
        self._order = (0, self.order(0))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._data.count // self.how.batch

    @property
    def samples(self) -> int:
        return self._data.count

    def __iter__(self) -> Iterator[TrainingBatch]:
        """An iterator begun before this one must not be used any more."""
        workers = self._workers = self._workers or Workers(self._data, self.how.workers, self.how.prefetch)
        epoch = self.epoch
        while self.epoch == epoch:
            try:
                while workers.ready_for_more:
                    workers.ask(self._next_samples())
                arrays, cost = workers.take()
            except ConversionError:
                self._seek()  # that batch again, should somebody mend it
                raise
            self.batch += 1
            if self.batch == len(self):
                self.epoch, self.batch = self.epoch + 1, 0
            yield self._batch(arrays, cost)

    def _next_samples(self) -> np.ndarray:
        epoch, batch = self._ahead
        if self._order[0] != epoch:
            self._order = (epoch, self.order(epoch))
        self._ahead = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
        return self._order[1][batch * self.how.batch :][: self.how.batch]

    def _seek(self) -> None:
        """Have the workers make the next batch to be given, in place of what they were asked for."""
        if self._workers is not None:
            self._workers.forget()
        self._ahead = (self.epoch, self.batch)

    def state_dict(self) -> dict[str, Any]:
        """Where it is: after the batches given so far, whatever has been prefetched."""
        return {"epoch": self.epoch, "batch": self.batch, "of": self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch given then. Raises ValueError if data or settings are others."""
        if state["of"] != self._identity:
            raise ValueError(
                f"the loader's state is of data and settings {state['of']}, these are {self._identity}"
            )
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])
        self._seek()

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in their order → (samples,) int64."""
        return np.random.default_rng((self.how.seed, epoch)).permutation(self._data.count)

    def close(self) -> None:
        """End the workers and remove the cache."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None
        self._folder.cleanup()

    def __enter__(self) -> TrainingLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batch(self, arrays: Mapping[str, np.ndarray], cost: dict[str, float]) -> TrainingBatch:
        tensors = {
            name: torch.from_numpy(values.copy()) for name, values in arrays.items() if name != "subtask"
        }
        return TrainingBatch(
            **tensors,
            prompt=[self._data.prompts[e] for e in arrays["episode"]],
            subtask=[self._data.subtasks[s] for s in arrays["subtask"]],
            cost_s=cost,
        )

    @property
    def _identity(self) -> str:
        how = {k: v for k, v in self.how.__dict__.items() if k not in ("workers", "prefetch", "cache_bytes")}
        text = json.dumps([how, self.episodes, self._data.count, self._data.digest])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
