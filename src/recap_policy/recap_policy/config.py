"""Shapes of the models, as frozen dataclasses, and their way to and from a checkpoint's description.

Those that have names stand in sizes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that does not exist or does not fit together. One readable line."""


@dataclass(frozen=True)
class VisionConfig:
    """A SigLIP-shaped encoder: stem → tokens → transformer layers → pooling by `pool` × `pool` (as Gemma 3).

    `stem="conv"` replaces the patch projection by stride-2 convolutions: at 96 × 96 pixels and a few
    thousand training images they learn far faster than patches. `summary` tokens are read out of the whole
    pooled grid by one trained projection, which a small policy would otherwise have to learn; 0: the grid.
    """

    image_size: int
    stem: Literal["conv", "patch"]
    stem_channels: tuple[int, ...]  # output channels of each stride-2 convolution but the last
    patch: int  # pixels per token side; a power of two where the stem is convolutional
    width: int
    layers: int
    heads: int
    mlp: int
    pool: int
    summary: int = 0

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @property
    def pooled(self) -> int:
        """Places of the grid after pooling."""
        return (self.grid // self.pool) ** 2

    @property
    def tokens(self) -> int:
        """Tokens an image."""
        return self.summary or self.pooled


@dataclass(frozen=True)
class ObjectConfig:
    """What stands in for the encoder where a policy is given states of things instead of images (objects.py):
    `features` numbers in tokens of `group` each, each number with sines and cosines of `octaves`
    frequencies."""

    features: int
    group: int = 13
    octaves: int = 4

    @property
    def tokens(self) -> int:
        return -(-self.features // self.group)

    @property
    def width(self) -> int:
        return self.group * (1 + 2 * self.octaves)


@dataclass(frozen=True)
class BackboneConfig:
    """A Gemma-3-shaped decoder: sandwich norms, grouped-query attention, q/k norm, RoPE, GeGLU.

    Every `global_every`-th layer sees the whole sequence, the others only the last `window` positions; local
    layers have a RoPE base of their own. The defaults make every layer global.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rope_base: float = 10_000.0  # of the global layers
    dropout: float = 0.0  # on the input tokens' features and on each residual branch, in training
    rope_scale: float = 1.0  # positions of the global layers are divided by this
    local_rope_base: float = 10_000.0
    window: int | None = None  # positions that a local layer sees, the token's own among them
    global_every: int = 1
    query_scale: float | None = None  # scores are q·k / √this; None: head_dim
    vocabulary: int | None = None  # rows of Gemma's embedding table; None: the own vocabulary of tokens.py
    recompute: bool = False  # activations in the backward pass, the expert's too: less memory, more time

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} heads do not share {self.kv_heads} key-value heads evenly")
        if self.global_every < 1 or (self.global_every > 1 and not self.window):
            raise ConfigError(
                f"global_every is {self.global_every} and window {self.window}, "
                f"wanted 1 without local layers, or more with a window"
            )

    def is_local(self, layer: int) -> bool:
        """Whether layer number `layer`, from 0, is one that sees only the window."""
        return (layer + 1) % self.global_every != 0


@dataclass(frozen=True)
class ExpertConfig:
    """The action expert's own sizes; layers, heads and head size are the backbone's."""

    width: int
    mlp: int


@dataclass(frozen=True)
class PrefixConfig:
    """What the backbone reads.

    `state`: "bins" is text, a number from 0 to 255 per joint, as in π0.5 and π0.6; "vector" one projected
    token in all, as in π0. A model that trains in minutes on a CPU cannot afford forty tokens a frame.
    `action_codes`: largest FAST vocabulary that has ids; 0: a policy without FAST tokens.
    """

    cameras: int = 3
    dof: int = 14
    state: Literal["bins", "vector"] = "bins"
    word_slots: int = 128  # own vocabulary: kept free for whole words of the prompts and sub-tasks
    action_codes: int = 0


@dataclass(frozen=True)
class VLAConfig:
    """A whole policy.

    `action_basis="dct"`: the flow runs on the first `action_tokens` DCT-II coefficients over time of each
    joint, one token per coefficient; "steps": one token per time step (`action_tokens == horizon`).
    `insulate` stops the action loss at the backbone's keys and values (knowledge insulation, arXiv
    2505.23705); it presupposes a token loss on the actions, so a model trained on flow and sub-task text
    alone leaves it off. `fast_weight` is the weight of that token loss, where a batch has FAST tokens.
    `committed`: of the commands that will be carried out before the chunk arrives, at most so many are told
    to the expert, which continues them (training-time RTC, arXiv 2512.05964; 0 to 10 there); 0: none. With
    "steps" they are clean tokens, as in the paper, with "dct" an embedding.
    `temperature`: chunks begin at so many times the noise that the flow is trained from. What a small model
    has learnt in minutes is wider than its data, and grippers that are neither open nor shut drop things;
    below 1 it takes the middle of what it holds for possible (docs/learning.md has what that is worth).
    `max_text`, `max_subtask`, `max_actions`: tokens of a prompt (state in text, task and metadata), of a
    sub-task and of FAST at most, cues and ends counted (prompt.py).
    """

    name: str
    vision: VisionConfig | ObjectConfig
    backbone: BackboneConfig
    expert: ExpertConfig
    prefix: PrefixConfig = PrefixConfig()
    horizon: int = 50
    action_basis: Literal["dct", "steps"] = "dct"
    action_tokens: int = 10
    max_text: int = 50
    max_subtask: int = 50
    max_actions: int = 256
    indicator_dropout: float = 0.3
    subtask_weight: float = 0.1
    insulate: bool = False
    fast_weight: float = 1.0
    committed: int = 10
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"{self.name}: temperature is {self.temperature}, wanted 0 or more")
        if self.action_basis == "steps" and self.action_tokens != self.horizon:
            raise ConfigError(
                f"{self.name}: action_basis 'steps' wants action_tokens == horizon, "
                f"found {self.action_tokens} and {self.horizon}"
            )
        if not 0 < self.action_tokens <= self.horizon:
            raise ConfigError(
                f"{self.name}: action_tokens is {self.action_tokens}, wanted 1 .. {self.horizon}"
            )


@dataclass(frozen=True)
class ValueConfig:
    """A distributional value function over image tokens, state and prompt; `bins` on [-1, 0].

    `vision`: its own tower; None takes the tokens of the policy's frozen one.
    """

    name: str
    vision_width: int
    vision_tokens: int
    backbone: BackboneConfig
    prefix: PrefixConfig = PrefixConfig()
    bins: int = 201
    max_text: int = 50  # tokens of a prompt at most, as in VLAConfig
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        own = self.vision
        if own and (own.width, own.tokens) != (self.vision_width, self.vision_tokens):
            raise ConfigError(
                f"{self.name}: own tower gives {own.tokens} tokens of width {own.width}, wanted "
                f"{self.vision_tokens} of {self.vision_width}"
            )


def to_dict(config: VLAConfig | ValueConfig) -> dict[str, Any]:
    return asdict(config)


def vision_from_dict(data: Mapping[str, Any]) -> VisionConfig:
    """Inverse of `dataclasses.asdict`. Raises ConfigError on unknown or missing entries."""
    try:
        return VisionConfig(**{**data, "stem_channels": tuple(data["stem_channels"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a vision configuration: {error}") from error


def tower_from_dict(data: Mapping[str, Any]) -> VisionConfig | ObjectConfig:
    """As `vision_from_dict`, of either kind of tower."""
    return ObjectConfig(**data) if "features" in data else vision_from_dict(data)


def vla_from_dict(data: Mapping[str, Any]) -> VLAConfig:
    """Inverse of `to_dict`. Raises ConfigError on unknown, missing or ill-fitting entries."""
    try:
        return VLAConfig(
            **{
                **data,
                "vision": tower_from_dict(data["vision"]),
                "backbone": BackboneConfig(**data["backbone"]),
                "expert": ExpertConfig(**data["expert"]),
                "prefix": PrefixConfig(**data["prefix"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a policy configuration: {error}") from error


def value_from_dict(data: Mapping[str, Any]) -> ValueConfig:
    """Inverse of `to_dict`. Raises ConfigError on unknown, missing or ill-fitting entries."""
    try:
        backbone, prefix = BackboneConfig(**data["backbone"]), PrefixConfig(**data["prefix"])
        vision = vision_from_dict(data["vision"]) if data.get("vision") else None
        return ValueConfig(**{**data, "backbone": backbone, "prefix": prefix, "vision": vision})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a value configuration: {error}") from error
