"""Loading backbones from folders: what goes where, what is reported, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import policy_of
from torch import Tensor

from recap_policy.pretrained import fill, load_backbone, load_gguf
from recap_policy.reference import PretrainedError, places, shape_of
from recap_policy.sizes import value_config
from recap_policy.value import ValueModel
from recap_policy.vla import VLA

TEXT: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 700,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
}
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "image_size": 56,
    "patch_size": 14,
    "hidden_size": 32,
    "intermediate_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BOTH: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": TEXT,
    "vision_config": VISION,
    "mm_tokens_per_image": 4,
}


def _write(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A folder with the tensors that the configuration describes, in two shards and an index."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        _stored(name, config): torch.randn(place.shape, generator=generator).to(dtype)
        for name, place in places(shape_of(config)).items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return tensors


def _stored(name: str, config: dict[str, Any]) -> str:
    """Names as the folders on the Hub have them."""
    if config["model_type"] == "gemma3_text":
        return f"model.{name}"
    if name.startswith(("embeddings.", "encoder.", "post_layernorm.")):
        return f"{'vision_tower.' if config['model_type'] == 'gemma3' else ''}vision_model.{name}"
    return name if name.startswith("multi_modal") else f"language_model.model.{name}"


def _change(folder: Path, change: Any) -> None:
    """Rewrite the first shard."""
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_tensor_arrives_where_it_belongs(tmp_path: Path) -> None:
    stored = _write(tmp_path / "gemma", BOTH)
    model = load_backbone(tmp_path / "gemma")
    assert model.vision and model.backbone and model.table and model.image_projection and model.image_norm
    layer = model.backbone.layers[3]
    theirs = "language_model.model.layers.3."
    joined = [stored[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(layer.attention.qkv.weight, torch.cat(joined))
    joined = [stored[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up.weight, torch.cat(joined))
    assert torch.equal(layer.before_mlp.weight, stored[theirs + "pre_feedforward_layernorm.weight"])
    theirs = "vision_tower.vision_model.encoder.layers.1.self_attn."
    joined = [stored[f"{theirs}{name}_proj.bias"] for name in "qkv"]
    assert torch.equal(model.vision.layers[1].qkv.bias, torch.cat(joined))
    projection = stored["multi_modal_projector.mm_input_projection_weight"]
    assert torch.equal(model.image_projection.weight, projection.T)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in stored.values())


def test_weights_keep_their_type_unless_told(tmp_path: Path) -> None:
    _write(tmp_path / "gemma", TEXT, torch.bfloat16)
    assert {p.dtype for p in load_backbone(tmp_path / "gemma").parameters()} == {torch.bfloat16}
    wide = load_backbone(tmp_path / "gemma", torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_large_tensors_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = _write(tmp_path / "gemma", BOTH)
    monkeypatch.setattr("recap_policy.pretrained._PIECE_BYTES", 1000)
    model = load_backbone(tmp_path / "gemma")
    assert model.table and model.image_projection
    assert torch.equal(model.table.weight, stored["language_model.model.embed_tokens.weight"])
    projection = stored["multi_modal_projector.mm_input_projection_weight"]
    assert torch.equal(model.image_projection.weight, projection.T)


def test_all_that_is_amiss_is_named_at_once(tmp_path: Path) -> None:
    stored = _write(tmp_path / "gemma", TEXT)
    names = sorted(stored)[::2]  # those of the first shard
    gone, bent = names[3], names[5]

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[gone]
        tensors[bent] = tensors[bent][:-1].clone()
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["adapter.weight"] = torch.zeros(2)

    _change(tmp_path / "gemma", change)
    with pytest.raises(PretrainedError) as caught:
        load_backbone(tmp_path / "gemma")
    error = caught.value
    assert error.missing == (gone.removeprefix("model."),)
    assert sorted(error.unexpected) == ["adapter.weight", "model.layers.7.mlp.up_proj.weight"]
    rows, *rest = stored[bent].shape
    assert error.misshapen == {bent: ((rows - 1, *rest), (rows, *rest))}
    for name in (error.missing[0], "adapter.weight", "model.layers.7.mlp.up_proj.weight", bent):
        assert name in str(error)
    assert "\n" not in str(error)


def test_siglips_text_side_and_tied_outputs_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "siglip", {"model_type": "siglip", "vision_config": VISION})
    _write(tmp_path / "gemma", TEXT)

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["text_model.embeddings.token_embedding.weight"] = torch.zeros(5, 3)
        tensors["vision_model.head.probe"] = torch.zeros(1, 1, 32)
        tensors["logit_scale"] = torch.zeros(1)

    _change(tmp_path / "siglip", change)
    assert load_backbone(tmp_path / "siglip").vision
    _change(tmp_path / "gemma", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(700, 48)}))
    assert load_backbone(tmp_path / "gemma").table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', wanted gemma3"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, wanted None"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "wanted default or linear"),
        (
            {"layer_types": ["full_attention", "full_attention"] + ["sliding_attention"] * 5},
            "wanted every n-th of 7",
        ),
    ],
)
def test_settings_that_we_do_not_have_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    _write(tmp_path / "gemma", TEXT)
    (tmp_path / "gemma" / "config.json").write_text(json.dumps({**TEXT, **change}))
    with pytest.raises(PretrainedError, match=message):
        load_backbone(tmp_path / "gemma")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"nowhere/config\.json"):
        load_backbone(tmp_path / "nowhere")
    _write(tmp_path / "gemma", TEXT)
    shard = tmp_path / "gemma" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        load_backbone(tmp_path / "gemma")
    shard.unlink()
    with pytest.raises(PretrainedError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        load_backbone(tmp_path / "gemma")


def test_a_policy_is_filled_from_one_folder_and_the_rest_is_fresh(tmp_path: Path) -> None:
    stored = _write(tmp_path / "gemma", BOTH)
    torch.manual_seed(0)
    model = VLA(policy_of(shape_of(BOTH)), blank=True)
    assert model.backbone.layers[0].attention.qkv.weight.is_meta
    fill(model, tmp_path / "gemma", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.prefix.normalizer.low.dtype == torch.float32
    table = stored["language_model.model.embed_tokens.weight"]
    assert torch.equal(model.prefix.table.weight, table.bfloat16())
    assert bool(model.expert.action_in.weight.isfinite().all()) and model.expert.action_in.weight.std() > 0


def test_a_value_function_is_filled_from_two_folders(tmp_path: Path) -> None:
    _write(tmp_path / "gemma", TEXT)
    stored = _write(tmp_path / "siglip", {**VISION, "image_size": 28})
    whole, shape = value_config("value-670m"), shape_of(BOTH)
    assert shape.vision and shape.backbone
    config = replace(whole, vision=shape.vision, vision_width=32, vision_tokens=4, backbone=shape.backbone)
    model = ValueModel(config, blank=True)
    fill(model, tmp_path / "gemma", tmp_path / "siglip")
    assert model.vision and model.vision.positions.shape == (16, 32)
    corner = stored["vision_model.embeddings.position_embedding.weight"][0]
    assert torch.corrcoef(torch.stack([model.vision.positions[0], corner]))[0, 1] > 0.9
    with pytest.raises(PretrainedError, match="holds an image tower"):
        fill(ValueModel(value_config("value-tiny")), tmp_path / "siglip")


def test_what_no_folder_held_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "gemma", TEXT)
    with pytest.raises(PretrainedError, match=r"missing: vision\.positions, vision\.stem\.weight"):
        fill(VLA(policy_of(shape_of(BOTH)), blank=True), tmp_path / "gemma")


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "gemma", BOTH)
    config = policy_of(shape_of(BOTH))
    other = replace(config, backbone=replace(config.backbone, window=9, query_scale=24.0))
    with pytest.raises(PretrainedError, match=r"window is 8, wanted 9; query_scale is 16.0, wanted 24.0"):
        fill(VLA(other), tmp_path / "gemma")


def test_gguf_wants_its_package_and_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "gguf", None)
        with pytest.raises(PretrainedError, match="pip install gguf"):
            load_gguf(tmp_path / "gemma.gguf")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    (tmp_path / "gemma.gguf").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(PretrainedError, match="not a GGUF file"):
        load_gguf(tmp_path / "gemma.gguf")


LARGE: dict[str, Any] = {
    **TEXT,
    "vocab_size": 40_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "head_dim": 128,
}
MEASURE = """
import sys, torch
from pathlib import Path
from recap_policy.pretrained import load_backbone

def memory(what):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(what))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
torch.nn.init.normal_(torch.empty(1, device="meta"))  # imports a part of torch, whatever the model's size
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = memory("VmRSS")
model = load_backbone(sys.argv[1], getattr(torch, sys.argv[2]))
print(memory("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to see the peak")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path, dtype: str) -> None:
    """As stored, and into another type: what is read of a file does not stay in memory."""
    _write(tmp_path / "gemma", LARGE, torch.bfloat16)
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "gemma"), dtype]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=250)
    peak, size = map(int, run.stdout.split())
    print(f"peak {peak / 2**20:.0f} MiB of a model of {size / 2**20:.0f} MiB: {peak / size:.2f}")
    assert size > 180e6
    assert peak < 1.2 * size
