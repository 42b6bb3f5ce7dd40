"""The image encoder: SigLIP's (arXiv 2303.15343), shared by all cameras, and the task that stands in for its
pre-training where it starts from nothing.

The tower is trained once to say where things are (`LocalizeHead`), then frozen: its pooled tokens are
computed once per image and everything downstream takes them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.config import VisionConfig


class VisionTower(nn.Module):
    """(N, H, W, 3) uint8 RGB → (N, tokens, width) float32: the grid row by row, or its summary."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _conv_stem(config) if config.stem == "conv" else _patch_stem(config)
        self.positions = nn.Parameter(torch.randn(config.grid**2, config.width) * 0.2)
        self.layers = nn.ModuleList(_EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        if config.summary:
            self.summary = nn.Linear(config.pooled * config.width, config.summary * config.width)

    def forward(self, images: Tensor) -> Tensor:
        grid, pool = self.config.grid, self.config.pool
        pixels = images.permute(0, 3, 1, 2).to(self.positions.dtype) / 127.5 - 1.0
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        x = x.permute(0, 2, 3, 1).reshape(-1, grid * grid, self.config.width) + self.positions
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x).reshape(-1, grid // pool, pool, grid // pool, pool, self.config.width)
        x = x.mean((2, 4)).flatten(1, 2)
        if self.config.summary:
            x = F.gelu(self.summary(x.flatten(1))).unflatten(1, (self.config.summary, -1))
        return x


class _EncoderLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.up = nn.Linear(config.width, config.mlp)
        self.down = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


def _patch_stem(config: VisionConfig) -> nn.Module:
    return nn.Conv2d(3, config.width, config.patch, stride=config.patch)


def _conv_stem(config: VisionConfig) -> nn.Module:
    channels = (3, *config.stem_channels, config.width)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(channels)):
        layers.append(
            nn.Conv2d(before, after, 5 if index == 0 else 3, stride=2, padding=2 if index == 0 else 1)
        )
        if index < len(channels) - 2:
            layers += [nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)


class Keypoints(NamedTuple):
    """xyz: (N, K, 3) [m] in the camera's frame; visible: (N, K) logits."""

    xyz: Tensor
    visible: Tensor


class LocalizeHead(nn.Module):
    """From one image's tokens: where each of `keypoints` points is, and whether it is seen.

    Linear, so that whoever reads the tokens finds places in them as easily, and one for all cameras: with one
    for each the places were found better, but the policy on top of them did worse (docs/learning.md). Only
    a teacher for the tower: it is thrown away after pre-training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: VisionConfig, keypoints: int) -> None:
        super().__init__()
        self.keypoints = keypoints
        self.out = nn.Linear(config.tokens * config.width, keypoints * 4)
        self.register_buffer("mean", torch.zeros(keypoints, 3))
        self.register_buffer("deviation", torch.ones(keypoints, 3))

    def fit(self, xyz: Tensor, visible: Tensor) -> None:
        """Statistics of the targets. xyz: (N, K, 3) [m], visible: (N, K) bool."""
        weight = visible[..., None].float()
        count = weight.sum(0).clamp_min(1.0)
        mean = (xyz * weight).sum(0) / count
        self.mean.copy_(mean)
        self.deviation.copy_((((xyz - mean) ** 2 * weight).sum(0) / count).sqrt().clamp_min(1e-3))

    def forward(self, tokens: Tensor) -> Keypoints:
        out = self.out(tokens.flatten(1)).unflatten(-1, (self.keypoints, 4))
        return Keypoints(out[..., :3] * self.deviation + self.mean, out[..., 3])

    def loss(self, tokens: Tensor, xyz: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """tokens: (N, tokens, width); xyz: (N, K, 3) [m] in the camera's frame; visible: (N, K) bool.

        Returns "loss" to minimise, and for people "error_m" (mean distance of visible points) and "seen"
        (share of right visibility).
        """
        found = self(tokens)
        weight = visible.float()
        count = weight.sum().clamp_min(1.0)
        off = (found.xyz - xyz) / self.deviation
        place = (
            F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none", beta=0.1).mean(-1) * weight
        ).sum() / count
        seen = F.binary_cross_entropy_with_logits(found.visible, weight)
        with torch.no_grad():
            error = ((found.xyz - xyz).norm(dim=-1) * weight).sum() / count
            right = ((found.visible > 0) == visible).float().mean()
        return {"loss": place + 0.1 * seen, "error_m": error, "seen": right}
