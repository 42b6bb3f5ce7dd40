"""What it costs to hand images to the inference process and a chunk back. Prints one JSON line.

    python benchmarks/inference_process.py [--trials 400]

Two ways: "pickled", JPEGs and chunk inside the messages over the socket; "shared", as the inference process
does it: both in shared memory, messages that say where. Three JPEGs of 96 and of 448 pixels a side; the far
side reads every byte and answers with a chunk at once, without a model. `send_us` is how long the near side,
which ticks at 50 Hz, is kept; `round_us` is until it has the chunk; `..._ratio` is pickled / shared, of
medians. In `idle` the far side waits; in `busy` it comes to the socket 5 ms late, as when it was elsewhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np

from recap_policy.chunks import Chunk
from recap_policy.inference import InferredRest, InferRequest
from recap_policy.shared import SharedSlots

CAMERAS = ("base_camera", "left_wrist_camera", "right_wrist_camera")
STATE, POSITIONS = np.zeros(14), np.zeros((50, 14))
BUSY_S = 5e-3


def images(size: int) -> dict[str, bytes]:
    """Textured pictures: about as large as a camera's."""
    generator = np.random.default_rng(0)
    found = {}
    for camera in CAMERAS:
        coarse = generator.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(picture + generator.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        found[camera] = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    return found


def far_side(connection: Connection, shared: SharedSlots) -> None:
    """Answers either way, until the near side is gone."""
    while True:
        try:
            request: Any = connection.recv()
            if request == "wait":
                time.sleep(BUSY_S)
                continue
            if isinstance(request, InferRequest):
                parts = [shared.read(request.slot, span) for span in request.spans.values()]
            else:
                parts = [np.frombuffer(jpeg, np.uint8) for jpeg in request["jpegs"].values()]
            for part in parts:
                part.max()
            if isinstance(request, InferRequest):
                shape = shared.write_array(request.slot, POSITIONS)
                connection.send(InferredRest(1, 0, shape, Chunk(np.empty(0)), "identity", "", 0.0))
            else:
                connection.send({"ticket": 1, "chunk": Chunk(POSITIONS), "policy": "identity"})
        except (EOFError, OSError):
            return


def once(
    way: str, connection: Connection, shared: SharedSlots, jpegs: dict[str, bytes]
) -> tuple[float, float]:
    """→ seconds until sent, seconds until the chunk is there"""
    started = time.perf_counter()
    if way == "shared":
        spans = dict(zip(jpegs, shared.write(0, jpegs.values()), strict=True))
        connection.send(InferRequest(1, 0, spans, STATE, "insert the peg", 1.0, 5, False, None))
    else:
        rest = {"state": STATE, "prompt": "insert the peg", "beta": 1.0, "steps": 5}
        connection.send({"ticket": 1, "jpegs": jpegs, **rest})
    sent = time.perf_counter() - started
    reply: Any = connection.recv()
    positions = shared.read_array(0, reply.shape) if way == "shared" else reply["chunk"].positions
    assert positions.shape == POSITIONS.shape
    return sent, time.perf_counter() - started


def measure(jpegs: dict[str, bytes], trials: int, busy: bool) -> dict[str, Any]:
    """Both ways by turns, so that whatever else the machine does meets both."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    shared = SharedSlots()
    process = context.Process(target=far_side, args=(far, shared), daemon=True)
    process.start()
    far.close()
    times: dict[str, list[tuple[float, float]]] = {"pickled": [], "shared": []}
    for trial in range(trials):
        for way, taken in times.items():
            if busy:
                near.send("wait")
                time.sleep(1e-3)
            one = once(way, near, shared, jpegs)
            if trial >= trials // 10:
                taken.append(one)
    near.close()
    process.join(5.0)
    result: dict[str, Any] = {}
    for index, name in enumerate(("send_us", "round_us")):
        for way, taken in times.items():
            values = 1e6 * np.array(taken)[:, index]
            result[f"{way}_{name}"] = round(float(np.median(values)), 1)
            result[f"{way}_{name}_p99"] = round(float(np.percentile(values, 99)), 1)
        result[f"{name[:-3]}_ratio"] = round(result[f"pickled_{name}"] / result[f"shared_{name}"], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=400)
    given = parser.parse_args()
    result: dict[str, Any] = {}
    for size in (96, 448):
        jpegs = images(size)
        result[f"3x{size}x{size}"] = {
            "jpeg_bytes": sum(map(len, jpegs.values())),
            "idle": measure(jpegs, given.trials, busy=False),
            "busy": measure(jpegs, given.trials // 4, busy=True),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
