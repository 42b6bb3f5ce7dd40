"""The value function: a smaller backbone over the same prefix, a distribution over normalised returns.

Eq. 1 of the paper: cross-entropy against the discretised Monte-Carlo return; the value is the expectation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import linear
from recap_policy.backbone import Backbone, unfilled
from recap_policy.config import ValueConfig
from recap_policy.prefix import InputError, Metadata, PrefixEmbedding, check_images, own_tokenizer
from recap_policy.prompt import Layout
from recap_policy.text import TextTokenizer
from recap_policy.vision import VisionTower


class ValueModel(nn.Module):
    """Takes the policy's frozen image tokens, so that one pass of the tower serves both, or has a tower of
    its own (`encode_images`)."""

    centres: Tensor

    def __init__(
        self, config: ValueConfig, tokenizer: TextTokenizer | None = None, *, blank: bool = False
    ) -> None:
        """tokenizer: as VLA's. blank: leave what real backbones fill without memory (pretrained.py)."""
        super().__init__()
        self.config = config
        self.tokenizer = own_tokenizer(tokenizer, config.backbone, config.prefix)
        layout = Layout(self.tokenizer, prompt_limit=config.max_text) if self.tokenizer else None
        self.prefix = PrefixEmbedding(
            config.prefix, config.backbone, config.vision_width, config.vision_tokens, layout, blank
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
        """As VLA.encode_images, by the model's own tower. Raises InputError where it has none."""
        if self.vision is None:
            raise InputError(f"{self.config.name} has no tower of its own, wanted the policy's image tokens")
        check_images(images, self.config.prefix.cameras, self.vision.config.image_size)
        return self.vision(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def logits(
        self,
        image_features: Tensor,
        state: Tensor,
        prompt: Sequence[str],
        metadata: Metadata = None,
        camera_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, C, tokens, vision width), (B, dof), B prompts → (B, bins). camera_mask: (B, C) bool, as
        Batch's. Raises as VLA.loss does.

        Read from the last of the value's cue, behind everything else: never padding, whatever the prompts'
        lengths.
        """
        cue = self.prefix.layout.value_cue
        rows = [row + cue for row in self.prefix.prompts(prompt, state, metadata)]
        prefix = self.prefix(image_features, state, rows, camera_mask)
        first, stop = int(prefix.last.min()), int(prefix.last.max()) + 1
        hidden, _ = self.backbone(prefix.x, prefix.positions, prefix.mask, read=slice(first, stop))
        own = torch.arange(len(rows), device=state.device), prefix.last - first
        return self.head(hidden[own]).float()

    def value(
        self,
        image_features: Tensor,
        state: Tensor,
        prompt: Sequence[str],
        metadata: Metadata = None,
        camera_mask: Tensor | None = None,
    ) -> Tensor:
        """(B,) expected normalised return, -1 .. 0. Arguments: those of `logits`."""
        return self.expectation(self.logits(image_features, state, prompt, metadata, camera_mask))

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
        prompt: Sequence[str],
        returns: Tensor,
        weight: Tensor | None = None,
        metadata: Metadata = None,
        camera_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalars "loss" (cross-entropy, to minimise) and "error" (mean absolute, of the expectation)."""
        logits = self.logits(image_features, state, prompt, metadata, camera_mask)
        crossed = F.cross_entropy(logits, self.two_hot(returns), reduction="none")
        with torch.no_grad():
            error = (self.expectation(logits) - returns).abs().mean()
        return {"loss": (crossed if weight is None else crossed * weight).mean(), "error": error}
