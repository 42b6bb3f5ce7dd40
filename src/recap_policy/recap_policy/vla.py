"""The vision-language-action policy: π0.6's shape, π*0.6's advantage indicator, loss and sampler.

Prompt layout: tokens.py. Convention of the flow's time: expert.py. Shapes: B batch, C cameras, K draws,
T action tokens, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recap_policy.attention import KeyValue
from recap_policy.backbone import Backbone, prefix_mask, token_positions, unfilled
from recap_policy.config import VLAConfig
from recap_policy.expert import ActionExpert, draw_time
from recap_policy.normalize import ActionCodec
from recap_policy.prefix import PrefixEmbedding, Text, text_ids
from recap_policy.tokens import (
    FIRST_BYTE,
    FIRST_STATE_BIN,
    FIRST_WORD,
    INDICATORS,
    NEWLINE,
    PAD,
    SUBTASK,
    TASK,
    Tokenizer,
    advantage_ids,
    wrap,
)
from recap_policy.vision import VisionTower

_INDICATOR_TOKENS = 2  # see advantage_ids


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


@dataclass(frozen=True)
class Sample:
    """actions: (B, H, dof) absolute joint commands, not yet clipped to limits; subtask: one text per row."""

    actions: Tensor
    subtask: list[str]


@dataclass
class _Context:
    """The prefix as far as it has been read: keys and values of every layer, and which of them are tokens."""

    cache: list[KeyValue]
    valid: Tensor  # (B, S) bool


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
        self.codec = ActionCodec(dof, config.horizon, tokens, config.action_basis, config.committed)
        self.expert = ActionExpert(
            config.expert, config.backbone, dof, tokens, config.committed * (dof + 1)
        )

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
        committed = None
        if self.config.committed:
            steps = torch.randint(self.config.committed + 1, (rows,), generator=generator).to(actions.device)
            ahead = batch.actions[:, : self.config.committed]
            committed = self.codec.commitment(ahead, steps, batch.state)
        velocity = self.expert(t * noise + (1 - t) * actions, time, cache, plan, committed)
        error = (velocity - (noise - actions)).square() * self.codec.importance
        flow = (error.mean((1, 2, 3)) * weight).mean()
        return {"loss": flow + total, "flow": flow.detach(), **losses}

    def _crossed(self, hidden: Tensor, target: Tensor) -> Tensor:
        """(B, n, W) and the ids that follow (B, n) → (B,) cross-entropy per token that is no padding."""
        logits = self.prefix.logits(hidden).float()
        crossed = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=PAD, reduction="none")
        return crossed.sum(1) / (target != PAD).sum(1).clamp_min(1)

    # Sampling

    @torch.inference_mode()
    def sample(
        self,
        image_features: Tensor,
        state: Tensor,
        prompt: Text,
        indicator: str = "positive",
        beta: float = 1.0,
        steps: int = 5,
        subtask: Sequence[str] | None = None,
        guess: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        committed: Tensor | None = None,
    ) -> Sample:
        """Chunks from noise in `steps` Euler steps.

        indicator: "positive", "negative" or "" (unconditioned). beta: guidance on the velocity,
        f = f_none + β (f_indicator - f_none); at 1 only the conditioned branch is computed. subtask: texts to
        take instead of decoding them. guess: texts that are probably decoded, such as the last ones: where
        right, all is read in one pass; the result is the same either way. noise: (B, T, dof) instead of
        `generator`. committed: (B, n, dof) commands that the robot carries out from this observation on,
        whatever is sampled; the chunks begin with them and go on from there, in both branches of a guidance.
        Raises ValueError on an unknown indicator, and on more committed steps than the model was trained for.
        """
        if indicator not in INDICATORS:
            raise ValueError(f"indicator is {indicator!r}, wanted one of {list(INDICATORS)}")
        ids = self._prompt(prompt)
        code = torch.full((len(state),), INDICATORS[indicator], device=state.device)
        expected, sure = (guess, False) if subtask is None else (subtask, True)
        found = None if expected is None else self._read_all(image_features, state, ids, expected, code, sure)
        if found is None:
            context, texts = self._read_and_decode(image_features, state, ids, code)
        else:
            context, texts = found, list(expected or ())
        branches = [context.valid]
        if indicator and beta != 1.0:
            # The branch without the indicator reads the same keys and values, less the indicator's.
            unconditioned = context.valid.clone()
            unconditioned[:, -_INDICATOR_TOKENS:] = False
            branches.append(unconditioned)
        seen = torch.stack(branches, 1)
        plan = self.expert.plan(seen, seen.sum(2))

        if noise is None:
            noise = torch.randn(
                len(state), self.config.action_tokens, self.config.prefix.dof, generator=generator
            )
        commitment = self._commitment(committed, state)
        x = noise.to(state)
        for step in range(steps):
            time = torch.full(seen.shape[:2], 1 - step / steps, device=state.device)
            both = x[:, None].expand(-1, len(branches), -1, -1)
            velocity = self.expert(both, time, context.cache, plan, commitment)
            guided = velocity[:, 0]
            if len(branches) == 2:
                guided = velocity[:, 1] + beta * (velocity[:, 0] - velocity[:, 1])
            x = x - guided / steps
        actions = self.codec.decode(self.codec.clamp(x), state)
        if commitment is not None and committed is not None:
            actions = torch.cat([committed, actions[:, committed.shape[1] :]], 1)
        return Sample(actions, texts)

    def _commitment(self, committed: Tensor | None, state: Tensor) -> Tensor | None:
        if committed is None or committed.shape[1] == 0:
            return None
        count, most = committed.shape[1], self.config.committed
        if count > most:
            raise ValueError(f"{count} committed steps, wanted at most the model's {most}")
        steps = F.pad(committed, (0, 0, 0, most - count))
        return self.codec.commitment(steps, torch.full((len(state),), count, device=state.device), state)

    def _read_all(
        self,
        features: Tensor,
        state: Tensor,
        prompt: Tensor,
        expected: Sequence[str],
        code: Tensor,
        sure: bool,
    ) -> _Context | None:
        """The whole prefix in one pass, with the sub-task texts `expected`; None, unless `sure`, where the
        model itself would have written others."""
        limit = self.config.max_text
        if not sure and any(len(self.tokenizer.encode(text)) > limit for text in expected):
            return None
        subtask = wrap([SUBTASK], self.tokenizer.table(expected, limit).to(state.device), NEWLINE)
        start, valid, x = self._embed(features, state, prompt, subtask, advantage_ids(code))
        read = slice(start, start + subtask.shape[1] - 1)
        mask = prefix_mask(valid, self._image_tokens)
        hidden, cache = self.backbone(x, token_positions(valid), mask, read=read)
        target = subtask[:, 1:]
        if sure or bool(((self._greedy(hidden) == target) | (target == PAD)).all()):
            return _Context(cache, valid)
        return None

    def _read_and_decode(
        self, features: Tensor, state: Tensor, prompt: Tensor, code: Tensor
    ) -> tuple[_Context, list[str]]:
        """The prefix with the sub-task text that the model writes, token by token."""
        cue = prompt.new_full((len(state), 1), SUBTASK)
        start, valid, x = self._embed(features, state, prompt, cue)
        mask = prefix_mask(valid, self._image_tokens)
        hidden, cache = self.backbone(x, token_positions(valid), mask, read=slice(start, start + 1))
        context = _Context(cache, valid)
        written: list[Tensor] = []
        done = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        while True:
            token = self._greedy(hidden[:, -1])
            if len(written) == self.config.max_text:
                token = torch.full_like(token, NEWLINE)
            token = torch.where(done, PAD, token)
            written.append(token)
            done = done | (token == NEWLINE)
            if bool(done.all()):
                context, _ = self._extend(context, torch.cat([token[:, None], advantage_ids(code)], 1))
                return context, [self.tokenizer.decode(row) for row in torch.stack(written, 1).tolist()]
            context, hidden = self._extend(context, token[:, None])

    def _greedy(self, hidden: Tensor) -> Tensor:
        """(…, W) → (…) the likeliest token of a text: a byte, a word or the newline that ends it."""
        logits = self.prefix.logits(hidden)
        logits[..., :NEWLINE] = logits[..., NEWLINE + 1 : FIRST_BYTE] = -torch.inf
        logits[..., FIRST_STATE_BIN:FIRST_WORD] = -torch.inf
        logits[..., FIRST_WORD + len(self.tokenizer.words) :] = -torch.inf
        return logits.argmax(-1)

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

    def _extend(self, context: _Context, ids: Tensor) -> tuple[_Context, Tensor]:
        """Read (B, n) more ids, causally; hidden states (B, n, W)."""
        new = ids != PAD
        valid = torch.cat([context.valid, new], 1)
        mask = torch.cat([context.valid[:, None].expand(-1, ids.shape[1], -1), prefix_mask(new, 0)], 2)
        hidden, cache = self.backbone(self.prefix.text(ids), token_positions(valid), mask, past=context.cache)
        return _Context(cache, valid), hidden


def drop_indicator(indicator: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """(B,) codes with a share `rate` of them, each on its own, set to -1 (absent)."""
    dropped = torch.rand(len(indicator), generator=generator).to(indicator.device) < rate
    return torch.where(dropped, -1, indicator.long())
