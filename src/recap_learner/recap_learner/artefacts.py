"""What a run leaves on disk, by the hash of its contents: how a change is noticed.

A file's hash is taken once; as long as its size and time stay, so does the hash. Names that begin with a dot
are somebody's temporary files and no part of anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ABSENT = "absent"


@dataclass(frozen=True)
class Contents:
    """Of a file or a folder. sha256: of names and contents; stamp: of names, sizes and times."""

    sha256: str
    stamp: str
    files: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Contents | None:
        """None where the data are of another version."""
        try:
            return Contents(**data)
        except TypeError:
            return None


def examine(path: Path, known: Contents | None = None) -> Contents | None:
    """What is at a path; None where nothing is. known: what was there before, believed where no size and no
    time differs."""
    if not path.exists():
        return None
    files = list(_files(path))
    stamp, size = hashlib.sha256(), 0
    for name, file in files:
        stat = file.stat()
        size += stat.st_size
        stamp.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    if known is not None and known.stamp == stamp.hexdigest():
        return known
    whole = hashlib.sha256()
    for name, file in files:
        whole.update(f"{name}\0".encode())
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return Contents(whole.hexdigest(), stamp.hexdigest(), len(files), size)


def combined(parts: Mapping[str, Contents | None]) -> str:
    """One hash of several paths' contents, by their names → 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        digest.update(f"{name}\0{part.sha256 if part else ABSENT}\n".encode())
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """(name relative to the path, file) of all files, sorted."""
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield str(name), file
