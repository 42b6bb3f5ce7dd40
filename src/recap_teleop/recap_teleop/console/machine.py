"""The computer that the console runs on: processors, memory, disk, GPU."""

from __future__ import annotations

import functools
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

GPU_S = 5.0  # nvidia-smi takes a while
QUERY = "name,utilization.gpu,memory.used,memory.total,temperature.gpu"


class Machine:
    """`look` is called now and then, by one thread; it takes some milliseconds."""

    def __init__(self, bags: Path) -> None:
        self.bags = bags
        self._gpus: list[dict[str, Any]] = []
        self._gpu_s = -1e9
        self._smi = shutil.which("nvidia-smi")
        psutil.cpu_percent(percpu=True)

    def look(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        disk = shutil.disk_usage(_existing(self.bags))
        rate = recorded_mb_s(self.bags)
        return {
            "cpu": psutil.cpu_percent(percpu=True),
            "load": list(psutil.getloadavg()),
            "memory_gb": [round(memory.used / 1e9, 2), round(memory.total / 1e9, 2)],
            "gpus": self._look_at_gpus(),
            "disk_free_gb": round(disk.free / 1e9, 1),
            "bags": str(self.bags),
            "mb_per_s": rate,
            "hours_left": hours_left(disk.free, rate),
        }

    def _look_at_gpus(self) -> list[dict[str, Any]]:
        if self._smi and time.monotonic() - self._gpu_s > GPU_S:
            self._gpu_s = time.monotonic()
            command = [self._smi, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=3.0).stdout
            except (OSError, subprocess.TimeoutExpired):
                said = ""
            self._gpus = read_gpus(said)
        return self._gpus


def read_gpus(said: str) -> list[dict[str, Any]]:
    """nvidia-smi's CSV → one entry a GPU; values that it does not know are None."""
    gpus = []
    for line in said.splitlines():
        name, *rest = (word.strip() for word in line.split(","))
        if len(rest) == QUERY.count(","):
            numbers = [float(word) if word.replace(".", "", 1).isdigit() else None for word in rest]
            keys = ("busy_percent", "memory_mb", "memory_total_mb", "temperature_c")
            gpus.append({"name": name, **dict(zip(keys, numbers, strict=True))})
    return gpus


def hours_left(free_bytes: float, mb_per_s: float | None) -> float | None:
    """Hours of recording that fit on the disk; None where no rate is known."""
    return round(free_bytes / 1e6 / mb_per_s / 3600.0, 1) if mb_per_s else None


def recorded_mb_s(bags: Path, newest: int = 3) -> float | None:
    """Mean rate of the newest closed bags; None before there is one."""
    try:
        metadata = sorted(bags.glob("*/metadata.yaml"), key=lambda p: p.stat().st_mtime)
        pairs = [_size_and_seconds(str(path), path.stat().st_mtime_ns) for path in metadata[-newest:]]
    except OSError:
        return None
    seconds = sum(pair[1] for pair in pairs)
    return round(sum(pair[0] for pair in pairs) / 1e6 / seconds, 3) if seconds else None


@functools.lru_cache(maxsize=16)
def _size_and_seconds(metadata: str, changed_ns: int) -> tuple[int, float]:
    """Bytes and seconds of a bag; nothing of one that cannot be read."""
    path = Path(metadata)
    try:
        about = yaml.safe_load(path.read_text())["rosbag2_bagfile_information"]
        seconds = about["duration"]["nanoseconds"] / 1e9
        return sum(file.stat().st_size for file in path.parent.iterdir()), seconds
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return 0, 0.0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
