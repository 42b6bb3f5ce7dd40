"""The decoder that reads images, state and text: Gemma 3's (arXiv 2503.19786), in one sitting.

Image tokens see each other both ways, text sees what came before it. Where the configuration has local
layers, those see only a window of positions. The action tokens are not here: the expert (expert.py) reads
this decoder's keys and values, and the decoder never sees the expert.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import (
    Attention,
    GeGLU,
    KeyValue,
    RMSNorm,
    Rotation,
    folded_bias,
    layer_rotations,
    recomputed,
)
from recap_policy.config import BackboneConfig


class TokenTable(nn.Embedding):
    """Embeddings of tokens, scaled by √width; the same rows, unscaled, are the output weights."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__(vocabulary, width)
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """(…) int64 → (…, width)"""
        scale = math.sqrt(self.embedding_dim)
        if self.weight.dtype != torch.float32:
            scale = float(torch.tensor(scale, dtype=self.weight.dtype))  # Gemma rounds it to the table's type
        return super().forward(ids) * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, width) final hidden states → (…, vocabulary)"""
        return F.linear(hidden, self.weight)


class BackboneLayer(nn.Module):
    """Sandwich norms: each branch is normalised before and after."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.before_attention = RMSNorm(config.width)
        self.attention = Attention(config.width, config)
        self.after_attention = RMSNorm(config.width)
        self.before_mlp = RMSNorm(config.width)
        self.mlp = GeGLU(config.width, config.mlp)
        self.after_mlp = RMSNorm(config.width)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, by: Rotation, bias: Tensor, past: KeyValue | None, read: slice
    ) -> tuple[Tensor, KeyValue]:
        q, kv = self.attention.project(self.before_attention(x), by)
        if past is not None:
            kv = torch.cat([past[0], kv[0]], 2), torch.cat([past[1], kv[1]], 2)
        x, q = x[:, read], q[:, read]
        x = x + self._drop(self.after_attention(self.attention.attend(q, kv, bias)))
        return x + self._drop(self.after_mlp(self.mlp(self.before_mlp(x)))), kv

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Backbone(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(BackboneLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        past: list[KeyValue] | None = None,
        read: slice = slice(None),
    ) -> tuple[Tensor, list[KeyValue]]:
        """x: (B, L, W) embeddings; positions: (B, S) of past and present tokens, of which x is the last L;
        mask: (B, L, S) bool, which of them each token sees in a global layer.

        Returns the final hidden states of the positions `read` (the last layer computes no others: its
        keys and values are all that the expert needs of the rest), and keys and values of every layer.
        """
        config, last = self.config, self.config.layers - 1
        here = positions[:, -x.shape[1] :]
        x = F.dropout(x, config.dropout, self.training)
        shared = config.heads // config.kv_heads
        bias = near = folded_bias(mask, shared, x)
        within = mask
        if config.global_every > 1 and config.window is not None and config.window < mask.shape[2]:
            within = mask & window_mask(here, positions, config.window)
            near = folded_bias(within, shared, x)
        last_bias = folded_bias((within if config.is_local(last) else mask)[:, read], shared, x)
        cache: list[KeyValue] = []
        for index, (layer, by) in enumerate(zip(self.layers, layer_rotations(here, config), strict=True)):
            before = past[index] if past else None
            if index < last:
                seen = near if config.is_local(index) else bias
                x, kv = recomputed(layer, config.recompute, x, by, seen, before, slice(None))
            else:
                x, kv = recomputed(layer, config.recompute, x, by, last_bias, before, read)
            cache.append(kv)
        return self.norm(x), cache


def unfilled(blank: bool) -> AbstractContextManager[object]:
    """Where `blank`, modules made inside get no memory: pretrained.py fills them."""
    return torch.device("meta") if blank else nullcontext()


def prefix_mask(valid: Tensor, images: int) -> Tensor:
    """valid: (B, L) bool → (B, L, L): text causal, the first `images` tokens both ways, padding unseen."""
    length = valid.shape[1]
    index = torch.arange(length, device=valid.device)
    sees = (index[:, None] >= index[None]) | ((index[:, None] < images) & (index[None] < images))
    # A padded query sees itself, so that its softmax is defined; nothing reads the result.
    return (sees & valid[:, None]) | torch.eye(length, dtype=torch.bool, device=valid.device)


def window_mask(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Positions (B, L) and (B, S) → (B, L, S) bool: keys less than `window` before the query, or after it.

    What lies after is the other mask's matter: images see ahead within it, text does not.
    """
    return keys[:, None] > queries[..., None] - window


def token_positions(valid: Tensor) -> Tensor:
    """(B, L) → position of each token as if the padding were not there."""
    return (valid.long().cumsum(1) - 1).clamp_min(0)
