"""How conversion, the store and the loader's start grow with the number of bags, and memory with length.

`python benchmarks/growth.py [--bags 100] [--seconds 10] [--minutes 60]` prints one JSON line:

- `cpu_ms_per_bag`: processor time a bag where 1, 10 … `--bags` bags of so many seconds (three 640×480 JPEG
  cameras at 30 Hz and the 50 Hz topics; the same bytes under as many names) go into a new store: `convert`;
  `again`: asking for that once more, when nothing is to be done; `index`: listing the store, from its index;
  `open`: opening the training loader on all of it;
- `over_linear`: for each, what a bag costs among the most over what one costs alone: 1 is linear; below it,
  one alone bears what all share;
- `peak_mb`: of the process that converts one bag of 1/12, 1/4 and all of `--minutes`; with as many messages
  as above, but small images (`bag_mb`), of which the converter reads heads and ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from convert import apart, convert, write_bag

from recap_learner.data.episodes import convert_bags
from recap_learner.data.store import Store


def cost(bags: list[Path], store: Path) -> dict[str, float]:
    """Processor time of each step [s]."""
    from recap_learner.data.loader import LoaderConfig, TrainingLoader  # torch, in this process alone

    def convert_all() -> None:
        files, problems = convert_bags(bags, store)
        assert len(files) == len(bags) and not problems, problems

    def index() -> None:
        entries, problems = Store(store).index()
        assert len(entries) == len(bags) and not problems, problems

    def spent(work: Callable[[], None]) -> float:
        before = time.process_time()
        work()
        return time.process_time() - before

    found = {"convert": spent(convert_all), "again": spent(convert_all)}
    index()  # makes it
    found["index"] = spent(index)
    how = LoaderConfig(batch=16, workers=0, cache_bytes=0)
    found["open"] = spent(lambda: TrainingLoader(Store(store), how).close())
    return found


def named(bag: Path, folder: Path, count: int) -> list[Path]:
    """The bag's file under so many names; the page cache holds it once."""
    bags = [folder / f"bag{number:04d}" for number in range(count)]
    for copy in bags:
        copy.mkdir(parents=True)
        for file in bag.iterdir():
            (copy / file.name).hardlink_to(file)
    return bags


def growth(folder: Path, seconds: float, most: int) -> dict[int, dict[str, float]]:
    """Number of bags → processor time a bag of each step [s]."""
    bag = folder / "long"
    write_bag(bag, seconds)
    bags = named(bag, folder / "bags", most)
    cost(bags[:1], folder / "warm")  # imports, and the page cache
    counts = sorted({1, *(10**k for k in range(1, 9) if 10**k < most), most})
    found = {}
    for count in counts:
        turns = [cost(bags[:count], folder / f"store{count}.{k}") for k in range(max(1, 10 // count))]
        found[count] = {step: float(np.median([t[step] for t in turns])) / count for step in turns[0]}
    return found


def memory(folder: Path, minutes: float) -> tuple[dict[str, int], int]:
    """(minutes → peak MB of the process that converts a bag of them; MB of the longest bag)."""
    small = [cv2.imencode(".jpg", np.full((24, 32, 3), shade, np.uint8))[1].tobytes() for shade in range(30)]
    peaks, size = {}, 0
    for share in (1 / 12, 1 / 4, 1.0):
        bag = folder / f"minutes{minutes * share:g}"
        write_bag(bag, 60 * minutes * share, small)
        size = sum(file.stat().st_size for file in bag.iterdir())
        made = apart(convert, [bag], folder / f"of {bag.name}", 1)
        peaks[f"{minutes * share:g}"] = round(made.peak_mb)
    return peaks, round(size / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bags", type=int, default=100, help="at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of them")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the longest bag, for the memory")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        found = growth(Path(name), given.seconds, max(1, given.bags))
        peaks, size = memory(Path(name), given.minutes)
    steps = list(found[1])
    most = found[max(found)]
    print(
        json.dumps(
            {
                "cpu_ms_per_bag": {
                    s: {n: round(1e3 * each[s], 2) for n, each in found.items()} for s in steps
                },
                "over_linear": {s: round(most[s] / found[1][s], 2) for s in steps},
                "peak_mb": peaks,
                "bag_mb": size,
                "seconds": given.seconds,
                "minutes": given.minutes,
            }
        )
    )


if __name__ == "__main__":
    main()
