"""States of things in the place of images: the numbers of a scene as tokens, with nothing to train.

The object-state tier of a study: what a policy, a value function and their training take is tokens, whoever
made them. Shapes: N observations, F numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.config import ObjectConfig, VisionConfig
from recap_policy.vision import VisionTower


class ObjectTower(nn.Module):
    """(N, features) float32, each about -1..1 → (N, tokens, width): `group` numbers a token, each with sine
    and cosine of `octaves` frequencies, so that millimetres can be told in a range of a metre."""

    scale: Tensor

    def __init__(self, config: ObjectConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("scale", torch.ones(config.features))

    def forward(self, objects: Tensor) -> Tensor:
        own = self.config
        numbers = F.pad(objects * self.scale, (0, own.tokens * own.group - own.features))
        octaves = torch.arange(own.octaves, device=numbers.device)
        angle = numbers[..., None] * (math.pi * 2.0**octaves)
        waves = torch.cat([numbers[..., None], angle.sin(), angle.cos()], -1)
        return waves.reshape(len(numbers), own.tokens, own.width)


def make_tower(config: VisionConfig | ObjectConfig) -> VisionTower | ObjectTower:
    """The tower of a configuration, untrained."""
    return ObjectTower(config) if isinstance(config, ObjectConfig) else VisionTower(config)
