"""AdamW against Muon: flow loss of held-out episodes after the same number of steps. The last line is JSON.

    python benchmarks/optimizer.py runs/study/…/seed_0 [--steps 500] [--adamw 0.002,0.004] [--muon 0.01]
                                   [--config tiny-state] [--seed 0]

A fresh policy for each optimiser and learning rate, trained on nine of ten episodes of the run (its
demonstrations, and rollouts where it has some), all called positive. `held_out` is the mean flow loss on the
others, the same samples for all; `cpu_s` what the training took; `best_ratio` the least loss of Muon's rates
over the least of AdamW's. Wanted: below 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recap_learner.data.episodes import SUFFIX
from recap_learner.data.frames import Frames
from recap_learner.iteration import open_frames
from recap_learner.training.optimizer import OPTIMIZERS
from recap_learner.training.policy_training import PolicyLoss, PolicyTraining, train_policy
from recap_learner.training.training import Schedule
from recap_policy.checkpoint import load_policy

HELD_OUT, SAMPLES, BATCHES = 10, 512, 4  # every tenth episode; samples a batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, with pretrain/vision and episodes")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--adamw", default="0.002,0.004", help="learning rates")
    parser.add_argument("--muon", default="0.01", help="learning rates")
    parser.add_argument("--config", default="tiny-state")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        rates = {name: [float(word) for word in getattr(given, name).split(",")] for name in OPTIMIZERS}
    except ValueError:
        parser.error("--adamw, --muon: wanted numbers as in 0.002,0.004")
    torch.set_num_threads(1)
    files = sorted(given.run.rglob(f"*{SUFFIX}"))
    tower = given.run / "pretrain" / "vision"
    if len(files) < HELD_OUT or not tower.is_dir():
        print(f"optimizer: {given.run}: wanted {HELD_OUT} episodes and {tower}, found {len(files)}",
              file=sys.stderr)  # fmt: skip
        return 1
    held = files[::HELD_OUT]
    frames, others = (open_frames(some, tower) for some in (sorted({*files} - {*held}), held))
    losses: dict[str, dict[str, float]] = {name: {} for name in OPTIMIZERS}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in OPTIMIZERS:
            for rate in rates[name]:
                out = Path(folder) / f"{name}_{rate:g}" / "policy"
                schedule = Schedule(given.steps, given.batch, learning_rate=rate, optimizer=name)
                how = PolicyTraining(given.config, schedule)
                began = time.process_time()
                everything = np.ones(len(frames), np.int8)
                train_policy(frames, everything, out, None, tower, how, given.seed, {})
                seconds[out.parent.name] = round(time.process_time() - began, 1)
                losses[name][f"{rate:g}"] = round(_flow(out, others, how), 4)
                print(f"{out.parent.name}: {losses[name][f'{rate:g}']}", file=sys.stderr)
    least = {name: min(found.values()) for name, found in losses.items()}
    result = {"held_out": losses, "cpu_s": seconds, "best_ratio": round(least["muon"] / least["adamw"], 3)}
    print(
        json.dumps(
            {**result, "steps": given.steps, "episodes": len(files), "held": least["muon"] < least["adamw"]}
        )
    )
    return 0


def _flow(policy: Path, frames: Frames, how: PolicyTraining) -> float:
    """Mean flow loss on frames that it has not seen."""
    model = load_policy(policy, frames.episodes[0].info.station).eval()
    how = replace(how, schedule=replace(how.schedule, batch=SAMPLES))
    loss = PolicyLoss(model, frames, np.ones(len(frames), np.int8), how, torch.device("cpu"))
    with torch.no_grad():
        found = [float(loss(0, torch.Generator().manual_seed(number))["flow"]) for number in range(BATCHES)]
    return float(np.mean(found))


if __name__ == "__main__":
    sys.exit(main())
