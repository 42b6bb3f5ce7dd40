"""The decoder that reads images, state and text: Gemma 3's shape (arXiv 2503.19786), in one sitting.

Image tokens see each other both ways, text sees what came before it. The action tokens are not here: the
expert (expert.py) reads this decoder's keys and values, and the decoder never sees the expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import Attention, GeGLU, KeyValue, RMSNorm, Rotation, folded_bias, rotation
from recap_policy.config import BackboneConfig


class BackboneLayer(nn.Module):
    """Sandwich norms: each branch is normalised before and after."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.before_attention = RMSNorm(config.width)
        self.attention = Attention(config.width, config.heads, config.kv_heads, config.head_dim)
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
        """x: (B, L, W) embeddings; positions: (B, L); mask: (B, L, S) bool over past and present keys.

        Returns the final hidden states of the positions `read` (the last layer computes no others: its
        keys and values are all that the expert needs of the rest), and keys and values of every layer.
        """
        by = rotation(positions, self.config.head_dim, self.config.rope_base)
        x = F.dropout(x, self.config.dropout, self.training)
        shared = self.config.heads // self.config.kv_heads
        bias, last_bias = folded_bias(mask, shared, x), folded_bias(mask[:, read], shared, x)
        cache: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            before = past[index] if past else None
            if index < len(self.layers) - 1:
                x, kv = layer(x, by, bias, before, slice(None))
            else:
                x, kv = layer(x, by, last_bias, before, read)
            cache.append(kv)
        return self.norm(x), cache


def prefix_mask(valid: Tensor, images: int) -> Tensor:
    """valid: (B, L) bool → (B, L, L): text causal, the first `images` tokens both ways, padding unseen."""
    length = valid.shape[1]
    index = torch.arange(length, device=valid.device)
    sees = (index[:, None] >= index[None]) | ((index[:, None] < images) & (index[None] < images))
    # A padded query sees itself, so that its softmax is defined; nothing reads the result.
    return (sees & valid[:, None]) | torch.eye(length, dtype=torch.bool, device=valid.device)


def token_positions(valid: Tensor) -> Tensor:
    """(B, L) → position of each token as if the padding were not there."""
    return (valid.long().cumsum(1) - 1).clamp_min(0)
