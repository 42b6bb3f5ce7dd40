"""The action expert: own weights, as many layers as the backbone, reading its keys and values layer by layer.

Time of the flow runs as in openpi: t = 1 is noise, t = 0 is action (the opposite of the paper's η):
x_t = t · noise + (1 - t) · action, velocity u = noise - action. The time enters through AdaRMS.

Actions see every token of the prefix in every layer: the window of the backbone's local layers, which would
hide the first camera from most layers, is not applied to them (a choice; the paper is silent). Their queries
and keys are rotated as the backbone's are in the same layer.
"""

from __future__ import annotations

import math

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
)
from recap_policy.config import BackboneConfig, ExpertConfig

Plan = tuple[list[Rotation], Tensor]  # rotations of the action tokens per layer, and the attention bias


class AdaRMS(nn.Module):
    """RMS norm whose scale, shift and branch gate come from the flow time; starts as a closed gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, K, T, W), time: (B, K, W) → normalised x and the gate for its branch."""
        scale, shift, gate = self.modulation(time)[:, :, None].chunk(3, -1)
        return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS) * (1.0 + scale) + shift, gate


class ExpertLayer(nn.Module):
    def __init__(self, config: ExpertConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.before_attention = AdaRMS(config.width)
        self.attention = Attention(config.width, backbone)
        self.before_mlp = AdaRMS(config.width)
        self.mlp = GeGLU(config.width, config.mlp)

    def forward(self, x: Tensor, condition: Tensor, prefix: KeyValue, by: Rotation, bias: Tensor) -> Tensor:
        """x: (B, K, T, W), condition: (B, K, W)"""
        normed, gate = self.before_attention(x, condition)
        q, (keys, values) = self.attention.project(normed.flatten(1, 2), by)
        joint = torch.cat([prefix[0], keys], 2), torch.cat([prefix[1], values], 2)
        x = x + gate * self.attention.attend(q, joint, bias).unflatten(1, x.shape[1:3])
        normed, gate = self.before_mlp(x, condition)
        return x + gate * self.mlp(normed)


class ActionExpert(nn.Module):
    def __init__(
        self, config: ExpertConfig, backbone: BackboneConfig, dof: int, tokens: int, committed: int = 0
    ) -> None:
        """committed: numbers that tell of the commands to be continued (ActionCodec.commitment)."""
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
        commitment: Tensor | None = None,
    ) -> Tensor:
        """Velocities of K draws that share one prefix.

        noisy: (B, K, T, dof); time: (B, K) in (0, 1]; prefix: keys and values per layer, (B, G, S, D);
        commitment: (B, committed), the same for all draws; None: nothing is committed to
        → (B, K, T, dof) of noisy's type
        """
        rotations, bias = plan
        features = time_features(time, self.config.width).type_as(self.token_embedding)
        condition = F.silu(self.time_out(F.silu(self.time_in(features))))
        x = self.action_in(noisy.type_as(features)) + self.token_embedding
        if self.committed_in is not None and commitment is not None:
            x = x + self.committed_in(commitment.type_as(features))[:, None, None]
        for layer, known, by in zip(self.layers, prefix, rotations, strict=True):
            x = layer(x, condition, known, by, bias)
        return self.action_out(self.norm(x, condition)[0]).type_as(noisy)


def time_features(time: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """(…,) → (…, width): sines and cosines with periods from `shortest` to `longest`, as in openpi."""
    fraction = torch.linspace(0.0, 1.0, width // 2, device=time.device)
    period = shortest * (longest / shortest) ** fraction
    angle = time[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1)


def draw_time(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Flow times 0.999 · Beta(1.5, 1) + 0.001, as openpi draws them: more of them near the noise end.

    Beta(1.5, 1) has the distribution function t^1.5, so it is drawn by inverting that.
    """
    return 0.999 * torch.rand(shape, generator=generator) ** (1 / 1.5) + 0.001
