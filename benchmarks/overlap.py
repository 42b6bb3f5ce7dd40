"""Attempts beside training, or one after the other: which is sooner over on this machine.

    python benchmarks/overlap.py [--steps 100] [--scenes 400] [--attempts 20] [--rounds 1]
        [--ways after:2 beside:2 beside:1 beside:2:passive]

The tower's pre-training (rendering in processes, then steps of torch in this one) and scripted attempts in
processes, as many as there are cores, once in each way and round, every way in a process of its own. A way is
after or beside, torch's threads, and OpenMP's OMP_WAIT_POLICY.
`wall_s` and `cpu_s` (of all processes) are medians over the rounds, `training_s` of the training alone;
`sooner` the ratio of the first way's wall time to each other's, by round, its median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def once(given: argparse.Namespace) -> None:
    """One way, in this process: prints its seconds."""
    import torch

    from recap import rollout
    from recap_learner.training.vision_training import VisionTraining, train_vision

    order, threads, *_ = given.way.split(":")
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(int(threads))
    how = VisionTraining(scenes=given.scenes).for_steps(given.steps)
    what = rollout.Rollouts("aloha", "handover_insert", styles={"fast": 1.0})
    took = {}

    def train() -> None:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            train_vision("aloha", "handover_insert", Path(folder) / "vision", how, 1, {}, cores)
        took["training_s"] = time.monotonic() - begin

    def attempt() -> None:
        rollout.run_attempts(what, range(given.attempts), cores)

    begin = time.monotonic()
    if order == "beside":
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(attempt)
            train()
            done.result()
    else:
        attempt()
        train()
    wall, used = time.monotonic() - begin, os.times()
    print(json.dumps({"wall_s": wall, "cpu_s": sum(used[:4]), **took}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--attempts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=["after:2", "beside:2", "beside:1", "beside:2:passive"])
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        once(given)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in given.ways}
    for _ in range(given.rounds):
        for way in given.ways:
            threads, policy = [*way.split(":"), ""][1:3]
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
            sizes = [f"--{n}={getattr(given, n)}" for n in ("steps", "scenes", "attempts")]
            command = [sys.executable, __file__, f"--way={way}", *sizes]
            told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(told.stdout.splitlines()[-1]))
            print(way, found[way][-1], file=sys.stderr, flush=True)
    middle = {
        way: {n: round(statistics.median(r[n] for r in rounds), 1) for n in rounds[0]}
        for way, rounds in found.items()
    }
    first = found[given.ways[0]]
    sooner = {}
    for way, rounds in found.items():
        ratios = [a["wall_s"] / b["wall_s"] for a, b in zip(first, rounds, strict=True)]
        sooner[way] = round(statistics.median(ratios), 2)
    print(json.dumps({"ways": middle, "sooner": sooner, "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
