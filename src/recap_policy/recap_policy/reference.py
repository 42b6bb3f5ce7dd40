"""Hugging Face's Gemma 3 and SigLIP in our terms: what their config.json says, and where each tensor goes.

Ours keep queries, keys and values in one matrix, gates and inputs of the MLP in another; theirs are apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from recap_policy.config import BackboneConfig, ConfigError, VisionConfig

Settings = Mapping[str, Any]

# What transformers takes where a config.json is silent, and the settings that ours have built in.
_TEXT_DEFAULTS: Settings = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
_TEXT_FIXED: Settings = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "tie_word_embeddings": True,
}
_VISION_DEFAULTS: Settings = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_VISION_FIXED: Settings = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3}

_WRAPPERS = re.compile(r"^(model\.|language_model\.|vision_tower\.|vision_model\.)+")
# Weights that are of no use here: SigLIP's text side and pooling head, a second copy of tied embeddings.
_UNUSED = re.compile(
    r"(text_model\.|logit_scale$|logit_bias$|head\.|embeddings\.position_ids$|lm_head\.weight$)"
)


class PretrainedError(ValueError):
    """A folder of weights is missing, damaged or not what is wanted; all of its tensors that are amiss.

    misshapen: name → found and wanted shape.
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.missing, self.unexpected = tuple(missing), tuple(unexpected)
        self.misshapen = dict(misshapen or {})
        wrong = [f"{name} is {found}, wanted {wanted}" for name, (found, wanted) in self.misshapen.items()]
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", wrong)):
            if names:
                message += f"; {len(names)} {kind}: {', '.join(names)}"
        super().__init__(message)


@dataclass(frozen=True)
class Shape:
    """What a folder holds: a decoder, a tower, or both with the projection between them."""

    backbone: BackboneConfig | None
    vision: VisionConfig | None


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: `target` from row `start` on. shape: as stored, before any transposition."""

    target: str
    shape: tuple[int, ...]
    start: int = 0
    transposed: bool = False


def shape_of(config: Settings) -> Shape:
    """A folder's config.json → the shapes of what it holds.

    Raises ConfigError on other models, and on settings that these modules do not have.
    """
    kind = config.get("model_type")
    if kind == "gemma3_text":
        return Shape(_backbone(config), None)
    if kind == "gemma3":
        _wanted(config, {"tie_word_embeddings": True})
        side = isqrt(config.get("mm_tokens_per_image", 256))
        vision = _vision(config.get("vision_config") or {}, side)
        return Shape(_backbone(config.get("text_config") or {}), vision)
    if kind == "siglip":
        return Shape(None, _vision(config.get("vision_config") or {}))
    if kind == "siglip_vision_model":
        return Shape(None, _vision(config))
    raise ConfigError(f"model_type is {kind!r}, wanted gemma3, gemma3_text, siglip or siglip_vision_model")


def canonical(name: str) -> str | None:
    """A stored tensor's name without the wrappers that differ between versions; None: not used here."""
    bare = _WRAPPERS.sub("", name)
    return None if _UNUSED.match(bare) else bare


def places(shape: Shape) -> dict[str, Place]:
    """Canonical name of every tensor that the folder must hold → its place in ours."""
    found: dict[str, Place] = {}
    if shape.backbone:
        found.update(_decoder(shape.backbone))
    if shape.vision:
        found.update(_tower(shape.vision))
    if shape.backbone and shape.vision:
        inner, outer = shape.vision.width, shape.backbone.width
        found["multi_modal_projector.mm_soft_emb_norm.weight"] = Place("image_norm.weight", (inner,))
        found["multi_modal_projector.mm_input_projection_weight"] = Place(
            "image_projection.weight", (inner, outer), transposed=True
        )
    return found


def _backbone(given: Settings) -> BackboneConfig:
    _wanted(given, _TEXT_FIXED)
    text = {**_TEXT_DEFAULTS, **given}
    layers = int(text["num_hidden_layers"])
    base, scale, local_base = _rope(text)
    return BackboneConfig(
        width=text["hidden_size"],
        layers=layers,
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        mlp=text["intermediate_size"],
        rope_base=base,
        rope_scale=scale,
        local_rope_base=local_base,
        window=text["sliding_window"],
        global_every=_global_every(text, layers),
        query_scale=float(text["query_pre_attn_scalar"]),
        vocabulary=text["vocab_size"],
    )


def _rope(text: Settings) -> tuple[float, float, float]:
    """Base and scale of the global layers, base of the local ones, as old and new config files say it."""
    given = text.get("rope_parameters") or {}
    whole: dict[str, Any] = {**(text.get("rope_scaling") or {}), **(given.get("full_attention") or {})}
    near: dict[str, Any] = given.get("sliding_attention") or {}
    kinds = (whole.get("rope_type", "default"), near.get("rope_type", "default"))
    if kinds not in (("default", "default"), ("linear", "default")):
        raise ConfigError(
            f"rope types {kinds} of global and local layers, wanted default or linear, and default"
        )
    return (
        float(whole.get("rope_theta") or text["rope_theta"]),
        float(whole.get("factor", 1.0)) if kinds[0] == "linear" else 1.0,
        float(near.get("rope_theta") or text["rope_local_base_freq"]),
    )


def _global_every(text: Settings, layers: int) -> int:
    types = text.get("layer_types")
    if not types:
        return int(text["sliding_window_pattern"])
    every = max(text["sliding_window_pattern"], layers + 1)
    if "full_attention" in types:
        every = types.index("full_attention") + 1
    if types != ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]:
        raise ConfigError(f"layer_types is {types}, wanted every n-th of {layers} to be full_attention")
    return every


def _vision(given: Settings, side: int | None = None) -> VisionConfig:
    """side: tokens per image side after pooling; None: as many as patches."""
    _wanted(given, _VISION_FIXED)
    vision = {**_VISION_DEFAULTS, **given}
    grid = vision["image_size"] // vision["patch_size"]
    return VisionConfig(
        image_size=vision["image_size"],
        stem="patch",
        stem_channels=(),
        patch=vision["patch_size"],
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp=vision["intermediate_size"],
        pool=grid // side if side else 1,
    )


def _wanted(given: Settings, fixed: Settings) -> None:
    for name, value in fixed.items():
        # `null` for a switch means that it is off.
        if name in given and given[name] != value and not (value is False and given[name] is None):
            raise ConfigError(f"{name} is {given[name]!r}, wanted {value!r}")


def _decoder(config: BackboneConfig) -> Iterator[tuple[str, Place]]:
    width, head = config.width, config.head_dim
    queries, keys = config.heads * head, config.kv_heads * head
    yield "embed_tokens.weight", Place("table.weight", (config.vocabulary or 0, width))
    for layer in range(config.layers):
        theirs, ours = f"layers.{layer}.", f"backbone.layers.{layer}."
        qkv, gate_up = ours + "attention.qkv.weight", ours + "mlp.gate_up.weight"
        yield theirs + "self_attn.q_proj.weight", Place(qkv, (queries, width))
        yield theirs + "self_attn.k_proj.weight", Place(qkv, (keys, width), queries)
        yield theirs + "self_attn.v_proj.weight", Place(qkv, (keys, width), queries + keys)
        yield theirs + "self_attn.o_proj.weight", Place(ours + "attention.out.weight", (width, queries))
        yield theirs + "self_attn.q_norm.weight", Place(ours + "attention.q_norm.weight", (head,))
        yield theirs + "self_attn.k_norm.weight", Place(ours + "attention.k_norm.weight", (head,))
        yield theirs + "mlp.gate_proj.weight", Place(gate_up, (config.mlp, width))
        yield theirs + "mlp.up_proj.weight", Place(gate_up, (config.mlp, width), config.mlp)
        yield theirs + "mlp.down_proj.weight", Place(ours + "mlp.down.weight", (width, config.mlp))
        for name, norm in _NORMS.items():
            yield f"{theirs}{name}.weight", Place(f"{ours}{norm}.weight", (width,))
    yield "norm.weight", Place("backbone.norm.weight", (width,))


_NORMS = {
    "input_layernorm": "before_attention",
    "post_attention_layernorm": "after_attention",
    "pre_feedforward_layernorm": "before_mlp",
    "post_feedforward_layernorm": "after_mlp",
}


def _tower(config: VisionConfig) -> Iterator[tuple[str, Place]]:
    width, mlp, patch = config.width, config.mlp, config.patch
    stem = "embeddings.patch_embedding."
    yield stem + "weight", Place("vision.stem.weight", (width, 3, patch, patch))
    yield stem + "bias", Place("vision.stem.bias", (width,))
    yield "embeddings.position_embedding.weight", Place("vision.positions", (config.grid**2, width))
    for layer in range(config.layers):
        theirs, ours = f"encoder.layers.{layer}.", f"vision.layers.{layer}."
        for kind, rest in (("weight", (width,)), ("bias", ())):
            for index, name in enumerate("qkv"):
                yield (
                    f"{theirs}self_attn.{name}_proj.{kind}",
                    Place(f"{ours}qkv.{kind}", (width, *rest), index * width),
                )
            yield f"{theirs}self_attn.out_proj.{kind}", Place(f"{ours}out.{kind}", (width, *rest))
            yield f"{theirs}layer_norm1.{kind}", Place(f"{ours}attention_norm.{kind}", (width,))
            yield f"{theirs}layer_norm2.{kind}", Place(f"{ours}mlp_norm.{kind}", (width,))
            yield f"{theirs}mlp.fc1.{kind}", Place(f"{ours}up.{kind}", (mlp, *rest))
            yield f"{theirs}mlp.fc2.{kind}", Place(f"{ours}down.{kind}", (width, mlp) if rest else (width,))
    yield "post_layernorm.weight", Place("vision.norm.weight", (width,))
    yield "post_layernorm.bias", Place("vision.norm.bias", (width,))
