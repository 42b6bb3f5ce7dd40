"""How wide a policy should be drawn: success of one checkpoint by temperature. The last line is JSON.

    python benchmarks/temperature.py runs/study/…/policy [--task handover_insert] [--attempts 100]
                                     [--temperatures 1,0.5,0.3,0.1,0]

Chunks begin at so many times the noise of the training (`VLAConfig.temperature`). The same start states for
all, those of development, which no evaluation uses. Policies on states run in lock-step in one process, those
on images one attempt after the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from recap.attempt import Rollouts, run_attempt
from recap.lockstep import in_lockstep
from recap.study.settings import DEVELOPMENT
from recap_learner.evaluation.evaluation import summarize
from recap_policy.config import ObjectConfig
from recap_policy.description import CheckpointError
from recap_policy.runtime import Policy
from recap_station.contract import ContractError, load_station, load_task
from recap_station.sim.cells import make_cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a policy")
    parser.add_argument("--station", default="aloha")
    parser.add_argument("--task", default="handover_insert")
    parser.add_argument("--attempts", type=int, default=100, help="of each temperature")
    parser.add_argument("--temperatures", default="1,0.5,0.3,0.1,0")
    given = parser.parse_args()
    try:
        temperatures = [float(word) for word in given.temperatures.split(",")]
    except ValueError:
        parser.error(f"--temperatures: wanted numbers as in 1,0.5, found {given.temperatures!r}")
    if given.attempts < 1 or min(temperatures) < 0:
        parser.error("wanted at least one attempt and no temperature below 0")
    torch.set_num_threads(1)
    try:
        station, task = load_station(given.station), load_task(given.task)
        policy = Policy.load(given.checkpoint, station=station, threads=1)
    except (ContractError, CheckpointError) as error:
        print(f"temperature: {error}", file=sys.stderr)
        return 1
    own, states = policy.model.config, isinstance(policy.model.config.vision, ObjectConfig)
    how = Rollouts(
        given.station, given.task, checkpoint=given.checkpoint, observation="state" if states else "images"
    )
    seeds = range(DEVELOPMENT, DEVELOPMENT + given.attempts)
    cells = [make_cell(station, task) for _ in range(how.lockstep if states else 1)]
    found, began = {}, time.monotonic()
    for temperature in temperatures:
        policy.model.config = replace(own, temperature=temperature)
        if states:
            attempts = in_lockstep(how, station, task, cells, policy, seeds)
        else:
            attempts = [run_attempt(how, station, task, cells[0], policy, seed) for seed in seeds]
        summary = summarize(attempts)
        kept = ("success", "success_ci95", "throughput_per_hour", "throughput_ci95")
        found[f"{temperature:g}"] = {name: summary[name] for name in kept}
        print(f"{temperature:g}: {found[f'{temperature:g}']}", file=sys.stderr)
    result = {"temperatures": found, "own": own.temperature, "attempts": given.attempts, "task": task.name}
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
