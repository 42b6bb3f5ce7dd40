"""The training loader: samples of three 96×96 images out of 640×480 JPEG in bags, on two worker processes.

`python benchmarks/loader.py [--minutes 2]` makes a bag of so many minutes (three cameras at 30 Hz, about
60 kB an image, and the 50 Hz topics), and prints one JSON line: samples_per_s with nothing cached; the same
with every image in the cache; ms_per_sample of processor time in read, decode and align; cpu_samples_per_s,
what two cores would give that do nothing else (2 / processor time of a sample, all processes);
full_decode_ms, what decoding the three images whole and reducing them would cost; and the machine's load.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from recap_learner.episodes import convert_bags
from recap_learner.loader import LoaderConfig, TrainingLoader
from recap_learner.store import Store
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


def measure(loader: TrainingLoader, seconds: float) -> dict[str, float]:
    """Samples a second, and processor time of a sample, once the workers are at work."""
    batches = iter(_endless(loader))
    for _ in range(3 * loader.how.workers):  # starting a worker takes longer than a batch
        next(batches)
    before, begin, count = _processor_s(), time.monotonic(), 0
    cost = dict.fromkeys(("read", "decode", "align"), 0.0)
    while time.monotonic() - begin < seconds:
        batch = next(batches)
        count += len(batch.tick)
        for name, spent in batch.cost_s.items():
            cost[name] += spent
    wall, spent = time.monotonic() - begin, _processor_s() - before
    return {
        "samples_per_s": count / wall,
        "cpu_samples_per_s": 2 * count / spent,
        **{f"{name}_ms": 1e3 * value / count for name, value in cost.items()},
    }


def _endless(loader: TrainingLoader):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of recording")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        bag = make_bag(Path(folder) / "bags", 60 * given.minutes, images)
        size = sum(file.stat().st_size for file in bag.iterdir())
        begin = time.monotonic()
        store = Store(Path(folder) / "store")
        convert_bags([bag], store.folder)
        converted = time.monotonic() - begin
        found = {}
        for name, cache in (("none", 0), ("whole", 8 << 30)):
            how = LoaderConfig(workers=given.workers, cache_bytes=cache)
            begin = time.monotonic()
            with TrainingLoader(store, how) as loader:
                opened = time.monotonic() - begin
                if cache:
                    for _ in loader:  # fills the cache
                        pass
                found[name] = {**measure(loader, given.seconds), "open_s": opened}
        full = full_decode_ms(images)
    cold = found["none"]
    print(
        json.dumps(
            {
                "samples_per_s": round(cold["samples_per_s"]),
                "cpu_samples_per_s": round(cold["cpu_samples_per_s"]),
                "cached_samples_per_s": round(found["whole"]["samples_per_s"]),
                "ms_per_sample": {k: round(cold[f"{k}_ms"], 3) for k in ("read", "decode", "align")},
                "full_decode_ms": round(full, 3),
                "open_s": round(cold["open_s"], 2),
                "convert_s": round(converted, 2),
                "minutes": given.minutes,
                "bag_mb": round(size / 1e6),
                "workers": given.workers,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
