"""Speed of the simulated cell on one core: physics alone, one image, and both as recorded (3 cameras, 30 Hz).

Measured in processor time of all threads, so that other work on the machine does not count.

`python benchmarks/sim.py [--task handover_insert] [--seconds 20]` prints one JSON line.
realtime_factor_with_cameras counts physics and rendering while the expert
works; the expert's own thinking is left out of it and given as expert_ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time

from recap_station.contract import load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import FAST, Expert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated time")
    parser.add_argument("--task", default="handover_insert", help="a name in config/tasks")
    given = parser.parse_args()
    seconds = given.seconds
    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    station, task = load_station("aloha"), load_task(given.task)
    cell, expert = Cell(station, task), Expert(station, task, FAST)
    for camera in station.camera_names:
        cell.render(camera)
    physics = rendering = thinking = 0.0
    images = seed = 0
    ticks = round(seconds * station.control_rate_hz)
    due = [0.0] * len(station.cameras)
    for tick in range(ticks):
        truth = cell.truth()
        if tick == 0 or truth.success or truth.failure or cell.time_s > task.time_limit_s:
            cell.reset(seed)
            expert.reset(seed)
            seed += 1
            truth = cell.truth()
        start = time.process_time()
        command = expert.act(truth, cell.state())
        thought = time.process_time()
        cell.step(command)
        stepped = time.process_time()
        for index, camera in enumerate(station.cameras):
            if tick * station.step_s >= due[index] - 1e-9:
                due[index] += 1.0 / camera.rate_hz
                cell.render(camera.name)
                images += 1
        done = time.process_time()
        thinking, physics, rendering = (
            thinking + thought - start, physics + stepped - thought, rendering + done - stepped,
        )  # fmt: skip
    cell.close()
    print(
        json.dumps(
            {
                "realtime_factor_with_cameras": round(seconds / (physics + rendering), 1),
                "physics_only": round(seconds / physics, 1),
                "render_ms": round(1e3 * rendering / images, 2),
                "expert_ms": round(1e3 * thinking / ticks, 3),
                "simulated_s": seconds,
                "task": task.name,
            }
        )
    )


if __name__ == "__main__":
    main()
