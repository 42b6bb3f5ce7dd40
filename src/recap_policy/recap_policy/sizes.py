"""The models that have names, looked up with a suggestion on a miss.

`tiny` and `value-tiny` train in minutes on two CPU cores; every size runs the same code. The sizes that
start from real backbones are Gemma 3's (arXiv 2503.19786) and SigLIP's (arXiv 2303.15343); `pi06` is the
π0.6 model card's. `python -m recap_policy.parameters` prints how large each is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from recap_policy.config import (
    BackboneConfig,
    ConfigError,
    ExpertConfig,
    ObjectConfig,
    PrefixConfig,
    ValueConfig,
    VisionConfig,
    VLAConfig,
)

Config = TypeVar("Config")

_TINY_VISION = VisionConfig(
    image_size=96,
    stem="conv",
    stem_channels=(24, 48, 96),
    patch=16,
    width=96,
    layers=2,
    heads=4,
    mlp=192,
    pool=2,
    summary=2,
)

_TINY_PREFIX = PrefixConfig(state="vector")
_FAST_CODES = 2048  # FAST+ (physical-intelligence/fast) has so many; what is fitted here has fewer

# Gemma 3's own tower sees 896 × 896 and pools 4 × 4 patches; at 448 × 448, 2 × 2 give the same 256 tokens.
SIGLIP_SO400M = VisionConfig(
    image_size=448,
    stem="patch",
    stem_channels=(),
    patch=14,
    width=1152,
    layers=27,
    heads=16,
    mlp=4304,
    pool=2,
)

SIGLIP_BASE = VisionConfig(
    image_size=224,
    stem="patch",
    stem_channels=(),
    patch=16,
    width=768,
    layers=12,
    heads=12,
    mlp=3072,
    pool=2,
)

GEMMA3_270M = BackboneConfig(
    width=640,
    layers=18,
    heads=4,
    kv_heads=1,
    head_dim=256,
    mlp=2048,
    rope_base=1_000_000.0,
    window=512,
    global_every=6,
    query_scale=256.0,
    vocabulary=262_144,
)

GEMMA3_4B = BackboneConfig(
    width=2560,
    layers=34,
    heads=8,
    kv_heads=4,
    head_dim=256,
    mlp=10_240,
    rope_base=1_000_000.0,
    rope_scale=8.0,
    window=1024,
    global_every=6,
    query_scale=256.0,
    vocabulary=262_208,
)

VLA_CONFIGS: dict[str, VLAConfig] = {
    # Two CPU cores: some 400 training samples a second with cached image features, a chunk in about 15 ms.
    "tiny": VLAConfig(
        name="tiny",
        vision=_TINY_VISION,
        backbone=BackboneConfig(width=96, layers=4, heads=4, kv_heads=1, head_dim=32, mlp=192),
        expert=ExpertConfig(width=64, mlp=128),
        prefix=_TINY_PREFIX,
    ),
    # States of things instead of images: about 1,000 training samples a second on one core. How many numbers
    # a task has, its tower says.
    "tiny-state": VLAConfig(
        name="tiny-state",
        vision=ObjectConfig(features=1),
        backbone=BackboneConfig(width=96, layers=2, heads=3, kv_heads=1, head_dim=32, mlp=192),
        expert=ExpertConfig(width=96, mlp=192),
        prefix=replace(_TINY_PREFIX, cameras=1),
        action_tokens=8,
        temperature=0.3,
    ),
    # The expert's share of the whole is about that of `pi06`.
    "small": VLAConfig(
        name="small",
        vision=SIGLIP_BASE,
        backbone=GEMMA3_270M,
        expert=ExpertConfig(width=384, mlp=1536),
        prefix=PrefixConfig(action_codes=_FAST_CODES),
        action_basis="steps",
        action_tokens=50,
        max_text=200,
        insulate=True,
    ),
    # Width and MLP of the expert are inferred: π0's width with Gemma 3 4B's layers comes to the stated 860M.
    "pi06": VLAConfig(
        name="pi06",
        vision=SIGLIP_SO400M,
        backbone=GEMMA3_4B,
        expert=ExpertConfig(width=1024, mlp=4096),
        prefix=PrefixConfig(cameras=4, action_codes=_FAST_CODES),
        action_basis="steps",
        action_tokens=50,
        max_text=200,
        insulate=True,
    ),
}

# The generation before, for comparison: smaller, as π0.5's 300M expert on a 3B backbone is beside π0.6's.
VLA_CONFIGS |= {
    f"{name}-pi05": replace(
        VLA_CONFIGS[name],
        name=f"{name}-pi05",
        backbone=replace(VLA_CONFIGS[name].backbone, width=64, heads=2, mlp=128),
        expert=ExpertConfig(width=48, mlp=96),
    )
    for name in ("tiny", "tiny-state")
}

VALUE_CONFIGS: dict[str, ValueConfig] = {
    # Small on purpose: a value function that over-fits its few hundred episodes says nothing.
    "value-tiny": ValueConfig(
        name="value-tiny",
        vision_width=_TINY_VISION.width,
        vision_tokens=_TINY_VISION.tokens,
        backbone=BackboneConfig(width=64, layers=2, heads=2, kv_heads=1, head_dim=32, mlp=128, dropout=0.1),
        prefix=_TINY_PREFIX,
    ),
    "value-tiny-state": ValueConfig(
        name="value-tiny-state",
        vision_width=ObjectConfig(1).width,
        vision_tokens=1,
        backbone=BackboneConfig(width=64, layers=2, heads=2, kv_heads=1, head_dim=32, mlp=128, dropout=0.1),
        prefix=replace(_TINY_PREFIX, cameras=1),
    ),
    # 4 × 4 patches a token: what four cameras see then fits into Gemma 3 270M's window of 512.
    "value-670m": ValueConfig(
        name="value-670m",
        vision_width=SIGLIP_SO400M.width,
        vision_tokens=replace(SIGLIP_SO400M, pool=4).tokens,
        backbone=GEMMA3_270M,
        prefix=PrefixConfig(cameras=4),
        max_text=200,
        vision=replace(SIGLIP_SO400M, pool=4),
    ),
}


def vla_config(name: str) -> VLAConfig:
    """The named policy configuration. Raises ConfigError with the nearest name."""
    return _lookup(name, VLA_CONFIGS, "policy")


def value_config(name: str) -> ValueConfig:
    """The named value configuration. Raises ConfigError with the nearest name."""
    return _lookup(name, VALUE_CONFIGS, "value")


def _lookup(name: str, known: Mapping[str, Config], kind: str) -> Config:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"no {kind} configuration {name!r}{hint} (there are: {', '.join(known)})")
