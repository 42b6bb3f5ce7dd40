"""From an observation to chunks: the prefix is read once, then Euler steps run over the action expert alone.

Both branches of a guidance read the same cached keys and values; the one without the indicator masks the
indicator's. Shapes: B batch, T action tokens, H horizon, S prefix tokens, L new tokens, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recap_policy.attention import KeyValue
from recap_policy.backbone import prefix_mask, token_positions
from recap_policy.expert import Commitment
from recap_policy.prefix import Text
from recap_policy.rtc import Inpainting, Pull, pull_weight
from recap_policy.tokens import (
    FIRST_BYTE,
    FIRST_STATE_BIN,
    FIRST_WORD,
    INDICATORS,
    NEWLINE,
    PAD,
    SUBTASK,
    advantage_ids,
    wrap,
)

if TYPE_CHECKING:
    from recap_policy.vla import VLA

_INDICATOR_TOKENS = 2  # see advantage_ids


@dataclass(frozen=True)
class Sample:
    """actions: (B, H, dof) absolute joint commands, not yet clipped to limits; subtask: one text per row."""

    actions: Tensor
    subtask: list[str]


@dataclass
class Context:
    """The prefix as far as it has been read: keys and values of every layer, and which of them are tokens."""

    cache: list[KeyValue]
    valid: Tensor  # (B, S) bool


def sample(
    model: VLA,
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
    inpainting: Inpainting | None = None,
) -> Sample:
    """Chunks from noise in `steps` Euler steps.

    indicator: "positive", "negative" or "" (unconditioned). beta: guidance on the velocity,
    f = f_none + β (f_indicator - f_none); at 1 only the conditioned branch is computed. subtask: texts to
    take instead of decoding them. guess: texts that are probably decoded, such as the last ones: where
    right, all is read in one pass; the result is the same either way. noise: (B, T, dof) instead of
    `generator`.

    Real-time chunking, in two forms that both go with any beta, as both branches see them. committed:
    (B, n, dof) commands that the robot carries out from this observation on, whatever is sampled; told to an
    expert that was trained to continue them (arXiv 2512.05964). inpainting: asks nothing of the training and
    costs a backward pass through the expert a step (arXiv 2506.07339). The chunks begin with the commands
    that are carried out.

    Raises ValueError on an unknown indicator, and on more committed steps than the model was trained for.
    """
    if indicator not in INDICATORS:
        raise ValueError(f"indicator is {indicator!r}, wanted one of {list(INDICATORS)}")
    # What is made in inference mode cannot take part in the backward pass of an in-painting.
    with torch.inference_mode(inpainting is None), torch.no_grad():
        pull = None if inpainting is None else Pull(model.codec, inpainting, state)
        ids = model._prompt(prompt)
        code = torch.full((len(state),), INDICATORS[indicator], device=state.device)
        context, texts = _read(model, image_features, state, ids, code, subtask, guess)
        seen = _branches(context.valid, both=bool(indicator) and beta != 1.0)
        if noise is None:
            shape = len(state), model.config.action_tokens, model.config.prefix.dof
            noise = torch.randn(shape, generator=generator)
        commitment, begin = _commitment(model, committed, state)
        x = _denoise(model, context, seen, noise.to(state), commitment, begin, beta, steps, pull)
        x = model.codec.clamp(x)
        actions = model.codec.decode(x if pull is None else pull.hold(x), state)
        decided = [] if inpainting is None else [inpainting.previous[:, : inpainting.frozen]]
        for first in [*decided, *([] if committed is None else [committed])]:
            actions = torch.cat([first.to(actions), actions[:, first.shape[1] :]], 1)
    return Sample(actions, texts)


def _branches(valid: Tensor, both: bool) -> Tensor:
    """(B, S) → (B, 1 or 2, S): what the conditioned branch reads and, of that, what the other does."""
    if not both:
        return valid[:, None]
    unconditioned = valid.clone()
    unconditioned[:, -_INDICATOR_TOKENS:] = False
    return torch.stack([valid, unconditioned], 1)


def _denoise(
    model: VLA,
    context: Context,
    seen: Tensor,
    x: Tensor,
    commitment: Commitment,
    begin: Tensor,
    beta: float,
    steps: int,
    pull: Pull | None,
) -> Tensor:
    """noise x (B, T, dof) → actions, normalised. begin: (B, T, dof) holds what `commitment` calls clean."""
    plan = model.expert.plan(seen, seen.sum(2))

    def velocity(x: Tensor, now: float) -> Tensor:
        flow_time = torch.full(seen.shape[:2], now, device=x.device)
        draws = x[:, None].expand(-1, seen.shape[1], -1, -1)
        found = model.expert(draws, flow_time, context.cache, plan, commitment)
        if seen.shape[1] == 1:
            return found[:, 0]
        return found[:, 1] + beta * (found[:, 0] - found[:, 1])

    def held(x: Tensor) -> Tensor:
        return commitment.hold(x[:, None], begin[:, None])[:, 0]

    for step in range(steps):
        now = 1 - step / steps
        if pull is None:
            x = x - velocity(held(x), now) / steps
            continue
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            towards = velocity(held(x), now)
            denoised = x - now * towards
        (pulled,) = torch.autograd.grad(denoised, x, pull(held(denoised.detach())))
        x = x.detach() - (towards.detach() - pull_weight(now, pull.greatest) * pulled) / steps
    return held(x)


def _commitment(model: VLA, committed: Tensor | None, state: Tensor) -> tuple[Commitment, Tensor]:
    """What the expert is told, and the chunk that begins with it, normalised (B, T, dof)."""
    codec, most = model.codec, model.config.committed
    if committed is None or committed.shape[1] == 0:
        return Commitment(), state.new_zeros(len(state), model.config.action_tokens, state.shape[1])
    count = committed.shape[1]
    if count > most:
        raise ValueError(f"{count} committed steps, wanted at most the model's {most}")
    chunk = F.pad(committed, (0, 0, 0, model.config.horizon - count))
    counts = torch.full((len(state),), count, device=state.device)
    return model.commitment(chunk, counts, state), codec.encode(chunk, state)


# The prefix and the sub-task


def _read(
    model: VLA,
    features: Tensor,
    state: Tensor,
    prompt: Tensor,
    code: Tensor,
    subtask: Sequence[str] | None,
    guess: Sequence[str] | None,
) -> tuple[Context, list[str]]:
    expected, sure = (guess, False) if subtask is None else (subtask, True)
    if expected is not None:
        context = _read_all(model, features, state, prompt, expected, code, sure)
        if context is not None:
            return context, list(expected)
    return _read_and_decode(model, features, state, prompt, code)


def _read_all(
    model: VLA,
    features: Tensor,
    state: Tensor,
    prompt: Tensor,
    expected: Sequence[str],
    code: Tensor,
    sure: bool,
) -> Context | None:
    """The whole prefix in one pass, with the sub-task texts `expected`; None, unless `sure`, where the
    model itself would have written others."""
    limit = model.config.max_text
    if not sure and any(len(model.tokenizer.encode(text)) > limit for text in expected):
        return None
    subtask = wrap([SUBTASK], model.tokenizer.table(expected, limit).to(state.device), NEWLINE)
    start, valid, x = model._embed(features, state, prompt, subtask, advantage_ids(code))
    read = slice(start, start + subtask.shape[1] - 1)
    mask = prefix_mask(valid, model._image_tokens)
    hidden, cache = model.backbone(x, token_positions(valid), mask, read=read)
    target = subtask[:, 1:]
    if sure or bool(((_greedy(model, hidden) == target) | (target == PAD)).all()):
        return Context(cache, valid)
    return None


def _read_and_decode(
    model: VLA, features: Tensor, state: Tensor, prompt: Tensor, code: Tensor
) -> tuple[Context, list[str]]:
    """The prefix with the sub-task text that the model writes, token by token."""
    cue = prompt.new_full((len(state), 1), SUBTASK)
    start, valid, x = model._embed(features, state, prompt, cue)
    mask = prefix_mask(valid, model._image_tokens)
    hidden, cache = model.backbone(x, token_positions(valid), mask, read=slice(start, start + 1))
    context = Context(cache, valid)
    written: list[Tensor] = []
    done = torch.zeros(len(state), dtype=torch.bool, device=state.device)
    while True:
        token = _greedy(model, hidden[:, -1])
        if len(written) == model.config.max_text:
            token = torch.full_like(token, NEWLINE)
        token = torch.where(done, PAD, token)
        written.append(token)
        done = done | (token == NEWLINE)
        if bool(done.all()):
            context, _ = _extend(model, context, torch.cat([token[:, None], advantage_ids(code)], 1))
            return context, [model.tokenizer.decode(row) for row in torch.stack(written, 1).tolist()]
        context, hidden = _extend(model, context, token[:, None])


def _greedy(model: VLA, hidden: Tensor) -> Tensor:
    """(…, W) → (…) the likeliest token of a text: a byte, a word or the newline that ends it."""
    logits = model.prefix.logits(hidden)
    logits[..., :NEWLINE] = logits[..., NEWLINE + 1 : FIRST_BYTE] = -torch.inf
    logits[..., FIRST_STATE_BIN:FIRST_WORD] = -torch.inf
    logits[..., FIRST_WORD + len(model.tokenizer.words) :] = -torch.inf
    return logits.argmax(-1)


def _extend(model: VLA, context: Context, ids: Tensor) -> tuple[Context, Tensor]:
    """Read (B, L) more ids, causally; hidden states (B, L, W)."""
    new = ids != PAD
    valid = torch.cat([context.valid, new], 1)
    mask = torch.cat([context.valid[:, None].expand(-1, ids.shape[1], -1), prefix_mask(new, 0)], 2)
    hidden, cache = model.backbone(model.prefix.text(ids), token_positions(valid), mask, past=context.cache)
    return Context(cache, valid), hidden


class SubtaskMemory:
    """Sub-tasks at a lower rate than chunks (π0.6): which texts stand, and when they are predicted anew.

    every: chunks that one prediction serves; at_most_s: seconds that it serves. With `every` 1 each chunk
    predicts, and the last texts are only a guess, which costs a pass where it is wrong and changes nothing.
    """

    def __init__(
        self, every: int = 1, at_most_s: float = math.inf, now: Callable[[], float] = time.monotonic
    ) -> None:
        if every < 1 or not at_most_s > 0:
            raise ValueError(f"a sub-task for {every} chunks, {at_most_s} s, wanted at least 1, above 0")
        self.every, self.at_most_s, self._now = every, at_most_s, now
        self.clear()

    def clear(self) -> None:
        """Forget the texts: the next chunk predicts."""
        self._prompts: list[str] = []
        self._texts: list[str] = []
        self._served, self._since = 0, 0.0

    def recall(self, prompts: Sequence[str]) -> tuple[list[str] | None, list[str] | None]:
        """→ `subtask` and `guess` for `sample`: texts that stand, or else a guess, or neither."""
        if not self._texts or list(prompts) != self._prompts:
            return None, None
        if self._served < self.every and self._now() - self._since < self.at_most_s:
            return self._texts, None
        return None, self._texts

    def keep(self, prompts: Sequence[str], texts: Sequence[str], predicted: bool) -> None:
        """Note what a chunk was sampled with, and whether the model predicted it or it was recalled."""
        if predicted:
            self._prompts, self._texts = list(prompts), list(texts)
            self._served, self._since = 0, self._now()
        self._served += 1
