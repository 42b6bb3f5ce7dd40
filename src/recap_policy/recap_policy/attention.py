"""What backbone and expert share: norms, rotary positions, and attention over a joint set of keys.

Shapes: B batch, L queries, S keys, H heads, G key-value heads, D head size, W width of a stream.
Norms, rotations and what they multiply are in float32 whatever the weights are, as in Gemma.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recap_policy.config import BackboneConfig

Rotation = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]  # keys and values of one layer, each (B, G, S, D)
NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """Gemma's: x / rms(x) · (1 + weight)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float() + 1.0, NORM_EPS).type_as(x)


def rotation(positions: Tensor, head_dim: int, base: float, scale: float = 1.0) -> Rotation:
    """positions (B, L) int → cosines, and sines with the first half's sign turned, each (B, L, 1, D) float32.

    scale: what positions are divided by, to reach further than was trained (linear scaling).
    """
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[..., None, None].float() * (1.0 / base**half / scale)
    sine = angle.sin()
    return torch.cat([angle.cos()] * 2, -1), torch.cat([-sine, sine], -1)


def layer_rotations(positions: Tensor, config: BackboneConfig) -> list[Rotation]:
    """The rotation of each layer: those of local and of global layers differ."""
    whole = near = rotation(positions, config.head_dim, config.rope_base, config.rope_scale)
    if config.global_every > 1:
        near = rotation(positions, config.head_dim, config.local_rope_base)
    return [near if config.is_local(layer) else whole for layer in range(config.layers)]


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x: (B, L, heads, D), its halves rotated against each other."""
    return torch.addcmul(x * by[0], x.roll(x.shape[-1] // 2, -1), by[1])


class Attention(nn.Module):
    """Grouped-query attention with q/k norm, whose keys may be joined by those of another stream."""

    def __init__(self, width: int, config: BackboneConfig) -> None:
        """width: of the stream that it reads, which need not be the backbone's."""
        super().__init__()
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale = (config.query_scale or head_dim) ** -0.5
        self.qkv = linear(width, (heads + 2 * kv_heads) * head_dim)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)
        self.out = linear(heads * head_dim, width)

    def project(self, x: Tensor, by: Rotation) -> tuple[Tensor, KeyValue]:
        """(B, L, W) → queries (B, L, H, D), keys and values (B, G, L, D)."""
        heads, groups = self.heads, self.kv_heads
        qk, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split([heads + groups, groups], 2)
        # Queries and keys are normalised and rotated in one go, each head with its own scale.
        scale = torch.cat([self.q_norm.weight.expand(heads, -1), self.k_norm.weight.expand(groups, -1)])
        normed = F.rms_norm(qk.float(), (self.head_dim,), eps=NORM_EPS) * (scale.float() + 1.0)
        qk = rotate(normed, by).type_as(v)
        q, k = qk.split([heads, groups], 2)
        return q, (k.transpose(1, 2), v.transpose(1, 2))

    def attend(self, q: Tensor, kv: KeyValue, bias: Tensor) -> Tensor:
        """q (B, L, H, D) over kv (B, G, S, D), with the mask as `folded_bias`. → (B, L, W)"""
        rows, length = q.shape[:2]
        shared = self.heads // self.kv_heads
        # The heads of one group are folded into the queries' axis: no copy of keys and values per head.
        grouped = q.unflatten(2, (self.kv_heads, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(grouped, kv[0], kv[1], attn_mask=bias, scale=self.scale)
        out = out.unflatten(2, (shared, length)).permute(0, 3, 1, 2, 4).reshape(rows, length, -1)
        return self.out(out)


def folded_bias(mask: Tensor, shared: int, like: Tensor) -> Tensor:
    """mask (B, L, S) bool, True where seen → what to add to all scores, (B, 1, shared · L, S)."""
    where, dtype = like.device.type, like.dtype
    if torch.is_autocast_enabled(where):  # else every layer would convert it, and keep its copy
        dtype = torch.get_autocast_dtype(where)
    bias = torch.zeros(mask.shape, dtype=dtype, device=like.device).masked_fill_(~mask, -torch.inf)
    return bias[:, None].expand(-1, shared, -1, -1).flatten(1, 2)[:, None]


class GeGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = linear(width, 2 * hidden)
        self.down = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.gelu(gate, approximate="tanh") * up)


def recomputed(layer: nn.Module, recompute: bool, *inputs: Any) -> Any:
    """layer(*inputs). With `recompute` its activations are not kept for the backward pass but computed again
    there (activation checkpointing, arXiv 1604.06174): less memory for about a third more time."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """Without bias, weights of variance scale² / inputs."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5)
    return layer
