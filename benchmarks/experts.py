"""Success and duration of each style of the scripted expert, and of the sloppy one under the operator's eyes.

`python benchmarks/experts.py [--seeds 100]` prints one JSON line: style → success, mean seconds of the
successes, attempts beyond recovery; `sloppy_operated` adds takeovers per attempt and the operator's share
of the time.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from recap_station.contract import load_station, load_task
from recap_station.sim.cell import Cell
from recap_station.sim.expert import SLOPPY, STYLES, Expert, Style
from recap_teleop.operator import Operator

STATION, TASK = load_station("aloha"), load_task("handover_insert")


def attempts(style: Style, seeds: range, operated: bool) -> dict[str, float]:
    cell, expert = Cell(STATION, TASK), Expert(STATION, TASK, style)
    operator = Operator(STATION, TASK, 0) if operated else None
    won, lost, times, presses, pressed_ticks, ticks = 0, 0, [], 0, 0, 0
    for seed in seeds:
        cell.reset(seed)
        expert.reset(seed)
        was_pressed = False
        if operator:
            operator.reset()
        while cell.time_s < TASK.time_limit_s:
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
        if truth.success:
            times.append(cell.time_s)
    report = {
        "success": round(won / len(seeds), 3),
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
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    report = {name: attempts(style, seeds, operated=False) for name, style in STYLES.items()}
    report["sloppy_operated"] = attempts(SLOPPY, seeds, operated=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
