"""From image tokens, state and text to what the backbone reads; shared by policy and value function."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import RMSNorm, linear
from recap_policy.normalize import StateNormalizer
from recap_policy.tokens import FIRST_STATE_BIN, PAD, STATE, STATE_BINS, Tokenizer, vocabulary_size

Text = Sequence[str] | Tensor  # texts, or their ids (B, N) int64 padded with PAD (see Tokenizer.table)


class PrefixEmbedding(nn.Module):
    """Embeddings of `images`, `state` and `text`, all (B, tokens, width)."""

    def __init__(self, width: int, vision_width: int, cameras: int, dof: int, word_slots: int) -> None:
        super().__init__()
        self.width, self.cameras, self.dof = width, cameras, dof
        self.normalizer = StateNormalizer(dof)
        self.table = nn.Embedding(vocabulary_size(word_slots), width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        with torch.no_grad():
            # Neighbouring bins start out alike: the order of the numbers is known before training.
            self.table.weight[FIRST_STATE_BIN : FIRST_STATE_BIN + STATE_BINS] = _smooth(STATE_BINS, width)
        self.joints = nn.Parameter(torch.randn(dof, width))
        self.image_norm = RMSNorm(vision_width)
        self.image_projection = linear(vision_width, width)
        self.camera = nn.Parameter(torch.randn(cameras, width) * 0.5)

    def images(self, features: Tensor) -> Tensor:
        """(B, cameras, tokens, vision_width) → (B, cameras · tokens, width)"""
        if features.shape[1] != self.cameras:
            raise ValueError(f"features of {features.shape[1]} cameras, wanted {self.cameras}")
        projected = self.image_projection(self.image_norm(features))
        return (projected + self.camera[:, None]).flatten(1, 2)

    def state(self, state: Tensor) -> Tensor:
        """(B, dof) [rad; gripper 0..1] → (B, 1 + dof, width): the word "State: " and one token per joint.

        Between two bins' centres the embedding is interpolated, so that nothing finer than a bin is lost.
        """
        lower, fraction = self.normalizer.bins(state)
        below, above = self.text(FIRST_STATE_BIN + lower), self.text(FIRST_STATE_BIN + 1 + lower)
        values = torch.lerp(below, above, fraction[..., None]) + self.joints
        return torch.cat([self.text(lower.new_full((len(state), 1), STATE)), values], 1)

    def text(self, ids: Tensor) -> Tensor:
        return self.table(ids) * math.sqrt(self.width)

    def logits(self, hidden: Tensor) -> Tensor:
        """Embeddings and output weights are tied, as in Gemma."""
        return F.linear(hidden, self.table.weight)


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
