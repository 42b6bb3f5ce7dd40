"""A chunk's time under each way of computing that this machine has. Prints one JSON line.

    python benchmarks/runtime.py [--checkpoint FOLDER] [--seconds 3] [--threads 1] [--compile]

Three images, batch 1, plain (beta 1) and guided (beta 1.5), the whole way from images to joint commands, with
a `tiny` policy that knows its sub-task's text and nothing else unless a checkpoint is given. The ways are
measured by turns, so that whatever else the machine does meets all; --compile adds torch.compile, which takes
minutes to warm up. `best` is the one with the smallest plain median: what "auto" ought to choose.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policy_rate import untrained_policy

from recap_policy.device import RuntimeConfig, resolve
from recap_policy.inference import WarmUp
from recap_policy.interface import Sampling
from recap_policy.runtime import Policy
from recap_policy.worker import warm_up
from recap_station.contract import load_station

BETAS = {"plain": 1.0, "guided": 1.5}


def ways(with_compile: bool) -> list[RuntimeConfig]:
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    found = []
    for device in devices:
        for dtype in ("float32", "bfloat16"):
            for mode in ("off", "default") if with_compile else ("off",):
                for graphs in ("off", "on") if device == "cuda" else ("off",):
                    found.append(RuntimeConfig(device, dtype, mode, graphs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="folder; default: a policy made here")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way and beta")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    station = load_station("aloha")
    policies: dict[str, Policy] = {}
    result: dict[str, Any] = {"threads": given.threads, "ways": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = given.checkpoint or untrained_policy(Path(folder) / "policy")
        for config in ways(given.compile):
            policy = Policy.load(place, station=station, threads=given.threads, runtime=config)
            started = time.perf_counter()
            warm_up(policy, station, WarmUp(Sampling(BETAS["guided"])))
            name = str(resolve(config))
            policies[name] = policy
            result["ways"][name] = {"warm_up_s": round(time.perf_counter() - started, 2)}
    images = {c.name: np.full((c.height, c.width, 3), 128, np.uint8) for c in station.cameras}
    taken: dict[tuple[str, str], list[float]] = {(way, beta): [] for way in policies for beta in BETAS}
    while min(sum(times) for times in taken.values()) < given.seconds:
        for (way, beta), times in taken.items():
            started = time.perf_counter()
            policies[way].infer(images, station.home, "insert the peg", Sampling(BETAS[beta]))
            times.append(time.perf_counter() - started)
    for (way, beta), times in taken.items():
        result["ways"][way][f"{beta}_ms"] = round(1e3 * float(np.median(times)), 2)
    result["best"] = min(policies, key=lambda way: result["ways"][way]["plain_ms"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
