"""The action expert: own weights, as many layers as the backbone, reading its keys and values layer by layer.

Time of the flow runs as in openpi: t = 1 is noise, t = 0 is action (the opposite of the paper's η):
x_t = t · noise + (1 - t) · action, velocity u = noise - action. The time enters through AdaRMS.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import Attention, GeGLU, KeyValue, Rotation, folded_bias, linear, rotation
from recap_policy.config import BackboneConfig, ExpertConfig

Plan = tuple[Rotation, Tensor]


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
        return F.rms_norm(x, (x.shape[-1],), eps=1e-6) * (1.0 + scale) + shift, gate


class ExpertLayer(nn.Module):
    def __init__(self, config: ExpertConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.before_attention = AdaRMS(config.width)
        self.attention = Attention(config.width, backbone.heads, backbone.kv_heads, backbone.head_dim)
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
    def __init__(self, config: ExpertConfig, backbone: BackboneConfig, dof: int, tokens: int) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.tokens = tokens
        self.action_in = nn.Linear(dof, config.width)
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
        by = rotation(positions, self.backbone.head_dim, self.backbone.rope_base)
        return by, folded_bias(mask, self.backbone.heads // self.backbone.kv_heads, by[0])

    def forward(self, noisy: Tensor, time: Tensor, prefix: list[KeyValue], plan: Plan) -> Tensor:
        """Velocities of K draws that share one prefix.

        noisy: (B, K, T, dof); time: (B, K) in (0, 1]; prefix: keys and values per layer, (B, G, S, D)
        → (B, K, T, dof)
        """
        by, bias = plan
        condition = F.silu(self.time_out(F.silu(self.time_in(time_features(time, self.config.width)))))
        x = self.action_in(noisy) + self.token_embedding
        for layer, known in zip(self.layers, prefix, strict=True):
            x = layer(x, condition, known, by, bias)
        return self.action_out(self.norm(x, condition)[0])


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
