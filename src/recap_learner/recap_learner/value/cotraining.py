"""Vision-language data beside the value loss, against over-fitting (π*0.6, section V-C: "a small mixture of
multi-modal web data"): the backbone goes on predicting text about pictures while it learns returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from recap_learner.data.images import decode
from recap_policy.prefix import fill_slots
from recap_policy.value import ValueModel


class CoTraining(Protocol):
    """The hook: its loss, times `weight`, is added to the value's at every step. All of its randomness comes
    from the generator, so that a killed training ends where an unbroken one does. texts: all that a tokenizer
    of words must know."""

    @property
    def weight(self) -> float: ...

    @property
    def texts(self) -> list[str]: ...

    def __call__(self, model: ValueModel, step: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Captions:
    """Questions about pictures and their answers: cross-entropy of the answers' tokens.

    features: (n, c, tokens, width) float16 of the tower whose tokens the value function takes, c cameras at
    most; an answer is written as a sub-task is (prompt.py), and states, of which there are none, lie in the
    middle of their range.
    """

    features: np.ndarray
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    batch: int = 32
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < len(self.features) == len(self.questions) == len(self.answers):
            raise ValueError(
                f"co-training: {len(self.features)} pictures, {len(self.questions)} questions and "
                f"{len(self.answers)} answers, wanted as many of each and at least one"
            )

    @staticmethod
    def from_parquet(
        path: Path, encode: Callable[[Tensor], Tensor], size: int, batch: int = 32, weight: float = 0.1
    ) -> Captions:
        """Of a file with columns image (JPEG or PNG bytes), question, answer. encode: (n, size, size, 3)
        uint8 → (n, tokens, width), the tower. Raises ValueError where a column is missing."""
        check_captions(path)
        table = pq.read_table(path)
        images = np.empty((len(table), size, size, 3), np.uint8)
        for data, image in zip(table["image"].to_pylist(), images, strict=True):
            decode(data, (size, size), image)
        with torch.no_grad():
            parts = [encode(torch.from_numpy(images[i : i + 64])) for i in range(0, len(images), 64)]
        features = torch.cat(parts).to(torch.float16).cpu().numpy()[:, None]
        questions, answers = (tuple(table[name].to_pylist()) for name in ("question", "answer"))
        return Captions(features, questions, answers, batch, weight)

    @property
    def texts(self) -> list[str]:
        return sorted({*self.questions, *self.answers})

    def __call__(self, model: ValueModel, step: int, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy of a batch's answer tokens → scalar."""
        pick = torch.randint(len(self.features), (self.batch,), generator=generator).tolist()
        device, prefix = model.centres.device, model.prefix
        features = torch.from_numpy(self.features[pick].astype(np.float32)).to(device)
        features, camera_mask = fill_slots(features, model.config.prefix.cameras)
        layout, states = prefix.layout, prefix.normalizer
        state = ((states.low + states.high) / 2).expand(self.batch, -1)
        rows = [layout.prompt(self.questions[i]) + layout.subtask(self.answers[i]) for i in pick]
        read = prefix(features, state, rows, camera_mask)
        hidden, _ = model.backbone(read.x, read.positions, read.mask)
        row, column = read.targets
        return F.cross_entropy(prefix.logits(hidden[row, column - 1]).float(), read.ids[row, column])


def check_captions(path: Path) -> None:
    """Raises ValueError where it is no Parquet file of captions."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: wanted a Parquet file of captions: {error}") from error
    if missing := [n for n in ("image", "question", "answer") if n not in schema.names]:
        raise ValueError(f"{path}: no column {missing[0]!r}, wanted image, question and answer")
