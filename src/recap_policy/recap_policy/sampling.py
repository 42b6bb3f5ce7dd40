"""From an observation to chunks: the prefix is read once, then Euler steps run over the action expert alone.

Both branches of a guidance read the same cached keys and values; the one without the indicator masks the
indicator's. Shapes: B batch, T action tokens, H horizon, S prefix tokens, L new tokens, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recap_policy.attention import KeyValue
from recap_policy.backbone import prefix_mask, token_positions
from recap_policy.expert import Commitment
from recap_policy.prefix import InputError, Metadata, span
from recap_policy.prompt import Row
from recap_policy.rtc import Inpainting, Pull, pull_weight

if TYPE_CHECKING:
    from recap_policy.vla import VLA


@dataclass(frozen=True)
class Sample:
    """actions: (B, H, dof) absolute joint commands, not yet clipped to limits; subtask: one text per row."""

    actions: Tensor
    subtask: list[str]


@dataclass
class Context:
    """The prefix as far as it has been read: keys and values of every layer, and what they are of."""

    cache: list[KeyValue]
    valid: Tensor  # (B, S) bool: no padding
    indicator: Tensor  # (B, S) bool


def sample(
    model: VLA,
    image_features: Tensor,
    state: Tensor,
    prompt: Sequence[str],
    indicator: str = "positive",
    beta: float = 1.0,
    steps: int = 5,
    subtask: Sequence[str] | None = None,
    guess: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    committed: Tensor | None = None,
    metadata: Metadata = None,
    inpainting: Inpainting | None = None,
    camera_mask: Tensor | None = None,
) -> Sample:
    """Chunks from noise in `steps` Euler steps.

    indicator: "positive", "negative" or "" (unconditioned). beta: guidance on the velocity,
    f = f_none + β (f_indicator - f_none); at 1 only the conditioned branch is computed. subtask: texts to
    take instead of decoding them. guess: texts that are probably decoded, such as the last ones: where
    right, all is read in one pass; the result is the same either way. noise: (B, T, dof) of unit variance
    instead of `generator`; the configuration's temperature is what is made of it. camera_mask: (B, C) bool,
    as Batch's.

    Real-time chunking, in two forms that both go with any beta, as both branches see them. committed:
    (B, n, dof) commands that the robot carries out from this observation on, whatever is sampled; told to an
    expert that was trained to continue them (arXiv 2512.05964). inpainting: asks nothing of the training and
    costs a backward pass through the expert a step (arXiv 2506.07339). The chunks begin with the commands
    that are carried out.

    Raises ValueError on an unknown indicator, on more committed steps than the model was trained for, and as
    `VLA.loss` does.
    """
    # What is made in inference mode cannot take part in the backward pass of an in-painting.
    with torch.inference_mode(inpainting is None), torch.no_grad():
        pull = None if inpainting is None else Pull(model.codec, inpainting, state)
        rows = model.prefix.prompts(prompt, state, metadata)
        told = model.prefix.layout.advantage(indicator)
        context, texts = _read(model, image_features, state, rows, told, subtask, guess, camera_mask)
        seen = _branches(context, both=bool(indicator) and beta != 1.0)
        wanted = len(state), model.config.action_tokens, model.config.prefix.dof
        if noise is None:
            noise = torch.randn(wanted, generator=generator)
        if tuple(noise.shape) != wanted:
            raise InputError(f"noise is {tuple(noise.shape)}, wanted {wanted}")
        commitment, begin = _commitment(model, committed, state)
        x = model.config.temperature * noise.to(state)
        x = _denoise(model, context, seen, x, commitment, begin, beta, steps, pull)
        x = model.codec.clamp(x)
        actions = model.codec.decode(x if pull is None else pull.hold(x), state)
        decided = [] if inpainting is None else [inpainting.previous[:, : inpainting.frozen]]
        for first in [*decided, *([] if committed is None else [committed])]:
            actions = torch.cat([first.to(actions), actions[:, first.shape[1] :]], 1)
    return Sample(actions, texts)


def _branches(context: Context, both: bool) -> Tensor:
    """(B, 1 or 2, S): what the conditioned branch reads, and what the other does: the same keys and values
    less the indicator's. Its actions stand where they would have stood without it."""
    if not both:
        return context.valid[:, None]
    return torch.stack([context.valid, context.valid & ~context.indicator], 1)


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
    most = model.config.committed
    begin = state.new_zeros(len(state), model.config.action_tokens, state.shape[1])
    if committed is None or committed.shape[1] == 0:
        return Commitment(), begin
    count = committed.shape[1]
    if count > most:
        raise ValueError(f"{count} committed steps, wanted at most the model's {most}")
    chunk = F.pad(committed, (0, 0, 0, model.config.horizon - count))
    commitment = model.commitment(chunk, torch.full((len(state),), count, device=state.device), state)
    return commitment, begin if commitment.clean is None else model.codec.encode(chunk, state)


# The prefix and the sub-task


def _read(
    model: VLA,
    features: Tensor,
    state: Tensor,
    prompts: Sequence[Row],
    told: Row,
    subtask: Sequence[str] | None,
    guess: Sequence[str] | None,
    camera_mask: Tensor | None,
) -> tuple[Context, list[str]]:
    """told: the indicator."""
    expected, sure = (guess, False) if subtask is None else (subtask, True)
    if expected is not None:
        context = _read_all(model, features, state, prompts, expected, told, sure, camera_mask)
        if context is not None:
            return context, list(expected)
    return _read_and_decode(model, features, state, prompts, told, camera_mask)


def _read_all(
    model: VLA,
    features: Tensor,
    state: Tensor,
    prompts: Sequence[Row],
    expected: Sequence[str],
    told: Row,
    sure: bool,
    camera_mask: Tensor | None,
) -> Context | None:
    """The whole prefix in one pass, with the sub-task texts `expected`; None, unless `sure`, where the
    model itself would have written others."""
    if len(expected) != len(prompts):
        raise InputError(f"{len(expected)} sub-tasks, wanted one for each of {len(prompts)} prompts")
    written = [model.subtask_row(text) if sure else model.prefix.layout.guess(text) for text in expected]
    known = [row for row in written if row is not None]
    if len(known) < len(written):
        return None
    rows = [prompt + subtask + told for prompt, subtask in zip(prompts, known, strict=True)]
    prefix = model.prefix(features, state, rows, camera_mask)
    first, stop = span(prefix.learnt)
    read = slice(first - 1, stop - 1)  # each token is predicted from the one before it
    hidden, cache = model.backbone(prefix.x, prefix.positions, prefix.mask, read=read)
    row, column = prefix.targets
    if sure or bool((_greedy(model, hidden[row, column - first]) == prefix.ids[row, column]).all()):
        return Context(cache, prefix.valid, prefix.indicator)
    return None


def _read_and_decode(
    model: VLA, features: Tensor, state: Tensor, prompts: Sequence[Row], told: Row, camera_mask: Tensor | None
) -> tuple[Context, list[str]]:
    """The prefix with the sub-task text that the model writes, token by token."""
    layout, device = model.prefix.layout, state.device
    tokenizer, cue = layout.tokenizer, layout.subtask_cue
    prefix = model.prefix(features, state, [row + cue for row in prompts], camera_mask)
    first, stop = int(prefix.last.min()), int(prefix.last.max()) + 1
    hidden, cache = model.backbone(prefix.x, prefix.positions, prefix.mask, read=slice(first, stop))
    hidden = hidden[torch.arange(len(state), device=device), prefix.last - first]
    context = Context(cache, prefix.valid, prefix.indicator)
    most = layout.subtask_limit - len(cue) - 1
    written: list[Tensor] = []
    done = torch.zeros(len(state), dtype=torch.bool, device=device)
    while True:
        token = _greedy(model, hidden)
        if len(written) == most:
            token = torch.full_like(token, tokenizer.newline)
        token = torch.where(done, tokenizer.pad, token)
        written.append(token)
        done = done | (token == tokenizer.newline)
        if bool(done.all()):
            indicator = torch.from_numpy(told.ids).to(device).expand(len(state), -1)
            context, _ = _extend(model, context, torch.cat([token[:, None], indicator], 1), len(told))
            return context, [tokenizer.read_line(row) for row in torch.stack(written, 1).tolist()]
        context, hidden = _extend(model, context, token[:, None])
        hidden = hidden[:, -1]


def _greedy(model: VLA, hidden: Tensor) -> Tensor:
    """(…, W) → (…) the likeliest token of a line of text, or the newline that ends it."""
    return model.prefix.logits(hidden).masked_fill(~model.writable, -torch.inf).argmax(-1)


def _extend(model: VLA, context: Context, ids: Tensor, told: int = 0) -> tuple[Context, Tensor]:
    """Read (B, L) more ids, causally, the last `told` the indicator's; hidden states (B, L, W)."""
    new = ids != model.prefix.layout.tokenizer.pad
    valid = torch.cat([context.valid, new], 1)
    count = ids.shape[1]
    last = torch.arange(count, device=ids.device) >= count - told
    indicator = torch.cat([context.indicator, last.expand_as(new)], 1)
    mask = torch.cat([context.valid[:, None].expand(-1, count, -1), prefix_mask(new, 0)], 2)
    hidden, cache = model.backbone(model.prefix.text(ids), token_positions(valid), mask, past=context.cache)
    return Context(cache, valid, indicator), hidden


class SubtaskMemory:
    """Sub-tasks at a lower rate than chunks (π0.6): which texts stand, and when they are predicted anew."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the texts: the next chunk predicts."""
        self._prompts: list[str] = []
        self._texts: list[str] = []
        self._served = 0

    def recall(self, prompts: Sequence[str], every: int = 1) -> tuple[list[str] | None, list[str] | None]:
        """→ `subtask` and `guess` for `sample`: texts that stand, or else a guess, or neither.

        every: chunks that one prediction serves. With 1 each chunk predicts, and the last texts are only a
        guess, which costs a pass where it is wrong and changes nothing.
        """
        if not self._texts or list(prompts) != self._prompts:
            return None, None
        if self._served < every:
            return self._texts, None
        return None, self._texts

    def keep(self, prompts: Sequence[str], texts: Sequence[str], predicted: bool) -> None:
        """Note what a chunk was sampled with, and whether the model predicted it or it was recalled."""
        if predicted:
            self._prompts, self._texts = list(prompts), list(texts)
            self._served = 0
        self._served += 1
