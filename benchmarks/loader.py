"""The training loader: samples of three 96×96 images out of 640×480 JPEG in bags, on two worker processes.

`python benchmarks/loader.py [--minutes 2]` makes a bag of so many minutes (three cameras at 30 Hz, about
60 kB an image, and the 50 Hz topics), and prints one JSON line:

- `samples_per_s` by the clock, nothing cached; `cached_samples_per_s`: every image in the cache;
- `cpu_samples_per_s`: what two cores give that do nothing else: 2 / processor time of a sample, of all
  processes, for a machine that is busy; `ms_per_sample`: that time, in read, decode, align and the rest;
- `vs_plain`, by the clock and by processor time: how many times that is of the plain way (torch's
  DataLoader, as many workers, images read at the same places, decoded whole and then reduced), in turns;
- `start_s`: seconds to open the store, and from then to the first batch, worker processes started; and the
  processor time of both, of all processes;
- `full_decode_ms`: decoding a sample's three images whole and reducing them; and the machine's load.

Wanted (`held`, and exit 0): 600 samples a second by the clock, of two workers on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from recap_learner.data.episodes import Episode, convert_bags
from recap_learner.data.image_index import ImageTable, locate_images
from recap_learner.data.loader import LoaderConfig, TrainingLoader
from recap_learner.data.samples import HORIZON, sample_ticks
from recap_learner.data.store import Store
from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
CAMERA_NS, TICK_NS = 33_333_333, 20_000_000
PICTURES = 48


def pictures() -> list[bytes]:
    """640×480 pictures with some texture, about 60 kB each."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(PICTURES):
        coarse = cv2.resize(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), (640, 480))
        fine = cv2.GaussianBlur(rng.integers(0, 120, (480, 640, 3), dtype=np.uint8), (0, 0), 1.0)
        picture = cv2.addWeighted(coarse, 0.5, fine, 0.7, 0)
        made.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes())
    return made


def make_bag(folder: Path, seconds: float, images: list[bytes]) -> Path:
    bag, start = folder / "attempt", 10**9
    names, home = STATION.joint_names, STATION.home
    with BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED) as writer:
        writer.write(topics.EPISODE, start, serialize(topics.EPISODE_TYPE, stamp_ns=start, state=1))
        shown = 0
        for tick in range(round(seconds * 50)):
            now = start + tick * TICK_NS
            for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND, topics.POLICY_COMMAND):
                writer.write(topic, now, joint_state(now, names, home, "policy"))
            while shown * CAMERA_NS <= tick * TICK_NS:
                for number, camera in enumerate(STATION.camera_names[:3]):
                    stamp = start + shown * CAMERA_NS
                    data = compressed_image(stamp, images[(shown + 7 * number) % len(images)], camera)
                    writer.write(topics.image_topic(camera), stamp, data)
                shown += 1
        contract = {"recap.station": json.dumps(STATION.to_dict()), "recap.task": json.dumps(TASK.to_dict())}
        writer.set_metadata({**contract, "recap.outcome": "success"})
    return bag


class Plain(torch.utils.data.Dataset):
    """The samples of one episode as one writes it down first: each image decoded whole, then reduced."""

    def __init__(self, episode: Episode, tables: dict[str, ImageTable], how: LoaderConfig):
        self.episode, self.tables, self.size = episode, tables, how.size
        self.ticks = sample_ticks(episode, how.rate_hz)

    def __len__(self) -> int:
        return len(self.ticks)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cv2.setNumThreads(1)
        tick, images = int(self.ticks[number]), []
        for camera, table in self.tables.items():
            image = self.episode.image[camera][tick]
            with open(table.files[table.file[image]], "rb") as file:
                file.seek(table.offset[image])
                data = file.read(table.length[image])
            jpeg = np.frombuffer(data[data.index(b"\xff\xd8\xff") :], np.uint8)
            whole = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            images.append(cv2.resize(whole, self.size[::-1], interpolation=cv2.INTER_AREA))
        ahead = np.minimum(tick + np.arange(HORIZON), len(self.episode) - 1)
        return np.stack(images), self.episode.state[tick].copy(), self.episode.command[ahead]


class Meter:
    """What batches cost, over several turns."""

    def __init__(self, loader: Any, ahead: int):
        self.batches, self.ahead = _endless(loader), ahead
        self.count, self.wall, self.spent = 0, 0.0, 0.0
        self.cost = dict.fromkeys(("read", "decode", "align"), 0.0)

    def turn(self, seconds: float) -> None:
        for _ in range(self.ahead):  # starting a worker takes longer than a batch; and some are ready
            next(self.batches)
        before, begin = _processor_s(), time.monotonic()
        while time.monotonic() - begin < seconds:
            batch = next(self.batches)
            self.count += len(batch[0] if isinstance(batch, list) else batch.tick)
            for name, spent in getattr(batch, "cost_s", {}).items():
                self.cost[name] += spent
        self.wall += time.monotonic() - begin
        self.spent += _processor_s() - before

    @property
    def rate(self) -> float:
        return self.count / self.wall

    @property
    def cpu_rate(self) -> float:
        return 2 * self.count / self.spent

    def ms_per_sample(self) -> dict[str, float]:
        parts = {**self.cost, "rest": self.spent - sum(self.cost.values())}
        return {name: round(1e3 * seconds / self.count, 3) for name, seconds in parts.items()}


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _processor_s() -> float:
    mine = psutil.Process()
    times = [p.cpu_times() for p in (mine, *mine.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def full_decode_ms(images: list[bytes]) -> float:
    """Three images decoded whole and reduced."""
    begin = time.thread_time()
    for data in images:
        whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        cv2.resize(whole, (96, 96), interpolation=cv2.INTER_AREA)
    return 3e3 * (time.thread_time() - begin) / len(images)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of recording")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        bag = make_bag(Path(folder) / "bags", 60 * given.minutes, images)
        size = sum(file.stat().st_size for file in bag.iterdir())
        store = Store(Path(folder) / "store")
        _, problems = convert_bags([bag], store.folder)
        if problems:
            sys.exit(problems[0])
        how = LoaderConfig(workers=given.workers, cache_bytes=0)
        begin, before = time.monotonic(), _processor_s()
        try:
            loader = TrainingLoader(store, how)
        except ValueError as error:
            sys.exit(f"--minutes {given.minutes}: {error}")
        with loader:
            opened = time.monotonic()
            next(iter(loader))
            first, started = time.monotonic(), _processor_s() - before
            episode = store.load(loader.episodes[0])
            plain_way = torch.utils.data.DataLoader(
                Plain(episode, locate_images(episode, store.folder), how),
                batch_size=how.batch,
                shuffle=True,
                drop_last=True,
                num_workers=given.workers,
                persistent_workers=given.workers > 0,
            )
            ahead = how.prefetch * given.workers + given.workers
            ours, plain = Meter(loader, ahead), Meter(plain_way, ahead)
            for _ in range(3):  # in turns: others may be at work on the machine
                for meter in (ours, plain):
                    meter.turn(given.seconds / 3)
        with TrainingLoader(store, LoaderConfig(workers=given.workers, cache_bytes=8 << 30)) as loader:
            for _ in loader:  # fills the cache
                pass
            cached = Meter(loader, ahead)
            cached.turn(given.seconds / 3)
        full = full_decode_ms(images)
    result = {
        "samples_per_s": round(ours.rate),
        "cpu_samples_per_s": round(ours.cpu_rate),
        "cached_samples_per_s": round(cached.rate),
        "plain_samples_per_s": round(plain.rate),
        "vs_plain": {
            "clock": round(ours.rate / plain.rate, 2),
            "processor": round(ours.cpu_rate / plain.cpu_rate, 2),
        },
        "ms_per_sample": ours.ms_per_sample(),
        "full_decode_ms": round(full, 3),
        "start_s": {
            "open": round(opened - begin, 2),
            "first_batch": round(first - opened, 2),
            "processor": round(started, 2),
        },
        "minutes": given.minutes,
        "bag_mb": round(size / 1e6),
        "workers": given.workers,
        "load": round(os.getloadavg()[0], 1),
    }
    held = result["samples_per_s"] >= 600
    print(json.dumps({**result, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
