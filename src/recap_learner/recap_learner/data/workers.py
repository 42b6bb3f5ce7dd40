"""Worker processes that fill batches ahead of time, each into slots of one shared file.

torch's DataLoader is not used: it hands tensors over from a thread that is cut off when a worker ends, which
aborts the worker now and then. Nor is multiprocessing: its workers import the training script anew, and with
it torch, which takes longer than all else at the start. These are programs of their own.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np

from recap_learner.data.episodes import ConversionError
from recap_learner.data.samples import Samples

Arrays = Mapping[str, np.ndarray]


class Workers:
    """Fills batches in the order asked for: the k-th by worker k mod `count`, `prefetch` ahead of each.

    count 0: by this process, when taken.
    """

    def __init__(self, samples: Samples, count: int, prefetch: int):
        self._samples = samples
        self._count = count
        slots = count * max(1, prefetch) + 1 if count else 2  # one more: the batch given last
        self._slots = _slots(samples, samples.folder / "batches", slots, make=True)
        self._free = deque(range(slots))
        self._asked: deque[tuple[int, int, np.ndarray]] = deque()  # worker, slot, samples
        self._given = -1  # slot of the batch given last, which its taker may still read
        self._next = 0
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            self._start(slots)

    @property
    def ready_for_more(self) -> bool:
        return len(self._free) > (self._given < 0) if self._count else not self._asked

    def ask(self, chosen: np.ndarray) -> None:
        """Have a batch made of samples `chosen` (B,)."""
        slot = self._free.popleft()
        self._asked.append((self._next, slot, chosen))
        if self._count:
            self._send(self._next, slot, chosen)
            self._next = (self._next + 1) % self._count

    def take(self) -> tuple[Arrays, dict[str, float]]:
        """The oldest batch asked for, once it is made; to be read before the next is taken.

        Raises ConversionError where an image cannot be read, RuntimeError where a worker died.
        """
        if self._given >= 0:
            self._free.append(self._given)
        worker, slot, chosen = self._asked.popleft()
        self._given = slot
        if not self._count:
            return self._slots[slot], self._samples.fill(chosen, self._slots[slot])
        try:
            done = self._pipes[worker].recv()
        except (EOFError, ConnectionError):
            raise self._died(worker) from None
        if isinstance(done, str):
            raise ConversionError(done)
        return self._slots[slot], done

    def forget(self) -> None:
        """Drop what was asked for and not taken."""
        while self._asked:
            worker, slot, _ = self._asked.popleft()
            if self._count:
                try:
                    self._pipes[worker].recv()
                except (EOFError, ConnectionError):
                    raise self._died(worker) from None
            self._free.append(slot)

    def close(self) -> None:
        """End the processes. A batch that is being made is not waited for."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()  # it holds nothing that anyone will want
            process.wait()
        self._pipes, self._processes = [], []

    def _start(self, slots: int) -> None:
        near, far = socket.socketpair()
        with far:
            path = os.pathsep.join(folder for folder in sys.path if folder)
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "recap_learner.data.workers", str(far.fileno())],
                    pass_fds=[far.fileno()],
                    env={**os.environ, "PYTHONPATH": path},
                    process_group=0,  # what Ctrl-C means, the trainer decides
                )
            )
        self._pipes.append(Connection(near.detach()))
        self._pipes[-1].send((self._samples, slots))

    def _send(self, worker: int, slot: int, chosen: np.ndarray) -> None:
        try:
            self._pipes[worker].send((slot, chosen))
        except (BrokenPipeError, ConnectionError):
            raise self._died(worker) from None

    def _died(self, worker: int) -> RuntimeError:
        process = self._processes[worker]
        try:
            code = process.wait(5.0)
        except subprocess.TimeoutExpired:
            code = None
        return RuntimeError(f"worker {worker} of the loader died with exit code {code}")


def _slots(samples: Samples, path: Path, count: int, make: bool = False) -> list[dict[str, np.ndarray]]:
    """`count` batches in one shared file."""
    shapes = {name: (shape, np.dtype(kind)) for name, (shape, kind) in samples.shapes().items()}
    sizes = {n: -(-int(np.prod(shape)) * kind.itemsize // 64) * 64 for n, (shape, kind) in shapes.items()}
    each = sum(sizes.values())
    with open(path, "w+b" if make else "r+b") as file:
        if make:
            os.posix_fallocate(file.fileno(), 0, each * count)
        memory = mmap.mmap(file.fileno(), each * count)
    slots = []
    for number in range(count):
        at, slot = number * each, {}
        for name, (shape, kind) in shapes.items():
            length = int(np.prod(shape))
            slot[name] = np.frombuffer(memory, kind, length, at).reshape(shape)
            at += sizes[name]
        slots.append(slot)
    return slots


def main(descriptor: int) -> None:
    """A worker: fills slots as asked until the other end of the socket is closed."""
    cv2.setNumThreads(1)
    pipe = Connection(descriptor)
    try:
        samples, count = pipe.recv()
        slots = _slots(samples, samples.folder / "batches", count)
        while True:
            slot, chosen = pipe.recv()
            try:
                done: object = samples.fill(chosen, slots[slot])
            except (ConversionError, OSError) as error:
                done = str(error)
            pipe.send(done)
    except (EOFError, ConnectionError):
        return  # the trainer is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
