"""Where bags and stores can be: folders of this machine, and object stores (`s3://bucket/...`) by fsspec.

`path` gives a `pathlib.Path` for the one and a `RemotePath` for the other, which has what of Path's methods
bags and stores are read with. What differs stands here alone:

- Reading. Where a file of this machine is wanted (`open(path)`, `os.fspath(path)`), an object or a bag's
  whole folder is fetched once, in the version that there is, into a cache; conversion, which reads a bag
  once, fetches into a temporary folder (`borrowed`). Whole, because checksums are compared over every byte
  and sqlite needs a file anyway, and because by ranges each chunk and each image costs a request
  (benchmarks/remote.py).
- Writing. An object store has no rename, but a PUT is seen whole or not at all: `replace_by` is one.
- Excluding others. There are no locks. Two writers of one object leave one of the two; where what was there
  must not be lost, `replace_if` puts only in place of the version that was read.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from recap_station.remote_path import RemotePath, StorageError

__all__ = [
    "RemotePath", "StorageError", "borrowed", "excluding", "fresh", "path", "place_in", "relative_to",
    "surveyed", "version",
]  # fmt: skip

_ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "memory")  # where a PUT is seen whole or not at all
# pathlib folds the two slashes of "s3://" into one.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}(?!/)(.*)", re.DOTALL)


def path(where: str | os.PathLike[str]) -> Path:
    """A path of this machine, or a RemotePath, which stands for one, where `where` is an address.

    Raises StorageError for an address of a kind that bags and stores cannot be at.
    """
    if isinstance(where, RemotePath):
        return cast(Path, where)
    text = os.fspath(where)
    found = _ADDRESS.fullmatch(text)
    if found is None or Path(f"{found[1]}:").exists():
        return Path(text)
    protocol, rest = found.groups()
    if protocol == "file":
        return Path("/" + rest.lstrip("/"))
    if protocol not in _ATOMIC:
        raise StorageError(f"{text}: wanted a path, or an address of {', '.join(_ATOMIC[:-1])}")
    return cast(Path, RemotePath(protocol, rest))


def place_in(folder: Path, where: str) -> Path:
    """What `relative_to` has said of a place, seen from the same folder."""
    return path(where) if _ADDRESS.fullmatch(where) else path(folder) / where


def relative_to(folder: Path, where: Path) -> str:
    """How to get to a place from a folder: a relative path where both are of one bucket or of this machine,
    else its whole address."""
    there, here = path(where), path(folder)
    if isinstance(there, RemotePath):
        if isinstance(here, RemotePath) and (there.protocol, there.bucket) == (here.protocol, here.bucket):
            return os.path.relpath("/" + there.key, "/" + here.key)
        return str(there)
    return f"file://{there.absolute()}" if isinstance(here, RemotePath) else os.path.relpath(there, here)


def version(files: Iterable[Path]) -> str:
    """Names, sizes and times (of objects: versions) of files, as one text that changes when one does."""
    found = {file: file.stat() for file in files if file.is_file()}
    return " ".join(
        f"{file.name!r}:{s.st_size}:{s.st_ino if isinstance(file, RemotePath) else s.st_mtime_ns}"
        for file, s in found.items()
    )


def surveyed(where: Path) -> Path:
    """The same place; of a remote one everything below is listed at once, and what is asked of it and of the
    paths made from it is answered by that list, until they are pickled or `fresh`."""
    return cast(Path, where.surveyed()) if isinstance(where, RemotePath) else where


def fresh(where: Path) -> Path:
    """The same place, without what was listed of it."""
    return path(str(where)) if isinstance(where, RemotePath) else where


@contextmanager
def borrowed(where: Path) -> Iterator[Path]:
    """A bag as files of this machine for a while: itself, or fetched and removed afterwards."""
    if not isinstance(where, RemotePath):
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="recap-fetched-") as folder:
        yield where.fetch(Path(folder))


@contextmanager
def excluding(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder of this machine; in an object store there is nothing to keep out,
    see above. The system lets go of the lock when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(folder, RemotePath):
        yield
        return
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
