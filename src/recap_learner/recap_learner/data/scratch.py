"""A folder for what a loader's processes share, gone when the loader is."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "recap-loader-"
_LEFT_S = 10.0  # one that has only been begun is not locked yet


class Scratch:
    """A folder in memory where there is room for the cache, else on disk.

    It is locked while its process lives: one that was killed leaves it, and the next loader removes it.
    """

    def __init__(self, cache_bytes: int):
        memory = Path("/dev/shm")
        room = memory.is_dir() and shutil.disk_usage(memory).free > 2 * cache_bytes + (256 << 20)
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=memory if room else None)
        self.path = Path(self._folder.name)
        self._lock = open(self.path / "lock", "w")  # noqa: SIM115
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for lock in self.path.parent.glob(f"{_PREFIX}*/lock"):
            with suppress(OSError), open(lock, "r+") as left:  # of others: not ours to open
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - lock.stat().st_mtime > _LEFT_S:
                    shutil.rmtree(lock.parent, ignore_errors=True)

    def cleanup(self) -> None:
        self._lock.close()
        self._folder.cleanup()
