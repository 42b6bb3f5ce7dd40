"""A film strip of one attempt of the scripted expert in the simulated cell, and a picture of the cell.

`python benchmarks/film.py --task espresso [--style fast] [--seed 0] [--out docs/tasks]` writes TASK_film.jpg
(a frame when the expert's step changes, at most --frames of them) and TASK.jpg, and prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from recap_station.contract import load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import STYLES, Expert

COLUMNS = 4
WIDTH, HEIGHT = 240, 180


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="handover_insert", help="a name in config/tasks")
    parser.add_argument("--style", default="fast", choices=sorted(STYLES), help="how the expert works")
    parser.add_argument("--seed", type=int, default=0, help="start state")
    parser.add_argument("--frames", type=int, default=16, help="at most")
    parser.add_argument("--out", type=Path, default=Path("docs/tasks"), help="folder")
    given = parser.parse_args()
    station, task = load_station("aloha"), load_task(given.task)
    station = replace(
        station, cameras=tuple(replace(c, width=2 * WIDTH, height=2 * HEIGHT) for c in station.cameras)
    )
    cell, expert = Cell(station, task), Expert(station, task, STYLES[given.style], given.seed)
    cell.reset(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    pictures = [cell.render(camera) for camera in station.camera_names]
    _write(given.out / f"{task.name}.jpg", np.hstack(pictures))
    frames: list[np.ndarray] = []
    phase = ""
    while cell.time_s < task.time_limit_s and not (cell.truth().success or cell.truth().failure):
        command = expert.act(cell.truth(), cell.state())
        if expert.phase != phase:
            phase = expert.phase
            frames.append(_frame(cell, station.camera_names[0], phase))
        cell.step(command)
    frames.append(_frame(cell, station.camera_names[0], "success" if cell.truth().success else "failure"))
    picked = np.unique(np.linspace(0, len(frames) - 1, given.frames).round().astype(int))
    strip = [frames[i] for i in picked]
    strip += [np.zeros_like(strip[0])] * (-len(strip) % COLUMNS)
    rows = [np.hstack(strip[i : i + COLUMNS]) for i in range(0, len(strip), COLUMNS)]
    _write(given.out / f"{task.name}_film.jpg", np.vstack(rows))
    truth = cell.truth()
    cell.close()
    print(json.dumps({"task": task.name, "seconds": round(cell.time_s, 2), "success": truth.success}))


def _frame(cell: Cell, camera: str, text: str) -> np.ndarray:
    image = cv2.resize(cell.render(camera), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    caption = f"{cell.time_s:.1f} s  {text}"
    return cv2.putText(
        image, caption, (5, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA
    )


def _write(path: Path, rgb: np.ndarray) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 75])


if __name__ == "__main__":
    main()
