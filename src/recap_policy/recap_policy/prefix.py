"""From image tokens, state and text to what the backbone reads; shared by policy and value function."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recap_policy.attention import RMSNorm, linear
from recap_policy.backbone import TokenTable, unfilled
from recap_policy.config import BackboneConfig, PrefixConfig
from recap_policy.normalize import StateNormalizer
from recap_policy.tokens import FIRST_STATE_BIN, PAD, STATE, STATE_BINS, Tokenizer, vocabulary_size

_OCTAVES = (0.5, 1.0, 2.0, 4.0)  # periods of a state vector's Fourier features, per half range

Text = Sequence[str] | Tensor  # texts, or their ids (B, N) int64 padded with PAD (see Tokenizer.table)


class PrefixEmbedding(nn.Module):
    """Embeddings of `images`, `state` and `text`, all (B, tokens, width)."""

    def __init__(
        self, config: PrefixConfig, backbone: BackboneConfig, vision_width: int, vision_tokens: int,
        blank: bool = False,
    ) -> None:  # fmt: skip
        """blank: leave the table without memory, to be loaded (pretrained.py)."""
        super().__init__()
        dof, width = config.dof, backbone.width
        self.config, self.width = config, width
        self.normalizer = StateNormalizer(dof)
        with unfilled(blank):
            self.table = TokenTable(backbone.vocabulary or vocabulary_size(config.word_slots), width)
        if not blank:
            with torch.no_grad():
                # Neighbouring bins start out alike: the order of the numbers is known before training.
                self.table.weight[FIRST_STATE_BIN : FIRST_STATE_BIN + STATE_BINS] = _smooth(STATE_BINS, width)
        if config.state == "bins":
            self.joints = nn.Parameter(torch.randn(dof, width))
        else:
            self.state_projection = linear(dof * (1 + 2 * len(_OCTAVES)), width)
        self.image_norm = RMSNorm(vision_width)
        self.image_projection = linear(vision_width, width)
        self.image_count = config.cameras * vision_tokens
        self.state_count = 1 + dof if config.state == "bins" else 1
        # A pre-trained projection knows no cameras: there it starts from nothing.
        places = (config.cameras, vision_tokens, width)
        self.camera = nn.Parameter(torch.zeros(places) if blank else torch.randn(places) * 0.5)

    def images(self, features: Tensor) -> Tensor:
        """(B, cameras, tokens, vision_width) → (B, image_count, width)"""
        if features.shape[1] != self.config.cameras:
            raise ValueError(f"features of {features.shape[1]} cameras, wanted {self.config.cameras}")
        projected = self.image_projection(self.image_norm(features.type_as(self.camera)))
        return (projected + self.camera).flatten(1, 2)

    def state(self, state: Tensor) -> Tensor:
        """(B, dof) [rad; gripper 0..1] → (B, state_count, width).

        As bins: the word "State: " and one token per joint; between two bins' centres the embedding is
        interpolated, so that nothing finer than a bin is lost. As a vector: one token.
        """
        if self.config.state == "vector":
            place = self.normalizer.scaled(state)
            angle = place[..., None] * (math.pi * torch.tensor(_OCTAVES, device=state.device))
            features = torch.cat([place[..., None], angle.sin(), angle.cos()], -1)
            return self.state_projection(features.flatten(1).type_as(self.camera))[:, None]
        lower, fraction = self.normalizer.bins(state)
        below, above = self.text(FIRST_STATE_BIN + lower), self.text(FIRST_STATE_BIN + 1 + lower)
        values = torch.lerp(below, above, fraction[..., None].type_as(below)) + self.joints
        return torch.cat([self.text(lower.new_full((len(state), 1), STATE)), values], 1)

    def text(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Embeddings and output weights are tied, as in Gemma."""
        return self.table.logits(hidden)


def text_ids(text: Text, tokenizer: Tokenizer, limit: int) -> Tensor:
    """Texts or ready ids → (B, N) ids, without the columns that are padding in every row."""
    if isinstance(text, Tensor):
        used = int((text != PAD).sum(1).max()) if text.numel() else 0
        return text[:, :used]
    return tokenizer.table(text, limit)


def _smooth(count: int, width: int) -> Tensor:
    """(count, width): Fourier features of `count` places on [-1, 1], at most 16 periods across."""
    place = (torch.arange(count) + 0.5) / count * 2 - 1
    frequency = 0.25 * 64 ** torch.linspace(0, 1, width // 2)
    angle = math.pi * place[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1) * (2 / width) ** 0.5
