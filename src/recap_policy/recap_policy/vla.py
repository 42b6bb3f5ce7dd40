"""The vision-language-action policy: π0.6's shape, π*0.6's advantage indicator and loss.

Prompt layout: prompt.py, put before the backbone by prefix.py. Sampling: sampling.py. Convention of the
flow's time: expert.py. Shapes: B batch, C cameras, K draws, T action tokens, H horizon, L prefix tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recap_policy import sampling
from recap_policy.backbone import Backbone, unfilled
from recap_policy.config import ObjectConfig, VLAConfig
from recap_policy.expert import ActionExpert, Commitment, draw_time
from recap_policy.fast import Fast
from recap_policy.normalize import ActionCodec
from recap_policy.objects import make_tower
from recap_policy.prefix import (
    InputError,
    Metadata,
    Prefix,
    PrefixEmbedding,
    check_images,
    check_objects,
    own_tokenizer,
    span,
)
from recap_policy.prompt import Kind, Layout, Row
from recap_policy.text import TextTokenizer
from recap_policy.tokens import INDICATORS

_WORDS = {code: word for word, code in INDICATORS.items()}


@dataclass(frozen=True)
class Batch:
    """Training examples."""

    image_features: Tensor  # (B, C, tokens, vision width) from VLA.encode_images
    state: Tensor  # (B, dof) measured [rad; gripper 0..1]
    prompt: Sequence[str]
    subtask: Sequence[str]  # "" where nobody knows it, as before a recording's first stage
    indicator: Tensor  # (B,) int: 1 positive, 0 negative, -1 absent
    actions: Tensor  # (B, H, dof) absolute joint commands from the observation's tick on
    weight: Tensor | None = None  # (B,) of mean about 1; None: all alike
    metadata: Metadata = None
    fast: Sequence[NDArray[np.int64]] | None = None  # from VLA.action_codes; None: encoded as needed
    camera_mask: Tensor | None = None  # (B, C) bool: which of the model's cameras there are; None: all

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors: dict[str, Any] = {k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Drawn:
    """What is drawn for training examples beside themselves. `drawn[rows]`: that of some of them."""

    dropped: Tensor  # (B,) bool, whose indicator is left out
    noise: Tensor  # (B, K, T, dof), of the flow
    time: Tensor  # (B, K), of the flow
    committed: Tensor | None  # (B,) int, actions told as already decided; None: the model knows none

    def __getitem__(self, rows: slice) -> Drawn:
        committed = None if self.committed is None else self.committed[rows]
        return Drawn(self.dropped[rows], self.noise[rows], self.time[rows], committed)


class VLA(nn.Module):
    fast: Fast | None
    writable: Tensor

    def __init__(
        self,
        config: VLAConfig,
        tokenizer: TextTokenizer | None = None,
        fast: Fast | None = None,
        *,
        blank: bool = False,
        blank_expert: bool = False,
    ) -> None:
        """tokenizer: of the table's vocabulary; None: bytes without words, or, where the table is Gemma's, a
        model that can be built and filled but not read or write. fast: see `fit_normalizers`. blank: leave
        what real backbones fill without memory (pretrained.py); blank_expert: the expert, which checkpoints
        fill too.

        Raises TextError on a tokenizer of another vocabulary.
        """
        super().__init__()
        self.config = config
        self.tokenizer = own_tokenizer(tokenizer, config.backbone, config.prefix)
        layout = None
        if self.tokenizer is not None:
            limits = config.max_text, config.max_subtask, config.max_actions
            layout = Layout(self.tokenizer, *limits)
        with unfilled(blank):
            self.vision = make_tower(config.vision)
        self.prefix = PrefixEmbedding(
            config.prefix, config.backbone, config.vision.width, config.vision.tokens, layout, blank
        )
        if layout is not None:
            rows = self.prefix.table.num_embeddings
            writable = np.zeros(rows, np.bool_)
            writable[: layout.tokenizer.size] = layout.tokenizer.writable
            self.register_buffer("writable", torch.from_numpy(writable), persistent=False)
        if fast is not None:
            self._check_fast(fast)
        self.fast = fast
        with unfilled(blank):
            self.backbone = Backbone(config.backbone)
        dof, tokens = config.prefix.dof, config.action_tokens
        self.codec = ActionCodec(dof, config.horizon, tokens, config.action_basis, config.committed)
        told = config.committed * (dof + 1) if config.action_basis == "dct" else 0
        with unfilled(blank_expert):
            self.expert = ActionExpert(config.expert, config.backbone, dof, tokens, told)

    def fit_normalizers(self, chunks: Tensor, states: Tensor, is_gripper: Tensor) -> None:
        """Statistics of the data, and a FAST tokenizer where the configuration has ids for one and none was
        given. chunks: (N, H, dof); states: (N, dof); is_gripper: (dof,) bool."""
        self._check_actions(chunks)
        self.codec.fit(chunks, states, is_gripper)
        self.prefix.normalizer.fit(states)
        if self.config.prefix.action_codes and self.fast is None:
            moved = self.codec.moved(chunks.float(), states.float()).numpy()
            self.fast = Fast.fit(moved, vocabulary=min(1024, self.config.prefix.action_codes))

    def action_codes(self, actions: Tensor, state: Tensor) -> list[NDArray[np.int64]]:
        """FAST codes of (B, H, dof) absolute commands: of arm joints less the state (B, dof), as ActionCodec
        takes them. Raises InputError on a model without FAST."""
        if self.fast is None:
            raise InputError(f"{self.config.name} has no FAST tokenizer, wanted one: see fit_normalizers")
        return self.fast.encode(self.codec.moved(actions.float(), state.float()).cpu().numpy())

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, C, H, W, 3) uint8 → (B, C, tokens, vision width) float32. Freeze the tower and cache these.

        C is the model's, or less where the robot has fewer: see prefix.fill_slots. A model for states of
        things takes those instead: (B, 1, features) float32. Raises InputError on more images or another size
        of them.
        """
        tower = self.config.vision
        if isinstance(tower, ObjectConfig):
            check_objects(images, tower.features)
        else:
            check_images(images, self.config.prefix.cameras, tower.image_size)
        return self.vision(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    # Training

    def loss(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        draws: int = 4,
        indicator_dropout: float | None = None,
        drawn: Drawn | None = None,
    ) -> dict[str, Tensor]:
        """Scalars "loss" (to minimise), "flow", "subtask" and, where the model has FAST, "fast": means of
        `terms` over the batch, weighted by `Batch.weight`. Arguments and errors: those of `terms`."""
        terms = self.terms(batch, generator, draws, indicator_dropout, drawn)
        weight = batch.weight
        means = {k: (each if weight is None else each * weight).mean() for k, each in terms.items()}
        return {"loss": self.total(means), **{name: mean.detach() for name, mean in means.items()}}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The configuration's weighted sum of "flow", "subtask" and "fast", whatever their shape."""
        total = terms["flow"] + self.config.subtask_weight * terms["subtask"]
        return total + self.config.fast_weight * terms["fast"] if "fast" in terms else total

    def terms(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        draws: int = 4,
        indicator_dropout: float | None = None,
        drawn: Drawn | None = None,
    ) -> dict[str, Tensor]:
        """Losses of each example, (B,): "flow", "subtask" and, where the model has FAST, "fast".

        `draws` noise samples and times share each example's prefix. The indicator is left out of a share
        `indicator_dropout` of the examples (None: the configuration's), drawn from `generator`, as are noise
        and times. Loss is borne by `Prefix.learnt` alone, not by the indicator's own tokens. Of each
        example's actions 0 to `committed`, drawn evenly, are told to the expert as already decided. drawn:
        all of this, from `draw`; the three arguments before it then count for nothing.

        Raises InputError on tensors that do not fit the model, among them chunks of another horizon, and
        PromptError (prompt.py) on texts that cannot be written.
        """
        self._check_actions(batch.actions)
        if drawn is None:
            drawn = self.draw(len(batch.indicator), generator, draws, indicator_dropout)
        indicator = torch.where(drawn.dropped.to(batch.indicator.device), -1, batch.indicator.long())
        texts = self._examples(batch, indicator)
        prefix = self.prefix(batch.image_features, batch.state, texts, batch.camera_mask)
        first, stop = span(prefix.learnt)
        read = slice(first - 1, stop - 1)  # each token is predicted from the one before it
        hidden, cache = self.backbone(prefix.x, prefix.positions, prefix.mask, read=read)
        crossed = self._crossed(prefix, hidden, first)
        # The expert is blind to the FAST tokens: actions are predicted twice, each on its own.
        _, stop = span(prefix.seen)
        seen = prefix.seen[:, :stop]
        cache = [(keys[:, :, :stop], values[:, :, :stop]) for keys, values in cache]

        if self.config.insulate:
            cache = [(keys.detach(), values.detach()) for keys, values in cache]
        draws = drawn.time.shape[1]
        actions = self.codec.encode(batch.actions, batch.state)[:, None].expand(-1, draws, -1, -1)
        noise, time = drawn.noise.to(actions), drawn.time.to(actions)
        t = time[..., None, None]
        plan = self.expert.plan(seen[:, None].expand(-1, draws, -1), seen.sum(1)[:, None].expand(-1, draws))
        committed = Commitment()
        if drawn.committed is not None:
            committed = self.commitment(batch.actions, drawn.committed.to(actions.device), batch.state)
        noisy = committed.hold(t * noise + (1 - t) * actions, actions)
        velocity = self.expert(noisy, time, cache, plan, committed)
        error = (velocity - (noise - actions)).square() * self.codec.importance
        found = {"flow": committed.mean(error), "subtask": crossed[Kind.SUBTASK]}
        return {**found, "fast": crossed[Kind.ACTION]} if Kind.ACTION in crossed else found

    def draw(
        self,
        rows: int,
        generator: torch.Generator | None = None,
        draws: int = 4,
        indicator_dropout: float | None = None,
    ) -> Drawn:
        """What `loss` draws for `rows` examples, on the CPU. Arguments: those of `loss`. Processes that share
        a batch each draw it whole and take their rows."""
        config = self.config
        rate = config.indicator_dropout if indicator_dropout is None else indicator_dropout
        shape = rows, draws, config.action_tokens, config.prefix.dof
        return Drawn(
            torch.rand(rows, generator=generator) < rate,
            torch.randn(shape, generator=generator),
            draw_time((rows, draws), generator),
            torch.randint(config.committed + 1, (rows,), generator=generator) if config.committed else None,
        )

    def commitment(self, actions: Tensor, count: Tensor, state: Tensor) -> Commitment:
        """actions: (B, n, dof) absolute commands, of which the first count (B,) <= `committed` are decided;
        state: (B, dof)."""
        if self.config.action_basis == "steps":
            token = torch.arange(self.config.action_tokens, device=count.device)
            return Commitment(clean=token < count[:, None])
        return Commitment(told=self.codec.commitment(actions[:, : self.config.committed], count, state))

    def _examples(self, batch: Batch, indicator: Tensor) -> list[Row]:
        """The texts of a batch, whole."""
        layout = self.prefix.layout
        prompts = self.prefix.prompts(batch.prompt, batch.state, batch.metadata)
        rows = len(prompts)
        found = {"sub-tasks": len(batch.subtask), "indicators": len(indicator), "chunks": len(batch.actions)}
        for name, count in found.items():
            if count != rows:
                raise InputError(f"{count} {name}, wanted one for each of {rows} prompts")
        words = [_word(int(code)) for code in indicator.tolist()]
        examples = [
            prompt + self.subtask_row(subtask) + layout.advantage(word)
            for prompt, subtask, word in zip(prompts, batch.subtask, words, strict=True)
        ]
        if batch.fast is None and not self.config.prefix.action_codes:
            return examples
        codes = self.action_codes(batch.actions, batch.state) if batch.fast is None else batch.fast
        return [row + layout.actions(own) for row, own in zip(examples, codes, strict=True)]

    def subtask_row(self, text: str) -> Row:
        """A sub-task as it is read; "" where nobody knows it."""
        return self.prefix.layout.subtask(text) if text else self.prefix.layout.no_subtask

    def _crossed(self, prefix: Prefix, hidden: Tensor, first: int) -> dict[Kind, Tensor]:
        """→ (B,) cross-entropy per learnt token, for each kind there is. hidden: of columns first - 1 on."""
        row, column = prefix.targets
        # Logits of the learnt tokens alone: a row of Gemma's takes a megabyte.
        logits = self.prefix.logits(hidden[row, column - first]).float()
        each = F.cross_entropy(logits, prefix.ids[row, column], reduction="none")
        kinds, zero = prefix.kinds[row, column], each.new_zeros(len(hidden))
        found = {}
        for kind in (Kind.SUBTASK, Kind.ACTION):
            own = kinds == kind
            if bool(own.any()):
                count = zero.index_add(0, row, own.type_as(each))
                found[kind] = zero.index_add(0, row, each * own) / count.clamp_min(1)
        return found

    def _check_actions(self, actions: Tensor) -> None:
        wanted = self.config.horizon, self.config.prefix.dof
        if actions.ndim != 3 or tuple(actions.shape[1:]) != wanted:
            raise InputError(
                f"actions are {tuple(actions.shape)}, wanted (examples, {wanted[0]}, {wanted[1]}): "
                f"{self.config.name} is a policy for chunks of {wanted[0]} steps of {wanted[1]} joints"
            )

    def _check_fast(self, fast: Fast) -> None:
        found = fast.horizon, fast.dof
        wanted, codes = (self.config.horizon, self.config.prefix.dof), self.config.prefix.action_codes
        if found != wanted:
            raise InputError(
                f"FAST for {found[0]} steps of {found[1]} joints, wanted {wanted[0]} steps of {wanted[1]}"
            )
        if fast.size > codes:
            raise InputError(f"FAST of {fast.size} tokens, wanted at most the vocabulary's {codes}")

    # Sampling

    sample = sampling.sample


def _word(code: int) -> str:
    if code not in _WORDS:
        raise InputError(f"indicator is {code}, wanted one of {sorted(_WORDS)}")
    return _WORDS[code]
