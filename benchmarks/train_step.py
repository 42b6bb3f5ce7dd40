"""What a training step costs, against the plain way. The last line is JSON.

    python benchmarks/train_step.py [--seconds 20] [--count 0] [--shape tiny small] [--threads 2]
        [--ways plain shared bf16] [--batch N] [--draws 4] [--recompute] [--device auto]

One step of an example is one pass of the prefix, `draws` noise samples and times through the expert, the
backward pass and AdamW, on cached image features, as the learner trains. Ways, taken in turns:

- plain: the same model in float32, run eagerly, with a backbone pass for each noise draw
- shared: the draws share the example's prefix (what the learner does)
- bf16: shared, forward under bfloat16 autocast
- compiled: shared, backbone and expert through torch.compile
- both: the last two

`speedup` is the least of the shapes' median ratios of plain to the best of the other ways, `samples_per_s`
and `best` are per shape. `small` is at its own widths, with 4 of its 18 layers, the own vocabulary in place
of Gemma's and its FAST tokens encoded beforehand.
Wanted: at least 1.3.

What was tried (one thread, --count 3, a busy machine whose cores have AVX512-BF16), as ratios to plain: tiny
1.91 shared, 1.45 bf16 (its products are too small: conversion costs more than it saves); small 2.63 shared,
4.03 bf16. tiny in another run: 2.15 shared, 2.00 compiled, after 211 s of compiling. `both`, and compiling
small, were not finished there; hence the default ways. The learner itself is `shared`. Those figures are of
a `small` without state in its text and without FAST tokens.

`peak_mb`: most memory of a process that takes three `shared` steps of the last shape, with a batch three
times as large, and `peak_recompute_mb` with the configuration's `recompute` (activation checkpointing), each
in a process of its own, on a GPU what torch allocated there; `recompute_cost` is the ratio of their best
steps' CPU times, on a GPU of their durations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recap_learner.training.training import Computation
from recap_policy.config import VLAConfig
from recap_policy.device import CHOICES, RuntimeConfig, resolve
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA, Batch

WAYS = ("plain", "shared", "bf16", "compiled", "both")
BATCH = {"tiny": 64, "small": 4}
STAGES = ["reach", "lift", "pass", "insert"]


def shape(name: str, recompute: bool = False) -> VLAConfig:
    config = vla_config(name)
    backbone = replace(config.backbone, recompute=recompute)
    if name != "tiny":
        backbone = replace(backbone, layers=4, vocabulary=None)
    return replace(config, backbone=backbone)


def made(config: VLAConfig, rows: int) -> tuple[VLA, Batch]:
    torch.manual_seed(0)
    prefix = config.prefix
    tokenizer = TinyTokenizer.fit(["insert the peg", *STAGES], prefix.word_slots, prefix.action_codes)
    model = VLA(config, tokenizer)
    state = torch.rand(rows, config.prefix.dof) - 0.5
    phase = torch.linspace(0, 1, config.horizon)[None, :, None]
    reach = phase**3 * (10 - 15 * phase + 6 * phase**2)  # minimum jerk: as many FAST tokens as a motion has
    actions = state[:, None] + torch.randn(rows, 1, config.prefix.dof) * 0.3 * reach
    model.fit_normalizers(actions, state, torch.zeros(config.prefix.dof, dtype=torch.bool))
    batch = Batch(
        image_features=torch.randn(rows, config.prefix.cameras, config.vision.tokens, config.vision.width),
        state=state,
        prompt=["insert the peg"] * rows,
        subtask=[STAGES[row % 4] for row in range(rows)],
        indicator=torch.arange(rows) % 2,
        actions=actions,
        fast=model.action_codes(actions, state) if model.fast is not None else None,
    )
    return model, batch


def repeated(batch: Batch, times: int) -> Batch:
    row = torch.arange(len(batch.state)).repeat_interleave(times)
    of = row.tolist()
    return Batch(
        image_features=batch.image_features[row],
        state=batch.state[row],
        prompt=[batch.prompt[i] for i in of],
        subtask=[batch.subtask[i] for i in of],
        indicator=batch.indicator[row],
        actions=batch.actions[row],
        fast=None if batch.fast is None else [batch.fast[i] for i in of],
    )


def step_of(way: str, config: VLAConfig, rows: int, draws: int, device: str) -> Callable[[], float]:
    """A training step of a model of its own, as the learner's → its loss. Returns when it is done."""
    model, batch = made(config, rows)
    half = way in ("bf16", "both")
    placement = Computation(device=device, precision="bfloat16" if half else "float32").prepare(model)
    batch, where = batch.to(placement.device), placement.device.type
    if way in ("compiled", "both"):
        model.backbone.compile()
        model.expert.compile()
    if way == "plain":
        batch, draws = repeated(batch, draws), 1
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        with torch.autocast(where, placement.dtype, enabled=half):
            loss = model.loss(batch, generator, draws)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if where == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    return step


def in_turns(steps: dict[str, Callable[[], float]], seconds: float, count: int) -> dict[str, np.ndarray]:
    """Durations [s] of each way, (n,), after two steps of each that do not count."""
    for step in steps.values():
        losses = [step(), step()]
        if not np.isfinite(losses).all():
            raise ValueError(f"losses are {losses}, wanted finite ones")
    found: dict[str, list[float]] = {way: [] for way in steps}
    stop = time.perf_counter() + seconds
    done = 0
    while done < count if count else (time.perf_counter() < stop or done < 3):
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            found[way].append(time.perf_counter() - start)
        done += 1
    return {way: np.array(durations) for way, durations in found.items()}


def memory(name: str, rows: int, draws: int, recompute: bool, device: str) -> None:
    """Of this process: most memory [MB] after three steps, and the best one's CPU time [s]. Prints JSON."""
    step = step_of("shared", shape(name, recompute), rows, draws, device)
    on_gpu = resolve(RuntimeConfig(device, cuda_graphs="off")).device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    durations = []
    for _ in range(3):
        start = clock()
        step()
        durations.append(clock() - start)
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
        return print(json.dumps({"peak_mb": round(peak), "seconds": min(durations)}))
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    print(json.dumps({"peak_mb": round(peak), "seconds": min(durations)}))


def memory_apart(name: str, rows: int, given: argparse.Namespace, recompute: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", "--shape", name, "--batch", str(rows)]
    command += ["--draws", str(given.draws), "--threads", str(given.threads), "--device", given.device]
    command += ["--recompute"] if recompute else []
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", default=["tiny", "small"])
    parser.add_argument("--ways", nargs="+", default=["plain", "shared", "bf16"], choices=WAYS)
    parser.add_argument("--seconds", type=float, default=20.0, help="for all ways of a shape together")
    parser.add_argument("--count", type=int, default=0, help="steps of each way, instead of --seconds")
    parser.add_argument("--batch", type=int, default=0, help="examples a step; 0: 64 for tiny, 4 for small")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in every way")
    parser.add_argument("--memory", action="store_true", help="only the memory of `shared` in this process")
    parser.add_argument("--device", default="auto", choices=CHOICES["device"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory:
        return memory(given.shape[0], given.batch, given.draws, given.recompute, given.device)

    speedup, rate, best = {}, {}, {}
    for name in given.shape:
        rows = given.batch or BATCH[name]
        config = shape(name, given.recompute)
        ways = ["plain", *[way for way in given.ways if way != "plain"]]
        steps = {way: step_of(way, config, rows, given.draws, given.device) for way in ways}
        found = in_turns(steps, given.seconds, given.count)
        ratio = {way: float(np.median(found["plain"] / found[way])) for way in ways if way != "plain"}
        print(json.dumps({"shape": name, **{way: round(value, 2) for way, value in ratio.items()}}))
        best[name] = max(ratio, key=ratio.__getitem__)
        speedup[name] = ratio[best[name]]
        rate[name] = round(rows / float(np.median(found[best[name]])), 1)
    name = given.shape[-1]
    rows = 3 * (given.batch or BATCH[name])
    kept, saved = (memory_apart(name, rows, given, recompute) for recompute in (False, True))
    result = {
        "speedup": round(min(speedup.values()), 2),
        "speedups": {name: round(value, 2) for name, value in speedup.items()},
        "best": best,
        "samples_per_s": rate,
        "peak_mb": kept["peak_mb"],
        "peak_recompute_mb": saved["peak_mb"],
        "recompute_cost": round(saved["seconds"] / kept["seconds"], 2),
        "draws": given.draws,
        "threads": given.threads,
        "device": str(resolve(RuntimeConfig(given.device, cuda_graphs="off")).device),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
