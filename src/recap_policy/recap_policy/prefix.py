"""From images, state and text to what the backbone reads; shared by policy and value function.

The order of the text is prompt.py's. In front of it stand the image tokens and, where the configuration has
state as a vector, its token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recap_policy.attention import RMSNorm, linear
from recap_policy.backbone import TokenTable, prefix_mask, token_positions, unfilled
from recap_policy.config import BackboneConfig, PrefixConfig
from recap_policy.normalize import StateNormalizer
from recap_policy.prompt import Kind, Layout, Row, Table, state_bins
from recap_policy.text import GemmaTokenizer, TextError, TextTokenizer, TinyTokenizer
from recap_policy.tokens import vocabulary_size

_OCTAVES = (0.5, 1.0, 2.0, 4.0)  # periods of a state vector's Fourier features, per half range

Metadata = Sequence[str | None] | None  # one an example, each of which may have none


class InputError(ValueError):
    """Tensors that the model cannot take. One line: value found, value wanted, place."""


@dataclass(frozen=True)
class Prefix:
    """A batch as the backbone reads it: L tokens, images first. Masks are `prompt.Table`'s, (B, L) bool."""

    x: Tensor  # (B, L, width) embeddings
    ids: Tensor  # (B, L) int64, the pad's where there is no text
    kinds: Tensor  # (B, L) uint8, see prompt.Kind
    valid: Tensor
    learnt: Tensor
    seen: Tensor  # by the expert
    indicator: Tensor
    images: int  # how many of the L

    @property
    def mask(self) -> Tensor:
        """(B, L, L) who sees whom."""
        return prefix_mask(self.valid, self.images)

    @property
    def positions(self) -> Tensor:
        return token_positions(self.valid)

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of all learnt tokens, (n,) each."""
        row, column = self.learnt.nonzero(as_tuple=True)
        return row, column

    @property
    def last(self) -> Tensor:
        """(B,) column of each row's last token that is no padding."""
        columns = torch.arange(self.valid.shape[1], device=self.valid.device)
        return (columns * self.valid).argmax(1)


class PrefixEmbedding(nn.Module):
    """Embeddings of `images`, `state` and `text`, all (B, tokens, width); `forward` puts them together."""

    def __init__(
        self, config: PrefixConfig, backbone: BackboneConfig, vision_width: int, vision_tokens: int,
        layout: Layout | None, blank: bool = False,
    ) -> None:  # fmt: skip
        """layout: None for a model that is only built or loaded. blank: leave the table without memory
        (pretrained.py)."""
        super().__init__()
        dof, width = config.dof, backbone.width
        self.config, self.width, self._layout = config, width, layout
        self.normalizer = StateNormalizer(dof)
        rows = backbone.vocabulary or vocabulary_size(config.word_slots, config.action_codes)
        if layout is not None and layout.tokenizer.size > rows:
            raise TextError(f"tokenizer of {layout.tokenizer.size} ids, wanted at most the table's {rows}")
        with unfilled(blank):
            self.table = TokenTable(rows, width)
        if config.state == "vector":
            self.state_projection = linear(dof * (1 + 2 * len(_OCTAVES)), width)
        self.image_norm = RMSNorm(vision_width)
        self.image_projection = linear(vision_width, width)
        self.image_shape = (config.cameras, vision_tokens, vision_width)
        self.image_count = config.cameras * vision_tokens
        self.state_count = int(config.state == "vector")
        # A pre-trained projection knows no cameras: there it starts from nothing.
        places = (config.cameras, vision_tokens, width)
        self.camera = nn.Parameter(torch.zeros(places) if blank else torch.randn(places) * 0.5)

    @property
    def layout(self) -> Layout:
        """Raises TextError where the model was built without a tokenizer."""
        if self._layout is None:
            raise TextError("the model has no tokenizer, wanted Gemma's: GemmaTokenizer(tokenizer.json)")
        return self._layout

    def prompts(self, prompt: Sequence[str], state: Tensor, metadata: Metadata = None) -> list[Row]:
        """What each example begins with. state: (B, dof), see `state`.

        Raises InputError where counts differ or a state is no number, and PromptError (prompt.py) on an empty
        text and one that is too long.
        """
        self._check_state(state)
        about = [None] * len(prompt) if metadata is None else metadata
        if not len(prompt) == len(about) == len(state):
            raise InputError(
                f"{len(prompt)} prompts and {len(about)} metadata, wanted one for each of {len(state)} states"
            )
        if self.config.state == "vector":
            return [self.layout.prompt(text, None, of) for text, of in zip(prompt, about, strict=True)]
        bins = state_bins(self.normalizer.scaled(state.float()).cpu().numpy())
        return [self.layout.prompt(*row) for row in zip(prompt, bins, about, strict=True)]

    def forward(
        self, features: Tensor, state: Tensor, rows: Sequence[Row], camera_mask: Tensor | None = None
    ) -> Prefix:
        """features: (B, cameras, tokens, vision width); state: (B, dof); rows: B of text, state among it;
        camera_mask: (B, cameras) bool, False where a robot lacks a camera that the model has, None: all are
        there. What stands in an absent one's place is padding: seen by nobody, and without a position.

        Raises InputError on features or a mask that are not the cameras' and where the batch sizes differ.
        """
        if not len(rows) == len(features) == len(state):
            raise InputError(
                f"features of {len(features)} examples, states of {len(state)} and texts of {len(rows)}, "
                "wanted as many of each"
            )
        text, device = self.layout.table(rows), state.device
        ids = torch.from_numpy(text.ids).to(device)
        parts = [self.images(features, camera_mask), self.text(ids)]
        kinds = [*[Kind.IMAGE] * self.image_count, *[Kind.STATE] * self.state_count]
        if self.state_count:
            parts.insert(1, self.state(state))
        front = np.tile(np.array(kinds, np.uint8), (len(rows), 1))
        if camera_mask is not None:
            absent = ~camera_mask.cpu().numpy().repeat(self.image_shape[1], 1)
            front[:, : self.image_count][absent] = Kind.PAD
        nothing = np.full(front.shape, text.pad, np.int64)
        table = Table(
            np.concatenate([nothing, text.ids], 1), np.concatenate([front, text.kinds], 1), text.pad
        )

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        return Prefix(
            x=torch.cat(parts, 1),
            ids=tensor(table.ids),
            kinds=tensor(table.kinds),
            valid=tensor(table.valid),
            learnt=tensor(table.learnt),
            seen=tensor(table.seen_by_expert),
            indicator=tensor(table.indicator),
            images=self.image_count,
        )

    def images(self, features: Tensor, camera_mask: Tensor | None = None) -> Tensor:
        """(B, cameras, tokens, vision_width) → (B, image_count, width)"""
        cameras, tokens, width = self.image_shape
        if features.ndim != 4 or features.shape[1] != cameras:
            found = features.shape[1] if features.ndim > 1 else 0
            raise InputError(f"features of {found} cameras, wanted {cameras}")
        if features.shape[2:] != (tokens, width):
            raise InputError(
                f"features of {features.shape[2]} tokens of width {features.shape[3]}, "
                f"wanted {tokens} of {width}"
            )
        if camera_mask is not None:
            self._check_cameras(camera_mask, len(features))
            # Whatever stands there: keys that nobody sees still must be numbers.
            features = features.masked_fill(~camera_mask.to(features.device)[..., None, None], 0.0)
        projected = self.image_projection(self.image_norm(features.type_as(self.camera)))
        return (projected + self.camera).flatten(1, 2)

    def state(self, state: Tensor) -> Tensor:
        """(B, dof) [rad; gripper 0..1] → (B, 1, width), for state as a vector."""
        place = self.normalizer.scaled(state)
        angle = place[..., None] * (math.pi * torch.tensor(_OCTAVES, device=state.device))
        features = torch.cat([place[..., None], angle.sin(), angle.cos()], -1)
        return self.state_projection(features.flatten(1).type_as(self.camera))[:, None]

    def text(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Embeddings and output weights are tied, as in Gemma."""
        return self.table.logits(hidden)

    def _check_cameras(self, camera_mask: Tensor, rows: int) -> None:
        wanted = rows, self.config.cameras
        if camera_mask.dtype != torch.bool or tuple(camera_mask.shape) != wanted:
            raise InputError(
                f"camera_mask is {tuple(camera_mask.shape)} {camera_mask.dtype}, wanted {wanted} torch.bool"
            )

    def _check_state(self, state: Tensor) -> None:
        if state.ndim != 2 or state.shape[1] != self.config.dof:
            raise InputError(f"state is {tuple(state.shape)}, wanted (examples, {self.config.dof})")
        if not bool(state.isfinite().all()):
            row, joint = (~state.isfinite()).nonzero()[0].tolist()
            raise InputError(f"state[{row}, {joint}] is {float(state[row, joint])}, wanted a number")


def span(mask: Tensor) -> tuple[int, int]:
    """(B, L) bool → the first column where any row has True, and the one behind the last."""
    columns = mask.any(0).nonzero()
    return int(columns[0]), int(columns[-1]) + 1


def own_tokenizer(
    tokenizer: TextTokenizer | None, backbone: BackboneConfig, prefix: PrefixConfig
) -> TextTokenizer | None:
    """The tokenizer given, or the one without words where the vocabulary is the own one.

    Raises TextError where the ids would mean something else in the table: Gemma's table wants Gemma's
    tokenizer, which cannot be made up, hence None.
    """
    own = backbone.vocabulary is None
    if tokenizer is None:
        return TinyTokenizer((), prefix.word_slots, prefix.action_codes) if own else None
    if isinstance(tokenizer, TinyTokenizer) != own:
        wanted = "TinyTokenizer" if own else "GemmaTokenizer"
        raise TextError(f"tokenizer is a {type(tokenizer).__name__}, wanted the table's: a {wanted}")
    return tokenizer


def make_tokenizer(
    backbone: BackboneConfig, prefix: PrefixConfig, texts: Iterable[str], file: str | None = None
) -> TextTokenizer:
    """For a fresh model: the own vocabulary with the words of `texts`, or Gemma's, of a tokenizer.json.

    Raises TokenizerError where the table is Gemma's and there is no such file.
    """
    if backbone.vocabulary is None:
        return TinyTokenizer.fit(texts, prefix.word_slots, prefix.action_codes)
    if file is None:
        raise TextError("no tokenizer given, wanted Gemma's: the path of its tokenizer.json")
    return GemmaTokenizer(file, prefix.action_codes)


def fill_slots(features: Tensor, cameras: int) -> tuple[Tensor, Tensor | None]:
    """(B, c, tokens, width) of a robot with c <= `cameras` → features of as many cameras as the model has,
    zeros for those behind the robot's own, and the `camera_mask` that says so; None where none is missing.

    Raises InputError on more cameras than the model has.
    """
    missing = cameras - features.shape[1]
    if missing < 0:
        raise InputError(f"features of {features.shape[1]} cameras, wanted at most {cameras}")
    if not missing:
        return features, None
    there = torch.arange(cameras, device=features.device) < features.shape[1]
    return F.pad(features, (0, 0, 0, 0, 0, missing)), there.expand(len(features), -1)


def check_images(images: Tensor, cameras: int, size: int) -> None:
    """Raises InputError unless images are (B, c, size, size, 3) uint8, with c from 1 to `cameras`."""
    if images.ndim != 5 or not 0 < images.shape[1] <= cameras:
        found = images.shape[1] if images.ndim > 1 else 0
        raise InputError(f"images {tuple(images.shape)} of {found} cameras, wanted 1 to {cameras}")
    if images.shape[2:] != (size, size, 3) or images.dtype != torch.uint8:
        raise InputError(
            f"images of {tuple(images.shape[2:])} {images.dtype}, wanted {(size, size, 3)} torch.uint8"
        )


def check_objects(objects: torch.Tensor, features: int) -> None:
    """Raises InputError unless states of things are (B, 1, features)."""
    if objects.ndim != 3 or tuple(objects.shape[1:]) != (1, features):
        raise InputError(f"states of things {tuple(objects.shape)}, wanted (examples, 1, {features})")
