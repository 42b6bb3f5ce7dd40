"""Models of the real code at toy widths, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

import torch

from recap_policy.config import BackboneConfig, VisionConfig, VLAConfig
from recap_policy.reference import Shape
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA

VOCABULARY = 2000  # more than the small tokenizer's, as Gemma 3 4B's table has rows that no text has


def tiny_policy() -> VLAConfig:
    """`tiny`, with half the layers."""
    tiny = vla_config("tiny")
    return replace(tiny, backbone=replace(tiny.backbone, width=64, layers=2, mlp=96))


def gemma_backbone(whole: BackboneConfig) -> BackboneConfig:
    """Seven layers, of which the sixth is global; a window shorter than the prompt."""
    return replace(whole, width=48, layers=7, head_dim=16, mlp=64, window=8, vocabulary=VOCABULARY)


def siglip(whole: VisionConfig) -> VisionConfig:
    size = 4 * whole.patch
    return replace(whole, image_size=size, width=32, layers=2, heads=4, mlp=48, pool=min(whole.pool, 2))


def gemma_policy(name: str) -> VLAConfig:
    """A named configuration with Gemma's vocabulary, in shape itself."""
    whole = vla_config(name)
    return replace(
        whole,
        vision=siglip(whole.vision),
        backbone=gemma_backbone(whole.backbone),
        expert=replace(whole.expert, width=32, mlp=48),
        prefix=replace(whole.prefix, action_codes=1000),
        max_subtask=12,
    )


def policy_of(*folders: Shape) -> VLAConfig:
    """`pi06` at the sizes that folders of decoder and tower describe."""
    whole = vla_config("pi06")
    backbone = next(shape.backbone for shape in folders if shape.backbone)
    vision = next(shape.vision for shape in folders if shape.vision)
    return replace(whole, vision=vision, backbone=backbone, expert=replace(whole.expert, width=32, mlp=48))


def opened(model: VLA) -> VLA:
    """With the expert's gates open, so that everything reaches the actions before any training."""
    for parameter in model.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model
