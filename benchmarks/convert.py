"""Converting a long bag into an episode: three 640×480 JPEG cameras at 30 Hz and the 50 Hz topics.

`python benchmarks/convert.py [--minutes 10]` writes such a bag (about 3 GB at 10 minutes), reads it once so
that the page cache has it as far as there is room, and prints one JSON line:

- `times_real_time`, `mb_per_s`, `peak_mb`: `recap_learner.data.episodes.convert_bags` of the bag in a process
  of its own, checksums compared, start of Python and imports not counted in the time but in the memory;
- `of_a_core`: the same two rates by processor time in place of the clock, for a machine that is busy;
- `unchecked_mb_per_s`: without comparing checksums;
- `vs_naive`: how many times faster that is than the obvious pipeline: `rosbags` reads, every message is
  deserialised, every image decoded; of a share of the bag (`naive_share`), timed in the same run;
- `two_workers`: four bags by two worker processes, their start counted, against one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from recap_station import topics
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START_NS, STEP_NS = 1_700_000_000_000_000_000, 20_000_000
STATES = (topics.JOINT_STATES, topics.JOINT_COMMAND, topics.POLICY_COMMAND)
NAIVE_S = 10.0  # of the recording that the obvious pipeline is timed on


class Cost(NamedTuple):
    """`seconds` by the clock; `busy_s` of processor time in the process itself; its peak memory."""

    seconds: float
    busy_s: float
    peak_mb: float


def pictures(count: int = 30) -> list[bytes]:
    """640×480 JPEGs with texture, about 56 kB each: 10 minutes of three cameras at 30 Hz are 3 GB."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 255, (60, 80, 3), dtype=np.uint8) for _ in range(count)]
    noise = rng.integers(0, 24, (480, 640, 3), dtype=np.uint8)
    whole = [cv2.resize(one, (640, 480)) // 2 + noise for one in coarse]
    return [cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes() for one in whole]


def write_bag(path: Path, seconds: float, jpegs: list[bytes] | None = None) -> None:
    """jpegs: in place of `pictures`."""
    from recap_station.bags import BagWriter
    from recap_station.cdr import compressed_image, joint_state, serialize

    jpegs = jpegs or pictures()
    names = STATION.joint_names
    start_of = compressed_image(START_NS, b"", "base_camera")  # stamps are put in: serialising is slow
    bodies = [compressed_image(START_NS, jpeg, "base_camera")[12:] for jpeg in jpegs]
    state = joint_state(START_NS, names, [1.0] * STATION.dof, "policy")
    with BagWriter(path, topics.recorded_topics(STATION), topics.LATCHED) as bag:
        bag.set_metadata(
            {
                "recap.station": json.dumps(STATION.to_dict()),
                "recap.task": json.dumps(TASK.to_dict()),
                "recap.outcome": "success",
            }
        )
        values = np.random.default_rng(1).normal(0, 0.3, (1000, STATION.dof))
        ticks, sent = int(seconds * 50), 0
        for tick in range(ticks):
            now = START_NS + tick * STEP_NS
            stamp = np.array([now // 10**9, now % 10**9], "<u4").tobytes()
            if tick in (0, ticks - 1):
                event = serialize(topics.EPISODE_TYPE, stamp_ns=now, state=1 + (tick > 0))
                bag.write(topics.EPISODE, now, event)
            if tick % 25 == 0:
                mode = serialize(topics.MODE_TYPE, stamp_ns=now, source="policy")
                bag.write(topics.CONTROL_MODE, now, mode)
            numbers = values[tick % len(values)].tobytes()
            at = state.index(np.ones(STATION.dof).tobytes())
            for topic in STATES:
                bag.write(topic, now, state[:4] + stamp + state[12:at] + numbers + state[at + len(numbers) :])
            if tick % 50 == 0:
                truth = serialize(topics.TRUTH_TYPE, stamp_ns=now, stage="reach", qpos=np.zeros(30))
            bag.write(topics.SIM_TRUTH, now, truth[:4] + stamp + truth[12:])
            while sent * 5 <= tick * 3:  # 30 Hz
                for k, camera in enumerate(STATION.camera_names):
                    body = bodies[(sent + k) % len(bodies)]
                    bag.write(topics.image_topic(camera), now, start_of[:4] + stamp + body)
                sent += 1


def convert(bags: list[Path], store: Path, workers: int, check: bool = True) -> float:
    """Seconds that it took."""
    from recap_learner.data import episodes, reading

    if not check:
        reader = reading.BagReader
        reading.BagReader = lambda bag: reader(bag, check=False)  # type: ignore[assignment,misc]
    start = time.perf_counter()
    files, problems = episodes.convert_bags(bags, store, workers=workers)
    seconds = time.perf_counter() - start
    assert len(files) == len(bags) and not problems, problems
    assert not any(episodes.load_episode(file).info.damage for file in files)
    return seconds


def naive(bag: Path, seconds: float) -> float:
    """Seconds of the obvious pipeline over the first `seconds` of the recording, resampling not counted."""
    from rosbags.highlevel import AnyReader

    from recap_station.cdr import typestore

    start = time.perf_counter()
    rows: dict[str, list[Any]] = {}
    with AnyReader([bag], default_typestore=typestore()) as reader:
        for connection, _, raw in reader.messages(stop=START_NS + int(seconds * 1e9)):
            message = reader.deserialize(raw, connection.msgtype)
            if connection.msgtype == topics.IMAGE_TYPE:
                rows.setdefault(connection.topic, []).append(
                    cv2.imdecode(message.data, cv2.IMREAD_COLOR).mean()  # type: ignore[attr-defined]
                )
            elif connection.msgtype == topics.JOINT_STATE_TYPE:
                rows.setdefault(connection.topic, []).append(
                    STATION.vector(message.name, message.position)  # type: ignore[attr-defined]
                )
    return time.perf_counter() - start


def _measured(work: Callable[..., float], arguments: tuple[Any, ...], result: Any) -> None:
    cv2.setNumThreads(1)
    before = time.process_time()
    seconds = work(*arguments)
    busy = time.process_time() - before
    result.send(Cost(seconds, busy, _peak_mb()))


def _peak_mb() -> float:
    """Of this program alone: getrusage's number begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def apart(work: Callable[..., float], *arguments: Any) -> Cost:
    """Run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    result, answer = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(work, arguments, answer))
    process.start()
    answer.close()  # so that a process that dies without an answer is an EOFError here
    found: Cost = result.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of recording")
    seconds = 60.0 * parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bag = folder / "bags" / "long"
        write_bag(bag, seconds)
        file = bag / "long_0.mcap"
        size_mb = file.stat().st_size / 1e6
        with open(file, "rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
        checked = apart(convert, [bag], folder / "one", 1)
        unchecked = apart(convert, [bag], folder / "unchecked", 1, False)
        share_s = min(NAIVE_S, seconds)
        obvious = apart(naive, bag, share_s)
        bags = []
        for k in range(4):  # the same bytes under four names: the page cache holds them once
            copy = folder / f"copy{k}" / f"long{k}"
            copy.mkdir(parents=True)
            shutil.copy(bag / "metadata.yaml", copy / "metadata.yaml")
            (copy / "long_0.mcap").hardlink_to(file)
            bags.append(copy)
        alone, together = [], []
        for k in range(2):  # in turn, and the better of each: others may be at work on the machine
            alone.append(apart(convert, bags, folder / f"alone{k}", 1).seconds)
            together.append(apart(convert, bags, folder / f"together{k}", 2).seconds)
    print(
        json.dumps(
            {
                "times_real_time": round(seconds / checked.seconds, 1),
                "mb_per_s": round(size_mb / checked.seconds),
                "peak_mb": round(checked.peak_mb),
                "vs_naive": round((obvious.seconds / share_s) / (checked.seconds / seconds), 1),
                "naive_share": round(share_s / seconds, 4),
                "two_workers": round(min(alone) / min(together), 2),
                "of_a_core": {
                    "times_real_time": round(seconds / checked.busy_s, 1),
                    "mb_per_s": round(size_mb / checked.busy_s),
                    "vs_naive": round((obvious.busy_s / share_s) / (checked.busy_s / seconds), 1),
                    "unchecked_mb_per_s": round(size_mb / unchecked.busy_s),
                },
                "unchecked_mb_per_s": round(size_mb / unchecked.seconds),
                "bag_mb": round(size_mb),
                "minutes": seconds / 60.0,
            }
        )
    )


if __name__ == "__main__":
    main()
