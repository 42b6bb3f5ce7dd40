"""What a chunk costs, and what the prefix cache saves. The last line is JSON.

    python benchmarks/chunk.py [--seconds 30] [--count 0] [--shape small] [--threads 1]

Two models with random weights, batch 1, sub-task given, both ways of each comparison taken in turns:

- `shape` (default small: SigLIP B/16, Gemma 3 270M with the own vocabulary, three cameras of 224 × 224): the
  sampler, which reads the images once and the prefix once and takes 5 Euler steps over the expert alone,
  against the plain forward of the same weights, which goes from the images on at each of the 5 steps.
  `cache_speedup` is the ratio of the medians, `cache_speedup_encoded` the same without the tower on either
  side. Both give the same chunk, which is checked. Wanted: at least 3.
- tiny, from three images to joint commands: `tiny_chunk_ms`, median with β = 1, and `guidance_cost`, the
  median ratio of β = 1.5 to the β = 1 chunk beside it. Wanted: at most 25 ms on one idle core, and 1.5.
  `inpainting_cost`: real-time chunking by in-painting against none. `tiny_chunk_cpu_ms` is the process's CPU
  time, which says more than the duration where the machine has other work.

Ratios are of CPU times where there is one thread, and of durations otherwise.

`peak_mb`: most memory of the process, the `shape` model's weights among it. With --count each way is taken so
many times, however long it lasts.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from recap_policy.config import VLAConfig
from recap_policy.rtc import Inpainting
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA

PROMPT, SUBTASK = ["insert the peg"], ["reach"]
STEPS = 5
Observation = tuple[Tensor, Tensor, Tensor]  # images, state, noise


def in_turns(ways: dict[str, Callable[[], object]], seconds: float, count: int) -> dict[str, np.ndarray]:
    """Of each way, (n, 2): durations and CPU times [s], after one call that does not count."""
    for call in ways.values():
        call()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    stop = time.perf_counter() + seconds
    done = 0
    while done < count if count else (time.perf_counter() < stop or done < 2):
        for name, call in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            call()
            found[name].append((time.perf_counter() - start, time.process_time() - busy))
        done += 1
    return {name: np.array(times) for name, times in found.items()}


def made(config: VLAConfig) -> tuple[VLA, Observation]:
    torch.manual_seed(0)
    prefix = config.prefix
    tokenizer = TinyTokenizer.fit([*PROMPT, *SUBTASK], prefix.word_slots, prefix.action_codes)
    # The own vocabulary, for want of Gemma's tokenizer: a given sub-task costs no pass over the table.
    config = replace(config, backbone=replace(config.backbone, vocabulary=None))
    model = VLA(config, tokenizer).eval()
    for parameter in model.expert.parameters():
        if not parameter.any():  # gates that training would have opened: the prefix reaches the actions
            torch.nn.init.normal_(parameter, std=0.1)
    size, dof = config.vision.image_size, config.prefix.dof
    images = torch.randint(0, 255, (1, config.prefix.cameras, size, size, 3), dtype=torch.uint8)
    return model, (images, torch.rand(1, dof) - 0.5, torch.randn(1, config.action_tokens, dof))


def cached(model: VLA, features: Tensor, state: Tensor, noise: Tensor) -> Tensor:
    return model.sample(features, state, PROMPT, noise=noise, steps=STEPS, subtask=SUBTASK).actions


def plain(model: VLA, features: Callable[[], Tensor], state: Tensor, noise: Tensor) -> Tensor:
    """The chunk without a cache: each step reads everything anew, by sampling one step of one from x."""
    caught: list[Tensor] = []
    hook = model.expert.register_forward_hook(lambda _m, _i, velocity: caught.append(velocity[:, 0]))
    forward, x = model.expert.forward, noise
    for step in range(STEPS):
        now = torch.full((1, 1), 1 - step / STEPS)
        model.expert.forward = lambda noisy, _t, *rest, now=now: forward(noisy, now, *rest)
        model.sample(features(), state, PROMPT, noise=x, steps=1, subtask=SUBTASK)
        x = x - caught[-1] / STEPS
    model.expert.forward = forward
    hook.remove()
    return model.codec.decode(model.codec.clamp(x), state)


@torch.inference_mode()
def cache_gain(config: VLAConfig, seconds: float, count: int) -> dict[str, float]:
    model, (images, state, noise) = made(config)
    features = model.encode_images(images)
    whole = {
        "cached": lambda: cached(model, model.encode_images(images), state, noise),
        "plain": lambda: plain(model, lambda: model.encode_images(images), state, noise),
        "cached_encoded": lambda: cached(model, features, state, noise),
        "plain_encoded": lambda: plain(model, lambda: features, state, noise),
    }
    torch.testing.assert_close(whole["cached"](), whole["plain"](), atol=1e-4, rtol=1e-3)
    times = in_turns(whole, seconds, count)
    median = {name: float(np.median(found[:, 0])) for name, found in times.items()}
    own = {name: float(np.median(_compared(found))) for name, found in times.items()}
    return {
        "cache_speedup": round(own["plain"] / own["cached"], 2),
        "cache_speedup_encoded": round(own["plain_encoded"] / own["cached_encoded"], 2),
        "cached_ms": round(1e3 * median["cached"], 1),
        "plain_ms": round(1e3 * median["plain"], 1),
        "cached_encoded_ms": round(1e3 * median["cached_encoded"], 1),
    }


@torch.no_grad()
def tiny_chunk(seconds: float, count: int) -> dict[str, float]:
    model, (images, state, noise) = made(vla_config("tiny"))
    last = state[:, None].expand(-1, 30, -1)

    def chunk(beta: float, inpainting: Inpainting | None = None) -> object:
        return model.sample(
            model.encode_images(images), state, PROMPT, beta=beta, noise=noise, steps=STEPS, subtask=SUBTASK,
            inpainting=inpainting,
        )  # fmt: skip

    ways = {
        "plain": lambda: chunk(1.0),
        "guided": lambda: chunk(1.5),
        "inpainted": lambda: chunk(1.0, Inpainting(last, 4)),
    }
    found = in_turns(ways, seconds, count)
    duration, busy = 1e3 * found["plain"].T
    own = {name: _compared(times) for name, times in found.items()}
    return {
        "tiny_chunk_ms": round(float(np.median(duration)), 2),
        "tiny_chunk_ms_best": round(float(duration.min()), 2),
        "tiny_chunk_cpu_ms": round(float(np.median(busy)), 2),
        "guidance_cost": round(float(np.median(own["guided"] / own["plain"])), 3),
        "inpainting_cost": round(float(np.median(own["inpainted"] / own["plain"])), 3),
    }


def _compared(times: np.ndarray) -> np.ndarray:
    """(n, 2) → what ratios are taken of, (n,): on one thread the CPU time, which other load disturbs less."""
    return times[:, 1] if torch.get_num_threads() == 1 else times[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="small", help="configuration whose cache is measured")
    parser.add_argument("--seconds", type=float, default=30.0, help="for all ways together")
    parser.add_argument("--count", type=int, default=0, help="times each way is taken, instead of --seconds")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result: dict[str, object] = {"shape": given.shape, "threads": given.threads, "steps": STEPS}
    result |= tiny_chunk(given.seconds / 4, given.count)
    result |= cache_gain(vla_config(given.shape), 0.75 * given.seconds, given.count)
    result["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
