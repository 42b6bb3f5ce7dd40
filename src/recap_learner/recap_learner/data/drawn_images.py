"""Images of the frames that a training draws, read by worker processes before the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from recap_learner.data.frames import Frames
from recap_learner.data.samples import LoaderConfig, Samples
from recap_learner.data.scratch import Scratch
from recap_learner.data.store import Store
from recap_learner.data.workers import Arrays, Workers

Asked = tuple[int, slice]


class DrawnImages:
    """Samples of F frames as `Samples.shapes` has them, for the batches that a training draws.

    What is drawn depends on the step alone, so that the next steps' can be made while a step is computed, and
    a training that goes on in the middle is given what it would have been given. Raises ValueError where
    frames do not know their store.
    """

    def __init__(
        self,
        frames: Frames,
        how: LoaderConfig,
        drawn: Callable[[int], np.ndarray],
        parts: Sequence[slice],
    ) -> None:
        """drawn: step → indices of its batch among the frames. parts: rows of a batch that are asked for one
        after the other, none longer than how.batch."""
        if frames.store is None:
            raise ValueError("frames without a store, wanted those of load_frames: images are read from bags")
        self._drawn, self._parts, self._batch = drawn, parts, how.batch
        order = np.lexsort((frames.tick, frames.episode))  # of samples, episode by episode
        self._sample = np.empty(len(order), np.int64)
        self._sample[order] = np.arange(len(order))
        ticks = np.split(
            frames.tick[order], np.searchsorted(frames.episode[order], np.arange(1, len(frames.episodes)))
        )
        self._scratch = Scratch(how.cache_bytes)
        try:
            data = Samples.write(self._scratch.path, frames.episodes, Store(frames.store), how, ticks)
            self._workers = Workers(data, how.workers, how.prefetch)
        except BaseException:
            self._scratch.cleanup()
            raise
        self._asked: deque[Asked] = deque()
        self._next = self._from(0, parts[0])

    def take(self, step: int, rows: slice) -> Arrays:
        """The samples in some rows of a step's batch; to be read before the next are taken.

        Raises ConversionError where an image cannot be read.
        """
        if not self._asked or self._asked[0] != (step, rows):  # a start in the middle, or a second look
            self._workers.forget()
            self._asked.clear()
            self._next = self._from(step, rows)
        while self._workers.ready_for_more:
            self._ask(*next(self._next))
        self._asked.popleft()
        arrays, _ = self._workers.take()
        while self._workers.ready_for_more:  # while the step is computed
            self._ask(*next(self._next))
        return {name: column[: rows.stop - rows.start] for name, column in arrays.items()}

    def close(self) -> None:
        """End the workers and remove the cache."""
        self._workers.close()
        self._scratch.cleanup()

    def _ask(self, step: int, rows: slice) -> None:
        chosen = self._sample[self._drawn(step)[rows]]
        short = self._batch - len(chosen)
        self._workers.ask(np.concatenate([chosen, np.full(short, chosen[-1])]) if short else chosen)
        self._asked.append((step, rows))

    def _from(self, step: int, rows: slice) -> Iterator[Asked]:
        """What will be asked for if it goes on as usual."""
        yield step, rows
        parts = list(self._parts)
        left = parts[parts.index(rows) + 1 :] if rows in parts else parts
        while True:
            yield from ((step, part) for part in left)
            step, left = step + 1, parts
