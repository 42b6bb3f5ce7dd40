"""Success and duration of each style of the scripted expert, and of the sloppy one under the operator's eyes.

`python benchmarks/experts.py [--task handover_insert] [--seeds 100] [--styles fast,sloppy]` prints one JSON
line: style → success with its 95 % interval, mean seconds of the successes, successes per hour, attempts
beyond recovery; `sloppy_operated` adds takeovers per attempt and the operator's share of the time.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from recap_learner.evaluation.statistics import wilson_interval
from recap_station.contract import Station, Task, load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import SLOPPY, STYLES, Expert, Style
from recap_teleop.operator import Operator


def attempts(station: Station, task: Task, style: Style, seeds: range, operated: bool) -> dict[str, Any]:
    cell, expert = Cell(station, task), Expert(station, task, style)
    operator = Operator(station, task, 0) if operated else None
    spent = 0.0
    won, lost, times, presses, pressed_ticks, ticks = 0, 0, [], 0, 0, 0
    for seed in seeds:
        cell.reset(seed)
        expert.reset(seed)
        was_pressed = False
        if operator:
            operator.reset()
        while cell.time_s < task.time_limit_s:
            truth, state = cell.truth(), cell.state()
            if truth.success or truth.failure:
                break
            seen = operator.update(truth, state, cell.time_s) if operator else None
            if seen and seen.pressed and seen.command is not None:
                command = seen.command
                presses += not was_pressed
                pressed_ticks += 1
            else:
                if was_pressed:
                    expert.reset()
                command = expert.act(truth, state)
            was_pressed = bool(seen and seen.pressed)
            ticks += 1
            cell.step(command)
        truth = cell.truth()
        won += truth.success
        lost += truth.failure
        spent += cell.time_s
        if truth.success:
            times.append(cell.time_s)
    report = {
        "success": round(won / len(seeds), 3),
        "success_ci95": [round(x, 3) for x in wilson_interval(int(won), len(seeds))],
        "per_hour": round(3600 * won / spent, 1),
        "beyond_recovery": lost,
        "mean_success_s": round(float(np.mean(times)), 2) if times else None,
    }
    if operator:
        report |= {
            "takeovers_per_attempt": round(presses / len(seeds), 2),
            "operator_share": round(pressed_ticks / ticks, 3),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--task", default="handover_insert", help="a name in config/tasks")
    parser.add_argument(
        "--styles", default=",".join([*STYLES, "sloppy_operated"]), help="which, comma-separated"
    )
    given = parser.parse_args()
    station, task = load_station("aloha"), load_task(given.task)
    seeds = range(given.first, given.first + given.seeds)
    report = {}
    for name in given.styles.split(","):
        operated = name == "sloppy_operated"
        report[name] = attempts(station, task, SLOPPY if operated else STYLES[name], seeds, operated)
        print(name, report[name], flush=True)
    print(json.dumps({"task": task.name, "seeds": [seeds[0], seeds[-1]], **report}))


if __name__ == "__main__":
    main()
