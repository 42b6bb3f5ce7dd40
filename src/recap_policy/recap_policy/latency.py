"""What a chunk should cost on a GPU, from what is computed and what is read: a sheet, no measurement.

    python -m recap_policy.latency --config pi06 --device h100

Each stage takes the longer of two times: its matrix products at a share of the card's peak, or its weights
and cached keys and values at a share of the memory's bandwidth. FLOPs are two a multiply-add, of matrix
products and attention alone (masked scores too: kernels mostly compute them); tests/policy/test_latency.py
checks them against torch's own counter. Weights are counted on the meta device.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise

from recap_policy.config import BackboneConfig, ConfigError, ObjectConfig, VisionConfig, VLAConfig
from recap_policy.parameters import count
from recap_policy.sizes import vla_config

PAPER_MS = 63.0  # π0.6 model card: 3 cameras, 5 denoising steps, one H100
_INDICATOR, _WRAPPED = 2, 2  # tokens of the indicator; of cue and newline around a text


@dataclass(frozen=True)
class Device:
    """Data sheet: dense bfloat16 [FLOP/s], memory bandwidth [byte/s]."""

    name: str
    flops: float
    bandwidth: float


DEVICES = {
    "h100": Device("H100 SXM", 989e12, 3.35e12),
    "h200": Device("H200 SXM", 989e12, 4.8e12),
    "a100": Device("A100 SXM 80 GB", 312e12, 2.039e12),
}


@dataclass(frozen=True)
class Workload:
    """One chunk at batch 1. Texts in tokens; a new sub-task is written in one of `subtask_every` chunks, in
    the others the last one is confirmed while the prefix is read. draws: 2 with guidance, else 1."""

    cameras: int = 3
    prompt: int = 20
    subtask: int = 10
    subtask_every: int = 10
    steps: int = 5
    draws: int = 1


@dataclass(frozen=True)
class Assumed:
    """Shares of the data sheet that are reached, and bytes of a weight and of a cached number."""

    of_flops: float = 0.5
    of_bandwidth: float = 0.7
    number: int = 2


@dataclass(frozen=True)
class Stage:
    name: str
    flops: float
    bytes: float

    def seconds(self, device: Device, of_flops: float = 1.0, of_bandwidth: float = 1.0) -> float:
        return max(self.flops / (device.flops * of_flops), self.bytes / (device.bandwidth * of_bandwidth))


def vision_flops(config: VisionConfig | ObjectConfig) -> float:
    """Of one image; states of things cost nothing."""
    if isinstance(config, ObjectConfig):
        return 0.0
    places, width = config.grid**2, config.width
    if config.stem == "patch":
        stem = 2 * places * 3 * config.patch**2 * width
    else:
        stem, side = 0, config.image_size
        for index, (before, after) in enumerate(pairwise((3, *config.stem_channels, width))):
            side //= 2
            stem += 2 * side**2 * before * after * (25 if index == 0 else 9)
    layer = places * width * (8 * width + 4 * config.mlp) + 4 * places**2 * width
    return stem + config.layers * layer + 2 * config.pooled * config.summary * width**2


def decoder_flops(config: BackboneConfig, tokens: int, keys: int, read: int) -> float:
    """`tokens` new ones that attend to `keys` (themselves among them); `read`: those of which the last layer
    computes more than keys and values. Without the output table."""
    head, inner = config.head_dim, config.heads * config.head_dim
    projected = 2 * config.width * (config.heads + 2 * config.kv_heads) * head
    rest = 4 * keys * inner + 2 * inner * config.width + 6 * config.width * config.mlp
    return config.layers * tokens * projected + ((config.layers - 1) * tokens + read) * rest


def table_flops(config: BackboneConfig, vocabulary: int, read: int) -> float:
    return 2.0 * read * config.width * vocabulary


def expert_flops(config: VLAConfig, prefix: int, draws: int, committed: bool = True) -> float:
    """One Euler step: one pass of `draws` × action_tokens tokens over `prefix` cached keys and their own."""
    backbone, expert = config.backbone, config.expert
    width, inner = expert.width, backbone.heads * backbone.head_dim
    tokens, dof = draws * config.action_tokens, config.prefix.dof
    projected = 2 * width * (backbone.heads + 2 * backbone.kv_heads) * backbone.head_dim
    a_token = projected + 4 * (prefix + tokens) * inner + 2 * inner * width + 6 * width * expert.mlp
    told, times = 0, draws
    if committed and config.action_basis == "dct":
        told = 2 * config.committed * (dof + 1) * width
    elif committed:
        times *= 2  # the flow's, and that of the clean tokens
    timed = (2 * backbone.layers + 1) * 6 * width**2 * times + 4 * width**2 * times
    return backbone.layers * tokens * a_token + timed + 4 * tokens * dof * width + told


def stages(config: VLAConfig, work: Workload, number: int) -> list[Stage]:
    """Of one chunk. number: bytes of a weight and of a cached number."""
    backbone, prefix = config.backbone, config.prefix
    weights = {part: size * number for part, size in count(config.name).items()}
    vocabulary = count(config.name)["table"] // backbone.width
    cached = 2 * backbone.layers * backbone.kv_heads * backbone.head_dim * number  # bytes a token
    images = work.cameras * config.vision.tokens
    before = images + (1 + prefix.dof if prefix.state == "bins" else 1) + work.prompt + _WRAPPED
    whole = before + work.subtask + _WRAPPED + _INDICATOR
    project = 2 * images * config.vision.width * backbone.width
    read = work.subtask + 1
    confirm = Stage(
        f"prefix, {whole} tokens",
        project + decoder_flops(backbone, whole, whole, read) + table_flops(backbone, vocabulary, read),
        weights["decoder"] + weights["table"] + weights["rest"] + whole * cached,
    )
    # Written anew: the prefix up to the cue once more, then a pass a token, the last with the indicator.
    passes = work.subtask + 1
    anew = project + decoder_flops(backbone, before + 1, before + 1, 1)
    anew += sum(decoder_flops(backbone, 1, before + 2 + index, 1) for index in range(passes))
    anew += passes * table_flops(backbone, vocabulary, 1)
    read_anew = (passes + 1) * (weights["decoder"] + weights["table"] + before * cached)
    tower = work.cameras * vision_flops(config.vision)
    return [
        Stage(f"images, {work.cameras} through the tower", tower, weights["vision"]),
        confirm,
        Stage(
            f"sub-task, {work.subtask} tokens, 1 chunk in {work.subtask_every}",
            anew / work.subtask_every,
            read_anew / work.subtask_every,
        ),
        Stage(
            f"expert, {work.steps} Euler steps" + (", guided" if work.draws > 1 else ""),
            work.steps * expert_flops(config, whole, work.draws),
            work.steps * (weights["expert"] + whole * cached),
        ),
    ]


def sheet(config: VLAConfig, device: Device, work: Workload, assumed: Assumed) -> str:
    """The table, as printed and as it stands in docs/latency.md."""
    rows = stages(config, work, assumed.number)
    shares = (assumed.of_flops, assumed.of_bandwidth)
    lines = [
        f"{config.name} on {device.name}: {device.flops / 1e12:g} TFLOP/s, {device.bandwidth / 1e12:g} TB/s; "
        f"{shares[0]:.0%} and {shares[1]:.0%} of them reached",
        f"{'stage':40} {'GFLOP':>8} {'GB':>6} {'bound by':>9} {'floor ms':>9} {'expected ms':>12}",
    ]
    for row in rows:
        by_flops = row.flops / (device.flops * shares[0]) > row.bytes / (device.bandwidth * shares[1])
        lines.append(
            f"{row.name:40} {row.flops / 1e9:8.1f} {row.bytes / 1e9:6.2f} "
            f"{'FLOPs' if by_flops else 'bytes':>9} {1e3 * row.seconds(device):9.2f} "
            f"{1e3 * row.seconds(device, *shares):12.2f}"
        )
    floor = 1e3 * sum(row.seconds(device) for row in rows)
    expected = 1e3 * sum(row.seconds(device, *shares) for row in rows)
    flops, read = sum(row.flops for row in rows) / 1e9, sum(row.bytes for row in rows) / 1e9
    lines.append(f"{'chunk':40} {flops:8.1f} {read:6.2f} {'':>9} {floor:9.2f} {expected:12.2f}")
    lines.append(f"{'paper (pi0.6, H100)':40} {'':8} {'':6} {'':9} {'':9} {PAPER_MS:12.2f}")
    lines.append(f"{'expected / paper':40} {'':8} {'':6} {'':9} {'':9} {expected / PAPER_MS:12.2f}")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    work, assumed = Workload(), Assumed()
    parser.add_argument("--config", default="pi06")
    parser.add_argument("--device", default="h100", choices=DEVICES)
    parser.add_argument("--cameras", type=int, default=work.cameras)
    parser.add_argument("--prompt", type=int, default=work.prompt, help="tokens (%(default)s)")
    parser.add_argument("--subtask", type=int, default=work.subtask, help="tokens (%(default)s)")
    parser.add_argument("--subtask-every", type=int, default=work.subtask_every, help="chunks (%(default)s)")
    parser.add_argument("--steps", type=int, default=work.steps, help="of denoising (%(default)s)")
    parser.add_argument("--guided", action="store_true", help="with beta other than 1: two branches")
    for name in ("of_flops", "of_bandwidth"):
        option, share = f"--{name.replace('_', '-')}", getattr(assumed, name)
        parser.add_argument(option, type=float, default=share, help="share reached (%(default)s)")
    given = parser.parse_args(words)
    numbers = (given.cameras, given.prompt, given.subtask, given.subtask_every, given.steps)
    if min(numbers) < 1 or not (0 < given.of_flops <= 1 and 0 < given.of_bandwidth <= 1):
        parser.error("wanted counts of at least 1 and shares in 0 .. 1")
    try:
        config = vla_config(given.config)
    except ConfigError as error:
        parser.error(str(error))
    work = Workload(*numbers, draws=2 if given.guided else 1)
    print(sheet(config, DEVICES[given.device], work, Assumed(given.of_flops, given.of_bandwidth)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
