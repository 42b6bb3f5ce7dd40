"""Writing files so that a crash leaves the old or the new one, never half of either."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recap_station.remote_path import RemotePath


def replace_file(path: Path, write: Callable[[Path], Any], lasting: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    It is on the disk when this returns, so that not even a power cut leaves less than the old or the new
    file. lasting False: that is not waited for, for what is made anew where it is damaged.
    """
    if isinstance(path, RemotePath):
        path.replace_by(write)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        if lasting:
            to_disk(temporary)
        os.replace(temporary, path)
        if lasting:
            to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Any) -> None:
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(data, indent=1) + "\n"))
