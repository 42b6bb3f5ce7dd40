"""What the policy costs: training samples a second, and the time of one chunk. Prints one JSON line.

    python benchmarks/policy_step.py [--config tiny] [--batch 128] [--draws 4] [--threads 2] [--seconds 10]

Training runs on cached image features, as the learner does. A chunk is the whole way from three images to
joint commands, batch 1, on one thread: tower, prefix, sub-task text, Euler steps. On two idle cores `tiny` is
meant to train at 400 samples a second and more, and to give a chunk in 25 ms at most.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from recap_policy.config import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA, Batch

STAGES = ["reach", "lift", "pass", "insert"]


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Durations of repeated calls [s], after three that do not count."""
    for _ in range(3):
        call()
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < 5:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    config = vla_config(given.config)
    tokenizer = TinyTokenizer.fit(["insert the peg", *STAGES], config.prefix.word_slots)
    model = VLA(config, tokenizer)
    rows = given.batch
    state = torch.rand(rows, config.prefix.dof) - 0.5
    actions = state[:, None] + torch.randn(rows, config.horizon, config.prefix.dof).cumsum(1) * 0.01
    model.fit_normalizers(actions, state, torch.zeros(config.prefix.dof, dtype=torch.bool))
    batch = Batch(
        image_features=torch.randn(rows, config.prefix.cameras, config.vision.tokens, config.vision.width),
        state=state,
        prompt=["insert the peg"] * rows,
        subtask=[STAGES[row % 4] for row in range(rows)],
        indicator=torch.arange(rows) % 2,
        actions=actions,
    )
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        loss = model.loss(batch, generator, given.draws)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    busy = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    steps = timed(step, given.seconds)
    busy = (resource.getrusage(resource.RUSAGE_SELF).ru_utime - busy) / (len(steps) + 3)

    torch.set_num_threads(1)
    model.eval()
    size = config.vision.image_size
    images = torch.randint(0, 255, (1, config.prefix.cameras, size, size, 3), dtype=torch.uint8)

    def chunk(beta: float) -> list[float]:
        @torch.no_grad()
        def once() -> None:
            model.sample(model.encode_images(images), state[:1], ["insert the peg"], beta=beta)

        return timed(once, given.seconds / 4)

    plain, guided = chunk(1.0), chunk(1.5)
    result = {
        "config": given.config,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "samples_per_s": round(rows / float(np.median(steps)), 1),
        "samples_per_s_best": round(rows / min(steps), 1),
        "cpu_s_per_step": round(busy, 3),
        "chunk_ms_p50": round(1e3 * float(np.median(plain)), 2),
        "chunk_ms_best": round(1e3 * min(plain), 2),
        "guidance_cost": round(float(np.median(guided) / np.median(plain)), 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "batch": rows,
        "draws": given.draws,
        "threads": given.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
