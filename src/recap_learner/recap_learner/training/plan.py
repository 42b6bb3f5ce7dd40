"""What a training will take before anybody rents a machine for it: memory a GPU, time a step, days.

Derived from FLOPs, bytes and data sheets (footprint.py), with every assumption a field of `Assumed`. Nothing
here is measured on a GPU.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields, replace
from typing import Any

from recap_learner.training.footprint import (
    Config,
    Precision,
    Sample,
    activations,
    flops,
    lengths,
    weights,
)
from recap_policy.config import ConfigError, VLAConfig
from recap_policy.latency import DEVICES
from recap_policy.sizes import VALUE_CONFIGS, VLA_CONFIGS

MEMORY_GB = {"h100": 80.0, "h200": 141.0, "a100": 80.0}  # data sheets; 1 GB is 1e9 bytes
LINK_GB_S = {"h100": 450.0, "h200": 450.0, "a100": 300.0}  # NVLink, one direction


@dataclass(frozen=True)
class Assumed:
    """What is not known beforehand, each to be set by its name. Shares are of the data sheet's numbers."""

    prompt_tokens: int = 20
    subtask_tokens: int = 10
    fast_tokens: int = 60
    draws: int = 2  # noise draws of the flow a sample
    frame_hz: float = 10.0  # samples taken of a second of recording
    of_flops: float = 0.4
    of_bandwidth: float = 0.7
    of_link: float = 0.7
    hidden: float = 0.8  # share of the computing behind which communication can hide
    node_gpus: int = 8
    node_link_gb_s: float = 50.0  # between machines, for each GPU
    launches: int = 120  # of kernels for a layer, there and back
    launch_us: float = 5.0
    tower_bytes: int = 2  # of a weight of the frozen tower
    reserved_gb: float = 3.0  # CUDA, NCCL, workspaces of the libraries
    fragmented: float = 0.1  # of what is allocated, in addition
    image_kb: float = 60.0  # a recorded JPEG
    decode_ms: float = 2.0  # of one image, one core
    average: int = 1  # 1: averaged weights are kept, 0: not

    def changed(self, words: list[str]) -> Assumed:
        """With NAME=VALUE for each. Raises ConfigError on a name there is not and on what is no number."""
        known: dict[str, Any] = {f.name: type(getattr(self, f.name)) for f in fields(self)}
        found: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f", did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"no assumption {name!r}{hint} (there are: {', '.join(known)})")
            try:
                found[name] = known[name](value)
            except ValueError as error:
                kind = "a whole number" if known[name] is int else "a number"
                raise ConfigError(f"{name} is {value!r}, wanted {kind}") from error
            if found[name] < 0 or (name.startswith("of_") and not 0 < found[name] <= 1):
                wanted = "a share in 0 .. 1" if name.startswith("of_") else "0 or more"
                raise ConfigError(f"{name} is {value}, wanted {wanted}")
        return replace(self, **found)


@dataclass(frozen=True)
class Way:
    """How it is trained, in the words of training.Computation."""

    strategy: str
    checkpointing: bool
    accumulation: int = 1

    def __str__(self) -> str:
        words = [self.strategy, *(["checkpointing"] if self.checkpointing else [])]
        return ", ".join([*words, *([f"accumulation {self.accumulation}"] if self.accumulation > 1 else [])])


@dataclass(frozen=True)
class Job:
    """config on `gpus` of a kind of card; batch: samples a step, of all together; images: the tower runs in
    every step, else its tokens are cached; cameras: of the robot."""

    config: Config
    card: str
    gpus: int
    batch: int
    images: bool
    cameras: int

    def sample(self, assumed: Assumed) -> Sample:
        policy = isinstance(self.config, VLAConfig)
        fast = assumed.fast_tokens if self.config.prefix.action_codes else 0
        draws = assumed.draws if policy else 0
        return Sample(self.cameras, assumed.prompt_tokens, assumed.subtask_tokens, fast, draws)


@dataclass(frozen=True)
class Cost:
    """memory_gb: a GPU's, by what it is for; times in seconds a step."""

    way: Way
    rows: int  # samples a pass
    memory_gb: dict[str, float]
    compute_s: float
    exposed_s: float  # communication that does not hide behind computing
    update_s: float

    @property
    def total_gb(self) -> float:
        return sum(self.memory_gb.values())

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exposed_s + self.update_s


def find_config(name: str) -> Config:
    """A named policy or value configuration. Raises ConfigError with the nearest name."""
    known: dict[str, Config] = {**VLA_CONFIGS, **VALUE_CONFIGS}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no configuration {name!r}{hint} (there are: {', '.join(known)})")
    return known[name]


def find_gpus(text: str) -> tuple[int, str]:
    """ "8xH100" → (8, "h100"). Raises ConfigError."""
    count, _, card = text.lower().partition("x")
    if not card:
        count, card = "1", count
    if card not in MEMORY_GB or not count.isdigit() or int(count) < 1:
        raise ConfigError(f"gpus is {text!r}, wanted like 8xH100, of {', '.join(MEMORY_GB).upper()}")
    return int(count), card


def ways(job: Job) -> list[Way]:
    """All ways that are tried, the plainest first: passes are halved until one sample is left."""
    strategies = ["ddp", "fsdp"] if job.gpus > 1 else ["one"]
    each = -(-job.batch // job.gpus)
    passes = [2**n for n in range(max(1, each).bit_length())]
    return [Way(s, c, a) for a in passes for c in (False, True) for s in strategies]


def cost(job: Job, way: Way, assumed: Assumed) -> Cost:
    """What one way takes."""
    card, sample, size = DEVICES[job.card], job.sample(assumed), weights(job.config)
    rows = -(-job.batch // (job.gpus * way.accumulation))
    shards = job.gpus if way.strategy == "fsdp" else 1
    state = {"weights": 4, "gradients": 4, "moments": 8, "averages": 4 * bool(assumed.average)}
    memory = {name: size.trained * number / shards for name, number in state.items()}
    memory["frozen tower"] = float(size.frozen * assumed.tower_bytes)
    if way.strategy == "fsdp":
        # In bfloat16: what is gathered with the whole, and two layers (one is fetched ahead); their gradients
        # whole, and once more in float32 to be reduced.
        memory["gathered"] = size.root * 8.0 + 2 * size.layer * 2.0 + size.layer * 6.0
    else:
        memory["bfloat16 copies"] = 2.0 * size.trained
    memory["activations"] = rows * activations(job.config, sample, Precision(), way.checkpointing)
    memory["fragmented"] = assumed.fragmented * sum(memory.values())
    memory["reserved"] = 1e9 * assumed.reserved_gb

    work = flops(job.config, sample).step(way.checkpointing, job.images)
    compute = work * -(-job.batch // job.gpus) / (card.flops * assumed.of_flops)
    stacks = 2 if isinstance(job.config, VLAConfig) else 1
    launching = stacks * job.config.backbone.layers * assumed.launches * assumed.launch_us * 1e-6
    compute = max(compute, way.accumulation * launching)  # a small model waits for its kernels' launches
    link = LINK_GB_S[job.card] if job.gpus <= assumed.node_gpus else assumed.node_link_gb_s
    others = (job.gpus - 1) / job.gpus
    sent = 2 * 4.0 * size.trained * others  # an all-reduce of float32 gradients
    if way.strategy == "fsdp":  # each pass: gathered forward and backward in bfloat16, reduced in float32
        sent = way.accumulation * (2 * 2.0 + 4.0) * size.trained * others
    communicated = sent / (1e9 * link * assumed.of_link) if job.gpus > 1 else 0.0
    moved = 4 * (9 if assumed.average else 7) + 8  # read and written by AdamW, average and clipping
    update = size.trained / shards * moved / (card.bandwidth * assumed.of_bandwidth)
    exposed = max(0.0, communicated - assumed.hidden * compute)
    return Cost(way, rows, {k: v / 1e9 for k, v in memory.items()}, compute, exposed, update)


def fits(found: Cost, job: Job) -> bool:
    return found.total_gb <= MEMORY_GB[job.card]


def best(job: Job, assumed: Assumed) -> Cost | None:
    """The plainest way that fits and takes at most 5 % more time than any other; None: none fits."""
    found = [one for one in (cost(job, way, assumed) for way in ways(job)) if fits(one, job)]
    least = min((one.step_s for one in found), default=0.0)
    return next((one for one in found if one.step_s <= 1.05 * least), None)


def steps(hours: float, epochs: float, batch: int, assumed: Assumed) -> int:
    """Of so many passes over so many hours of recording."""
    return max(1, math.ceil(hours * 3600 * assumed.frame_hz * epochs / batch))


def demand(job: Job, count: int, step_s: float, assumed: Assumed, epochs: float) -> dict[str, float]:
    """What data must come in: samples_per_s, mb_per_s, and cores to decode images or the cache's size."""
    rate = job.batch / step_s
    images = rate * job.cameras
    if job.images:
        return {
            "samples_per_s": rate,
            "mb_per_s": images * assumed.image_kb / 1e3,
            "decode_cores": images * assumed.decode_ms / 1e3,
        }
    config = job.config
    if isinstance(config, VLAConfig):
        numbers = config.vision.tokens * config.vision.width
    else:
        numbers = config.vision_tokens * config.vision_width
    size = job.cameras * numbers * 2  # float16
    cache = count * job.batch / max(1.0, epochs) * size
    return {"samples_per_s": rate, "mb_per_s": rate * size / 1e6, "cache_gb": cache / 1e9}


def report(job: Job, count: int, way: Way | None, assumed: Assumed, epochs: float = 1.0) -> dict[str, Any]:
    """Everything in numbers, of `count` steps that pass `epochs` times over the data. way: the one asked for;
    None: see `best`.

    Raises ConfigError where none fits, with what would.
    """
    chosen = cost(job, way, assumed) if way else best(job, assumed)
    if chosen is None:
        least = min((cost(job, w, assumed) for w in ways(job)), key=lambda one: one.total_gb)
        raise ConfigError(
            f"{job.config.name} does not fit on {job.gpus} {job.card.upper()} of {MEMORY_GB[job.card]:g} GB: "
            f"{least.total_gb:.0f} GB a GPU at least ({least.way}, {least.rows} samples a pass); take more "
            "GPUs, or --set average=0"
        )
    work = flops(job.config, job.sample(assumed))
    return {
        "config": job.config.name,
        "gpus": job.gpus,
        "card": job.card,
        "batch": job.batch,
        "way": str(chosen.way),
        "fits": fits(chosen, job),
        "rows_per_pass": chosen.rows,
        "prefix_tokens": lengths(job.config, job.sample(assumed)).prefix,
        "trained": weights(job.config).trained,
        "tflop_per_sample": work.step(chosen.way.checkpointing, job.images) / 1e12,
        "memory_gb": {k: round(v, 2) for k, v in chosen.memory_gb.items() if v},
        "memory_per_gpu_gb": round(chosen.total_gb, 1),
        "compute_s": chosen.compute_s,
        "communication_s": chosen.exposed_s,
        "update_s": chosen.update_s,
        "step_s": chosen.step_s,
        "steps": count,
        "days": count * chosen.step_s / 86_400,
        **demand(job, count, chosen.step_s, assumed, epochs),
    }
