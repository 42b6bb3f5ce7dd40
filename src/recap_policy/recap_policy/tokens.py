"""Text of the prompt as token ids: bytes, the layout's fixed words, and whole words learnt from the data.

Layout of one example, in order (segments may be padded at their end; padding is masked everywhere):

    images | State: s1 … s14 | Task: <prompt> ↵ | Subtask: <text> ↵ | Advantage: positive | actions

torch is imported where tensors are made alone: prompts (prompt.py) are written without it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PAD, NEWLINE, STATE, TASK, SUBTASK, ADVANTAGE, POSITIVE, NEGATIVE, VALUE, METADATA, ACTION, END = range(12)
FIRST_BYTE = 16
_BYTES = 256
STATE_BINS = 256
FIRST_STATE_BIN = FIRST_BYTE + _BYTES
FIRST_WORD = FIRST_STATE_BIN + STATE_BINS

INDICATORS = {"positive": 1, "negative": 0, "": -1}  # text → code in batches and labels
_PIECE = re.compile(r" ?[^ ]+| +")


def vocabulary_size(word_slots: int, action_codes: int = 0) -> int:
    """Rows of the embedding table; FAST codes have the last ones (text.py)."""
    return FIRST_WORD + word_slots + action_codes


class Tokenizer:
    """Bytes, plus one token for each of `words` (pieces with their leading space, as in sentence-piece)."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words = tuple(words)
        self._id = {word: FIRST_WORD + index for index, word in enumerate(self.words)}
        self._cached = lru_cache(maxsize=4096)(self._encode)

    @staticmethod
    def fit(texts: Iterable[str], slots: int) -> Tokenizer:
        """Give the `slots` most frequent words of `texts` a token of their own."""
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text))
        return Tokenizer([word for word, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:slots]])

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of any text; words without a token are spelt in bytes."""
        return self._cached(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            if piece in self._id:
                ids.append(self._id[piece])
            else:
                ids += [FIRST_BYTE + byte for byte in piece.encode()]
        return tuple(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; anything that is not text is left out, broken UTF-8 is replaced."""
        text = bytearray()
        for token in ids:
            if FIRST_BYTE <= token < FIRST_STATE_BIN:
                text.append(token - FIRST_BYTE)
            elif FIRST_WORD <= token < FIRST_WORD + len(self.words):
                text += self.words[token - FIRST_WORD].encode()
        return text.decode(errors="replace")

    def table(self, texts: Sequence[str], limit: int) -> Tensor:
        """Texts → (N, longest) int64 ids padded with PAD; index it to make batches without tokenising again.

        Raises ValueError where a text is longer than `limit` tokens.
        """
        import torch

        rows = [self.encode(text) for text in texts]
        longest = max((len(row) for row in rows), default=0)
        if longest > limit:
            text = texts[max(range(len(rows)), key=lambda i: len(rows[i]))]
            raise ValueError(f"text of {longest} tokens, wanted at most {limit}: {text[:60]!r}")
        table = torch.full((len(rows), longest), PAD)
        for index, row in enumerate(rows):
            table[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return table


def wrap(before: Sequence[int], ids: Tensor, after: int | None) -> Tensor:
    """(B, N) padded ids → (B, len(before) + N + 1): `before` in front of, `after` behind each row's text."""
    import torch

    rows = ids.shape[0]
    head = torch.tensor(before, dtype=torch.int64, device=ids.device).expand(rows, -1)
    if after is None:
        return torch.cat([head, ids], 1)
    body = torch.cat([ids, ids.new_full((rows, 1), PAD)], 1)
    lengths = (ids != PAD).sum(1, keepdim=True)
    return torch.cat([head, body.scatter(1, lengths, after)], 1)


def advantage_ids(indicator: Tensor) -> Tensor:
    """(B,) codes 1 positive, 0 negative, -1 absent → (B, 2) ids, all PAD where absent."""
    import torch

    word = torch.where(indicator == 1, POSITIVE, NEGATIVE)
    ids = torch.stack([torch.full_like(word, ADVANTAGE), word], 1)
    return torch.where((indicator >= 0)[:, None], ids, PAD)
