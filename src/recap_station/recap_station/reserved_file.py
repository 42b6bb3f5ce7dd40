"""A file of a bag that can still be ended properly when the disk is full."""

from __future__ import annotations

import os
from pathlib import Path

RESERVE_BYTES = 4 << 20  # given back when the disk is full, so that the bag can still be closed


class ReservedFile:
    """An unbuffered file with a reserve: when the disk is full the reserve is given back and the write is
    done, with `full` set; where even that fails the file is cut back to its last whole chunk.

    Raises OSError, leaving nothing behind, where there is no room for the reserve.
    """

    def __init__(self, path: Path):
        reserve = path.with_name(f".{path.name}.reserve")
        self.path = path
        self.full = False
        self.broken = False
        self._reserve = reserve
        try:
            with open(reserve, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            reserve.unlink(missing_ok=True)
            raise OSError(error.errno, f"no room for a bag ({error.strerror})", str(path.parent)) from error
        self._raw = open(path, "xb", buffering=0)  # noqa: SIM115
        self._at = self._good = 0

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            try:
                written = self._raw.write(view)
            except OSError:
                if self.full:
                    self._cut()
                    raise
                self.full = True
                self._reserve.unlink(missing_ok=True)
                continue
            self._at += written
            view = view[written:]
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing is buffered; what stands in the file now is whole."""
        self._good = self._at

    def _cut(self) -> None:
        self.broken = True
        self._raw.truncate(self._good)
        self._at = self._raw.seek(self._good)

    def close(self) -> None:
        self._raw.close()
        self._reserve.unlink(missing_ok=True)
