"""The value function: a smaller backbone over the same prefix, a distribution over normalised returns.

Eq. 1 of the paper: cross-entropy against the discretised Monte-Carlo return; the value is the expectation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import linear
from recap_policy.backbone import Backbone, prefix_mask, token_positions, unfilled
from recap_policy.config import ValueConfig
from recap_policy.prefix import PrefixEmbedding, Text, text_ids
from recap_policy.tokens import NEWLINE, PAD, TASK, VALUE, Tokenizer, wrap
from recap_policy.vision import VisionTower


class ValueModel(nn.Module):
    """Takes the policy's frozen image tokens, so that one pass of the tower serves both, or has a tower of
    its own (`encode_images`)."""

    centres: Tensor

    def __init__(
        self, config: ValueConfig, tokenizer: Tokenizer | None = None, *, blank: bool = False
    ) -> None:
        """blank: leave what real backbones fill without memory (pretrained.py)."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer or Tokenizer()
        if len(self.tokenizer.words) > config.prefix.word_slots:
            raise ValueError(
                f"tokenizer of {len(self.tokenizer.words)} words, wanted at most {config.prefix.word_slots}"
            )
        self.prefix = PrefixEmbedding(
            config.prefix, config.backbone, config.vision_width, config.vision_tokens, blank
        )
        with unfilled(blank):
            self.vision = VisionTower(config.vision) if config.vision else None
            self.backbone = Backbone(config.backbone)
        self.head = linear(config.backbone.width, config.bins, scale=0.1)
        self.register_buffer("centres", torch.linspace(-1.0, 0.0, config.bins), persistent=False)

    def fit_normalizers(self, states: Tensor) -> None:
        """states: (N, dof)"""
        self.prefix.normalizer.fit(states)

    def encode_images(self, images: Tensor) -> Tensor:
        """As VLA.encode_images, by the model's own tower. Raises ValueError where it has none."""
        if self.vision is None:
            raise ValueError(f"{self.config.name} has no tower of its own, wanted the policy's image tokens")
        return self.vision(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def logits(self, image_features: Tensor, state: Tensor, prompt: Text) -> Tensor:
        """(B, C, tokens, vision width), (B, dof), B prompts → (B, bins).

        Read from a token of its own behind everything else: never padding, whatever the prompts' lengths.
        """
        ids = wrap([TASK], text_ids(prompt, self.tokenizer, self.config.max_text), NEWLINE)
        ids = torch.cat([ids, ids.new_full((len(ids), 1), VALUE)], 1)
        images, states = self.prefix.images(image_features), self.prefix.state(state)
        before = ids.new_ones((len(ids), images.shape[1] + states.shape[1]), dtype=torch.bool)
        valid = torch.cat([before, ids != PAD], 1)
        x = torch.cat([images, states, self.prefix.text(ids)], 1)
        last = x.shape[1] - 1
        mask = prefix_mask(valid, images.shape[1])
        hidden, _ = self.backbone(x, token_positions(valid), mask, read=slice(last, last + 1))
        return self.head(hidden[:, 0]).float()

    def value(self, image_features: Tensor, state: Tensor, prompt: Text) -> Tensor:
        """(B,) expected normalised return, -1 .. 0."""
        return self.expectation(self.logits(image_features, state, prompt))

    def expectation(self, logits: Tensor) -> Tensor:
        """(…, bins) → (…,)"""
        return logits.softmax(-1) @ self.centres

    def two_hot(self, returns: Tensor) -> Tensor:
        """(B,) normalised returns → (B, bins): the two nearest bins, weighted so that the mean is the return.

        Raises ValueError outside -1 .. 0.
        """
        if not bool(((returns >= -1) & (returns <= 0)).all()):
            raise ValueError(
                f"returns from {float(returns.min()):.3f} to {float(returns.max()):.3f}, wanted -1 .. 0"
            )
        place = (returns + 1.0) * (self.config.bins - 1)
        lower = place.floor().clamp(max=self.config.bins - 2)
        above = (place - lower)[:, None]
        index = lower.long()[:, None]
        target = torch.zeros(len(returns), self.config.bins, device=returns.device)
        return target.scatter_(1, index, 1 - above).scatter_(1, index + 1, above)

    def loss(
        self,
        image_features: Tensor,
        state: Tensor,
        prompt: Text,
        returns: Tensor,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalars "loss" (cross-entropy, to minimise) and "error" (mean absolute, of the expectation)."""
        logits = self.logits(image_features, state, prompt)
        crossed = F.cross_entropy(logits, self.two_hot(returns), reduction="none")
        with torch.no_grad():
            error = (self.expectation(logits) - returns).abs().mean()
        return {"loss": (crossed if weight is None else crossed * weight).mean(), "error": error}
