"""Gemma 3's text decoder out of llama.cpp's GGUF files, under the names of Hugging Face's.

The package `gguf` reads the file and undoes its quantisation; it is no requirement of the project.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recap_policy.config import BackboneConfig
from recap_policy.reference import PretrainedError, Shape

_GLOBAL = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LARGEST_LAYERS = 62  # Gemma 3 27B, the one whose score scale is not its head size; the file does not say so


class GGUFSource:
    """A `pretrained.Source`. Raises PretrainedError where the file or the package is not there."""

    dtype: torch.dtype = torch.float32

    def __init__(self, path: Path) -> None:
        try:
            self._gguf: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise PretrainedError(f"{path}: reading GGUF needs the package gguf: pip install gguf") from error
        self.place = path
        try:
            reader = self._gguf.GGUFReader(path)
            kind = reader.fields["general.architecture"].contents()
        except (OSError, ValueError, KeyError) as error:
            raise PretrainedError(f"{path}: not a GGUF file: {error}") from error
        if kind != "gemma3":
            raise PretrainedError(f"{path}: weights of {kind!r}, wanted 'gemma3'")
        self._tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
        self.shapes = {
            name: tuple(int(side) for side in reversed(stored.shape))
            for name, stored in self._tensors.items()
        }
        try:
            self.shape = Shape(_backbone(reader, self.shapes), None)
        except (KeyError, ValueError) as error:
            raise PretrainedError(f"{path}: settings: {error}") from error

    def read(self, name: str, start: int, stop: int) -> Tensor:
        tensor = self._tensors[name]
        rows = self._gguf.dequantize(tensor.data[start:stop], tensor.tensor_type)
        found = torch.tensor(rows, dtype=torch.float32)
        return found - 1.0 if name.endswith("norm.weight") else found  # the file's norms have the 1 added


def _name(stored: str) -> str:
    """Names that are not Gemma 3's stay as they are, and are reported as unexpected."""
    if stored in _GLOBAL:
        return _GLOBAL[stored]
    block, _, rest = stored.removeprefix("blk.").partition(".")
    kind = rest.removesuffix(".weight")
    return f"layers.{block}.{_LAYER[kind]}.weight" if kind in _LAYER else stored


def _backbone(reader: Any, shapes: dict[str, tuple[int, ...]]) -> BackboneConfig:
    def setting(name: str, default: Any = None) -> Any:
        field = reader.fields.get(f"gemma3.{name}")
        if field is None and default is None:
            raise KeyError(f"gemma3.{name}")
        return default if field is None else field.contents()

    layers = int(setting("block_count"))
    if layers == _LARGEST_LAYERS:
        raise ValueError(f"{layers} layers, wanted Gemma 3 of less than 27B")
    return BackboneConfig(
        width=setting("embedding_length"),
        layers=layers,
        heads=setting("attention.head_count"),
        kv_heads=setting("attention.head_count_kv"),
        head_dim=setting("attention.key_length"),
        mlp=setting("feed_forward_length"),
        rope_base=float(setting("rope.freq_base", 1_000_000.0)),
        rope_scale=float(setting("rope.scaling.factor", 1.0)),
        window=setting("attention.sliding_window"),
        global_every=6,
        query_scale=float(setting("attention.key_length")),
        vocabulary=shapes["embed_tokens.weight"][0],
    )
