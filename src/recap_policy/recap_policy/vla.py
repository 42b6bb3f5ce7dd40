"""The vision-language-action policy: π0.6's shape, π*0.6's advantage indicator and loss.

Prompt layout: tokens.py. Sampling: sampling.py. Convention of the flow's time: expert.py. Shapes: B batch,
C cameras, K draws, T action tokens, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy import sampling
from recap_policy.backbone import Backbone, prefix_mask, token_positions, unfilled
from recap_policy.config import VLAConfig
from recap_policy.expert import ActionExpert, Commitment, draw_time
from recap_policy.normalize import ActionCodec
from recap_policy.prefix import PrefixEmbedding, Text, text_ids
from recap_policy.tokens import (
    NEWLINE,
    PAD,
    SUBTASK,
    TASK,
    Tokenizer,
    advantage_ids,
    wrap,
)
from recap_policy.vision import VisionTower


@dataclass(frozen=True)
class Batch:
    """Training examples. Texts as strings, or as ids padded with PAD, which costs nothing per batch."""

    image_features: Tensor  # (B, C, tokens, vision width) from VLA.encode_images
    state: Tensor  # (B, dof) measured [rad; gripper 0..1]
    prompt: Text
    subtask: Text
    indicator: Tensor  # (B,) int: 1 positive, 0 negative, -1 absent
    actions: Tensor  # (B, H, dof) absolute joint commands from the observation's tick on
    weight: Tensor | None = None  # (B,) of mean about 1; None: all alike
    fast: Tensor | None = None  # (B, N) ids of the actions' FAST tokens: cue first, end mark last, then PAD

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})


class VLA(nn.Module):
    def __init__(
        self, config: VLAConfig, tokenizer: Tokenizer | None = None, *, blank: bool = False
    ) -> None:
        """blank: leave what real backbones fill without memory (pretrained.py)."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer or Tokenizer()
        if len(self.tokenizer.words) > config.prefix.word_slots:
            raise ValueError(
                f"tokenizer of {len(self.tokenizer.words)} words, wanted at most {config.prefix.word_slots}"
            )
        with unfilled(blank):
            self.vision = VisionTower(config.vision)
        self.prefix = PrefixEmbedding(
            config.prefix, config.backbone, config.vision.width, config.vision.tokens, blank
        )
        with unfilled(blank):
            self.backbone = Backbone(config.backbone)
        dof, tokens = config.prefix.dof, config.action_tokens
        told = config.committed * (dof + 1) if config.action_basis == "dct" else 0
        self.codec = ActionCodec(dof, config.horizon, tokens, config.action_basis, config.committed)
        self.expert = ActionExpert(config.expert, config.backbone, dof, tokens, told)

    def fit_normalizers(self, chunks: Tensor, states: Tensor, is_gripper: Tensor) -> None:
        """Statistics of the data. chunks: (N, H, dof); states: (N, dof); is_gripper: (dof,) bool."""
        self.codec.fit(chunks, states, is_gripper)
        self.prefix.normalizer.fit(states)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, C, H, W, 3) uint8 → (B, C, tokens, vision width) float32. Freeze the tower and cache these."""
        return self.vision(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    # Training

    def loss(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        draws: int = 4,
        indicator_dropout: float | None = None,
    ) -> dict[str, Tensor]:
        """Scalars "loss" (to minimise), "flow", "subtask" and, where the batch has FAST tokens, "fast".

        `draws` noise samples and times share each example's prefix. The indicator is left out of a share
        `indicator_dropout` of the examples (None: the configuration's), drawn from `generator`, as are noise
        and times. The indicator's own tokens bear no loss. Of each example's actions 0 to `committed`, drawn
        evenly, are told to the expert as already decided.
        """
        rate = self.config.indicator_dropout if indicator_dropout is None else indicator_dropout
        indicator = drop_indicator(batch.indicator, rate, generator)
        prompt = self._prompt(batch.prompt)
        subtask = wrap([SUBTASK], text_ids(batch.subtask, self.tokenizer, self.config.max_text), NEWLINE)
        advantage = advantage_ids(indicator)
        tokens = [] if batch.fast is None else [batch.fast]
        start, valid, x = self._embed(batch.image_features, batch.state, prompt, subtask, advantage, *tokens)
        mask = prefix_mask(valid, self._image_tokens)
        stop = start + subtask.shape[1]
        read = slice(start, stop - 1 if batch.fast is None else x.shape[1] - 1)
        hidden, cache = self.backbone(x, token_positions(valid), mask, read=read)
        rows = len(batch.state)
        weight = torch.ones(rows, device=x.device) if batch.weight is None else batch.weight
        text = (self._crossed(hidden[:, : stop - start - 1], subtask[:, 1:]) * weight).mean()
        losses = {"subtask": text.detach()}
        total = self.config.subtask_weight * text
        if batch.fast is not None:
            count = batch.fast.shape[1]
            fast = (self._crossed(hidden[:, 1 - count :], batch.fast[:, 1:]) * weight).mean()
            losses["fast"] = fast.detach()
            total = total + self.config.fast_weight * fast
            # The expert is blind to the FAST tokens: actions are predicted twice, each on its own.
            valid = valid[:, :-count]
            cache = [(keys[:, :, :-count], values[:, :, :-count]) for keys, values in cache]

        if self.config.insulate:
            cache = [(keys.detach(), values.detach()) for keys, values in cache]
        actions = self.codec.encode(batch.actions, batch.state)[:, None].expand(-1, draws, -1, -1)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        time = draw_time((rows, draws), generator).to(actions)
        t = time[..., None, None]
        plan = self.expert.plan(valid[:, None].expand(-1, draws, -1), valid.sum(1)[:, None].expand(-1, draws))
        committed = Commitment()
        if self.config.committed:
            steps = torch.randint(self.config.committed + 1, (rows,), generator=generator).to(actions.device)
            committed = self.commitment(batch.actions, steps, batch.state)
        noisy = committed.hold(t * noise + (1 - t) * actions, actions)
        velocity = self.expert(noisy, time, cache, plan, committed)
        flow = (committed.mean((velocity - (noise - actions)).square()) * weight).mean()
        return {"loss": flow + total, "flow": flow.detach(), **losses}

    def commitment(self, actions: Tensor, count: Tensor, state: Tensor) -> Commitment:
        """actions: (B, n, dof) absolute commands, of which the first count (B,) <= `committed` are decided;
        state: (B, dof)."""
        if self.config.action_basis == "steps":
            token = torch.arange(self.config.action_tokens, device=count.device)
            return Commitment(clean=token < count[:, None])
        return Commitment(told=self.codec.commitment(actions[:, : self.config.committed], count, state))

    def _crossed(self, hidden: Tensor, target: Tensor) -> Tensor:
        """(B, n, W) and the ids that follow (B, n) → (B,) cross-entropy per token that is no padding."""
        logits = self.prefix.logits(hidden).float()
        crossed = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=PAD, reduction="none")
        return crossed.sum(1) / (target != PAD).sum(1).clamp_min(1)

    sample = sampling.sample

    # The prefix

    @property
    def _image_tokens(self) -> int:
        return self.prefix.image_count

    def _prompt(self, prompt: Text) -> Tensor:
        return wrap([TASK], text_ids(prompt, self.tokenizer, self.config.max_text), NEWLINE)

    def _embed(self, features: Tensor, state: Tensor, *texts: Tensor) -> tuple[int, Tensor, Tensor]:
        """→ where the second text starts, which tokens are no padding (B, L), embeddings (B, L, W)."""
        ids = torch.cat(texts, 1)
        before = self._image_tokens + self.prefix.state_count
        valid = torch.cat([ids.new_ones((len(ids), before), dtype=torch.bool), ids != PAD], 1)
        x = torch.cat([self.prefix.images(features), self.prefix.state(state), self.prefix.text(ids)], 1)
        return before + texts[0].shape[1], valid, x


def drop_indicator(indicator: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """(B,) codes with a share `rate` of them, each on its own, set to -1 (absent)."""
    dropped = torch.rand(len(indicator), generator=generator).to(indicator.device) < rate
    return torch.where(dropped, -1, indicator.long())
