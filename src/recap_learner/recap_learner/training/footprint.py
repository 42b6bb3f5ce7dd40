"""What a training step of a model computes, keeps and sends: FLOPs and bytes, by formula.

FLOPs are two a multiply-add, of matrix products and attention (recap_policy/latency.py). Bytes of activations
are those that the backward pass needs, counted from what each operation keeps; tests/learner/test_plan.py
holds both to what torch counts, for `tiny` whole and for `small` with fewer layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from recap_policy.config import BackboneConfig, ValueConfig, VLAConfig
from recap_policy.latency import decoder_flops, expert_flops, table_flops, vision_flops
from recap_policy.parameters import count
from recap_policy.tokens import vocabulary_size

Config = VLAConfig | ValueConfig
_INDICATOR, _WRAPPED = 2, 2  # tokens of the indicator; of cue and newline around a text


@dataclass(frozen=True)
class Sample:
    """One training example in tokens. draws: of the flow's noise; 0 for a value function. fast: 0 without
    FAST tokens."""

    cameras: int
    prompt: int
    subtask: int
    fast: int
    draws: int


@dataclass(frozen=True)
class Precision:
    """number: bytes of what autocast computes in, 2 or 4. norms: copies of its input that a norm keeps: 1
    where it is one kernel (CUDA), 2 where it is several (CPU)."""

    number: int = 2
    norms: int = 1


@dataclass(frozen=True)
class Lengths:
    """Tokens: of the prefix; of those, that the expert sees; whose hidden state is read; that bear loss."""

    prefix: int
    seen: int
    read: int
    learnt: int


def lengths(config: Config, sample: Sample) -> Lengths:
    state = 1 + config.prefix.dof if config.prefix.state == "bins" else 1
    before = sample.cameras * _tokens(config) + state + sample.prompt + _WRAPPED
    if isinstance(config, ValueConfig):
        return Lengths(before, 0, 1, 0)
    seen = before + sample.subtask + _WRAPPED + _INDICATOR
    fast = sample.fast + _WRAPPED if config.prefix.action_codes else 0
    behind = sample.subtask + 1  # the text and the newline that ends it
    read = behind + (_INDICATOR + fast if fast else 0)
    return Lengths(seen + fast, seen, read, behind + (sample.fast + 1 if fast else 0))


@dataclass(frozen=True)
class Flops:
    """Of one example, forward: through the tower; through what is trained; of that, what checkpointing
    computes again."""

    tower: float
    trained: float
    again: float

    def step(self, checkpointing: bool, tower: bool) -> float:
        """Forward and backward: a backward pass is two forward ones; the tower is frozen."""
        return 3 * self.trained + (self.again if checkpointing else 0) + (self.tower if tower else 0)


def flops(config: Config, sample: Sample, size: Lengths | None = None) -> Flops:
    """size: where it is known better than from `sample`."""
    size, backbone = size or lengths(config, sample), config.backbone
    decoder = decoder_flops(backbone, size.prefix, size.prefix, size.read)
    width = config.vision.width if isinstance(config, VLAConfig) else config.vision_width
    rest = 2.0 * sample.cameras * _tokens(config) * width * backbone.width
    expert, tower = 0.0, 0.0
    if isinstance(config, VLAConfig):
        expert = expert_flops(config, size.seen, sample.draws)
        rest += table_flops(backbone, vocabulary(config), size.learnt)
    if config.vision is not None:
        tower = sample.cameras * vision_flops(config.vision)
    return Flops(tower, decoder + expert + rest, decoder + expert)


def vocabulary(config: Config) -> int:
    """Rows of the table."""
    own = vocabulary_size(config.prefix.word_slots, config.prefix.action_codes)
    return config.backbone.vocabulary or own


@dataclass(frozen=True)
class Weights:
    """Parameters: trained, frozen; of the trained, those that FSDP gathers with the whole model, and those of
    its largest layer."""

    trained: int
    frozen: int
    root: int
    layer: int


def weights(config: Config) -> Weights:
    found = count(config.name)
    layers = config.backbone.layers
    trained = found["all"] - found["vision"]
    decoder, expert = found["decoder"] // layers, found["expert"] // layers
    # The expert's few parameters outside its layers are counted with them.
    return Weights(trained, found["vision"], found["table"] + found["rest"], max(decoder, expert))


def activations(
    config: Config, sample: Sample, how: Precision, checkpointing: bool, size: Lengths | None = None
) -> float:
    """Bytes an example keeps from the forward to the backward pass, and with checkpointing what the layer
    that is computed again adds."""
    size, backbone = size or lengths(config, sample), config.backbone
    tokens, acting, number = size.prefix, 0, how.number
    inner, group = backbone.heads * backbone.head_dim, backbone.kv_heads * backbone.head_dim
    token, cached = _decoder_token(backbone, how)
    decoder, last = tokens * token, tokens * cached + size.read * (token - cached)
    # Residual stream, and the keys and values that the expert reads, as views of what they were cut from.
    kept = tokens * (4 * backbone.width + number * (2 * inner + 3 * group))
    expert = 0.0
    outside = tokens * backbone.width * 8.0  # embeddings, and what the last norm keeps of what is read
    if isinstance(config, VLAConfig):
        acting = sample.draws * config.action_tokens
        joint = 2 * number * group * (size.seen + acting)  # keys and values of the prefix once more
        expert = acting * _expert_token(config, how) + joint
        kept += acting * 4 * config.expert.width
        # Logits in the precision of the pass, in float32, and their logarithms.
        outside += size.learnt * vocabulary(config) * (number + 8.0)
        outside += (acting * (size.seen + acting)) * (backbone.heads // backbone.kv_heads) * number
    shared = backbone.heads // backbone.kv_heads
    masks = 3 if backbone.global_every > 1 else 2  # all; the window; what is read in the last layer
    outside += tokens * tokens * (1 + (masks - 1) * shared * number)
    width = config.vision.width if isinstance(config, VLAConfig) else config.vision_width
    outside += sample.cameras * _tokens(config) * width * (4.0 * how.norms + number)
    if checkpointing:
        return backbone.layers * kept + max(decoder, expert) + outside
    return (backbone.layers - 1) * decoder + last + backbone.layers * expert + outside


def _tokens(config: Config) -> int:
    return config.vision.tokens if isinstance(config, VLAConfig) else config.vision_tokens


def _decoder_token(config: BackboneConfig, how: Precision) -> tuple[float, float]:
    """Bytes that a layer keeps of a token; of them, those for its keys and values alone, all that the last
    layer computes of a token that is not read.

    Norms work in float32 and keep their input; q and k are kept as they come, in float32 where that is
    another type, and normalised.
    """
    number, inner = how.number, config.heads * config.head_dim
    group = config.kv_heads * config.head_dim
    wide = 8 if number < 4 else 4
    norm = how.norms * 4 * config.width
    projected = norm + number * config.width + (wide + 2 * number) * inner + (wide + 3 * number) * group
    rest = 3 * norm + number * config.width + 3 * number * inner + 8 * config.heads + 4 * number * config.mlp
    return projected + rest, projected


def _expert_token(config: VLAConfig, how: Precision) -> float:
    number, backbone = how.number, config.backbone
    inner, group = backbone.heads * backbone.head_dim, backbone.kv_heads * backbone.head_dim
    stream = (16 + 4 * number) * config.expert.width
    if config.action_basis == "steps":
        stream += 8 * number * config.expert.width  # each token its own scale, shift and gate
    attention = (8 + 3 * number) * inner + (8 + (number if number == 4 else 0)) * group
    return stream + attention + 4 * number * config.expert.mlp
