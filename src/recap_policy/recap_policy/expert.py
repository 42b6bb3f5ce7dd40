"""The action expert: own weights, as many layers as the backbone, reading its keys and values layer by layer.

Time of the flow runs as in openpi: t = 1 is noise, t = 0 is action (the opposite of the paper's η):
x_t = t · noise + (1 - t) · action, velocity u = noise - action. The time enters through AdaRMS.

Actions see every token of the prefix in every layer: the window of the backbone's local layers, which would
hide the first camera from most layers, is not applied to them (a choice; the paper is silent). Their queries
and keys are rotated as the backbone's are in the same layer.

Commands that are carried out before the chunk arrives (training-time RTC, arXiv 2512.05964) reach the expert
in one of two forms, see `Commitment`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import (
    NORM_EPS,
    Attention,
    GeGLU,
    KeyValue,
    Rotation,
    folded_bias,
    layer_rotations,
    linear,
    recomputed,
)
from recap_policy.config import BackboneConfig, ExpertConfig

Plan = tuple[list[Rotation], Tensor]  # rotations of the action tokens per layer, and the attention bias


@dataclass(frozen=True)
class Commitment:
    """What the expert is told of each chunk's first commands, the same for all draws; empty: nothing.

    clean: (B, T) bool, action tokens that are given as they are, at flow time 0, where every token is a time
    step: the paper's form. told: (B, numbers) of ActionCodec.commitment, where every token is a coefficient
    of the whole chunk and none can be clean by itself: they are embedded and added to all tokens.
    """

    clean: Tensor | None = None
    told: Tensor | None = None

    def hold(self, noisy: Tensor, actions: Tensor) -> Tensor:
        """noisy, actions: (B, K, T, dof) → noisy, with the clean tokens as in actions."""
        return noisy if self.clean is None else torch.where(self.clean[:, None, :, None], actions, noisy)

    def mean(self, error: Tensor) -> Tensor:
        """(B, K, T, dof) → (B,), over the tokens that are still to be denoised."""
        if self.clean is None:
            return error.mean((1, 2, 3))
        left = ~self.clean
        return (error.mean((1, 3)) * left).sum(1) / left.sum(1).clamp_min(1)


class AdaRMS(nn.Module):
    """RMS norm whose scale, shift and branch gate come from the flow time; starts as a closed gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, clean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: (B, K, T, W) → normalised x and the gate for its branch.

        time: (B, K, 1, W); with clean, (B, 1, T, 1) bool: (B, K, 2, W), the second for the clean tokens
        """
        modulation = self.modulation(time)
        if clean is not None:  # two times a draw, however many tokens: chosen after the product
            modulation = torch.where(clean, modulation[:, :, 1:], modulation[:, :, :1])
        scale, shift, gate = modulation.chunk(3, -1)
        return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS) * (1.0 + scale) + shift, gate


class ExpertLayer(nn.Module):
    def __init__(self, config: ExpertConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.before_attention = AdaRMS(config.width)
        self.attention = Attention(config.width, backbone)
        self.before_mlp = AdaRMS(config.width)
        self.mlp = GeGLU(config.width, config.mlp)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        clean: Tensor | None,
        prefix: KeyValue,
        by: Rotation,
        bias: Tensor,
    ) -> Tensor:
        """x: (B, K, T, W); condition and clean: see AdaRMS"""
        normed, gate = self.before_attention(x, condition, clean)
        q, (keys, values) = self.attention.project(normed.flatten(1, 2), by)
        joint = torch.cat([prefix[0], keys], 2), torch.cat([prefix[1], values], 2)
        x = x + gate * self.attention.attend(q, joint, bias).unflatten(1, x.shape[1:3])
        normed, gate = self.before_mlp(x, condition, clean)
        return x + gate * self.mlp(normed)


class ActionExpert(nn.Module):
    def __init__(
        self, config: ExpertConfig, backbone: BackboneConfig, dof: int, tokens: int, committed: int = 0
    ) -> None:
        """committed: how many numbers Commitment.told has."""
        super().__init__()
        self.config, self.backbone = config, backbone
        self.tokens = tokens
        self.action_in = nn.Linear(dof, config.width)
        self.committed_in = linear(committed, config.width) if committed else None
        self.token_embedding = nn.Parameter(torch.randn(tokens, config.width) * 0.5)
        self.time_in = nn.Linear(config.width, config.width)
        self.time_out = nn.Linear(config.width, config.width)
        self.layers = nn.ModuleList(ExpertLayer(config, backbone) for _ in range(backbone.layers))
        self.norm = AdaRMS(config.width)
        self.action_out = linear(config.width, dof, scale=0.1)

    def plan(self, seen: Tensor, first: Tensor) -> Plan:
        """What does not change from one Euler step to the next.

        seen: (B, K, S) bool, the prefix tokens that each draw may attend to; first: (B, K) position of its
        first action token. → rotations of the action tokens, and the bias for attention over prefix and
        all draws' actions
        """
        rows, draws, _ = seen.shape
        steps = torch.arange(self.tokens, device=first.device)
        positions = (first[..., None] + steps).flatten(1)
        own = torch.arange(draws, device=first.device).repeat_interleave(self.tokens)
        apart = (own[:, None] == own[None]).expand(rows, -1, -1)  # a draw sees only its own actions
        mask = torch.cat([seen.repeat_interleave(self.tokens, 1), apart], 2)
        shared = self.backbone.heads // self.backbone.kv_heads
        bias = folded_bias(mask, shared, self.token_embedding)
        return layer_rotations(positions, self.backbone), bias

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        prefix: list[KeyValue],
        plan: Plan,
        commitment: Commitment = Commitment(),
    ) -> Tensor:
        """Velocities of K draws that share one prefix.

        noisy: (B, K, T, dof); time: (B, K) in (0, 1]; prefix: keys and values per layer, (B, G, S, D)
        → (B, K, T, dof) of noisy's type; of no meaning for tokens that are clean
        """
        rotations, bias = plan
        clean = None if commitment.clean is None else commitment.clean[:, None, :, None]
        times = time[..., None] if clean is None else torch.stack([time, torch.zeros_like(time)], -1)
        features = time_features(times, self.config.width).type_as(self.token_embedding)
        condition = F.silu(self.time_out(F.silu(self.time_in(features))))
        x = self.action_in(noisy.type_as(features)) + self.token_embedding
        if self.committed_in is not None and commitment.told is not None:
            x = x + self.committed_in(commitment.told.type_as(features))[:, None, None]
        for layer, known, by in zip(self.layers, prefix, rotations, strict=True):
            x = recomputed(layer, self.backbone.recompute, x, condition, clean, known, by, bias)
        return self.action_out(self.norm(x, condition, clean)[0]).type_as(noisy)


def time_features(time: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """(…,) → (…, width) float32: sines and cosines with periods from `shortest` to `longest`, as in openpi.

    Angles reach 1,570 rad, of which float32 holds four decimals: hence float64 within.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, device=time.device, dtype=torch.float64)
    period = shortest * (longest / shortest) ** fraction
    angle = time[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).float()


def draw_time(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Flow times 0.999 · Beta(1.5, 1) + 0.001, as openpi draws them: more of them near the noise end.

    Beta(1.5, 1) has the distribution function t^1.5, so it is drawn by inverting that.
    """
    return 0.999 * torch.rand(shape, generator=generator) ** (1 / 1.5) + 0.001
