"""Text ↔ token ids behind one small interface: Gemma's tokenizer for real backbones, bytes for `tiny`.

`prompt.py` says in which order lines follow one another. Here stands how each part of a line is written.
No torch is needed for `GemmaTokenizer`; ids are plain integers and numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recap_policy import bpe as bpes
from recap_policy import tokens
from recap_station.files import replace_file

FILE = "tokenizer.json"
Ids = tuple[int, ...]


class TextError(bpes.TokenizerError):
    """A text tokenizer that cannot serve. One line: value found, value wanted, place."""


class Cue(StrEnum):
    """What a line begins with, as Gemma reads it."""

    STATE = "State:"
    TASK = "Task:"
    METADATA = "Metadata:"
    SUBTASK = "Subtask:"
    ADVANTAGE = "Advantage:"
    ACTION = "Action:"


class TextTokenizer(Protocol):
    """What prompts are made with. Ids of lines' parts can be put together without tokenising again."""

    @property
    def size(self) -> int:
        """Rows that the embedding table needs."""

    @property
    def action_codes(self) -> int:
        """Size of the largest FAST vocabulary that has ids here."""

    @property
    def pad(self) -> int: ...

    @property
    def begin(self) -> Ids:
        """In front of all text."""

    @property
    def newline(self) -> int:
        """Ends a line; decoding of a sub-task stops there."""

    @property
    def end(self) -> int:
        """Follows the last FAST token."""

    def encode(self, text: str) -> Ids:
        """Ids of any text; special tokens spelt in it are text, too."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; anything that is not text is left out."""

    def cue(self, cue: Cue) -> Ids: ...

    def line(self, text: str) -> Ids:
        """Text behind its cue, to the end of the line."""

    def state(self, bins: Sequence[int]) -> Ids:
        """The joints' bins behind their cue, to the end of the line."""

    def indicator(self, positive: bool) -> Ids:
        """ "positive" or "negative" behind its cue, to the end of the line."""

    def to_actions(self, codes: ArrayLike) -> NDArray[np.int64]:
        """FAST codes → ids. Raises TextError on a code that has none."""

    def from_actions(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Ids → FAST codes, -1 for what is no action."""


class GemmaTokenizer:
    """Gemma's own vocabulary, read from a local `tokenizer.json`; nothing is downloaded.

    FAST code c gets id `size - 1 - skip - c`, openpi's rule for PaliGemma, whose last 128 ids are its
    segmentation tokens. In Gemma 3 the last 6,143 of the 262,144 ids are unused ones: FAST takes the place of
    no word there.
    """

    def __init__(self, file: str | Path, action_codes: int = 2048, skip: int = 128) -> None:
        """Raises TokenizerError where the file is missing, damaged or not of Gemma's kind."""
        self.path = Path(file)
        self._bpe = bpes.parse(bpes.read_text(self.path), str(self.path))
        # The image token that Gemma 3's releases put behind the vocabulary must not move the actions.
        image = self._bpe.token_to_id("<image_soft_token>")
        self.size = self._bpe.get_vocab_size(with_added_tokens=False) if image is None else image
        self.action_codes, self._first_code = action_codes, self.size - 1 - skip
        if not 0 <= action_codes <= self._first_code:
            raise TextError(
                f"{self.path}: vocabulary of {self.size}, wanted more than {action_codes + skip} for FAST"
            )
        self.pad, begin, self.end = (self._special(name) for name in ("<pad>", "<bos>", "<eos>"))
        self.begin = (begin,)
        self._bpe.encode_special_tokens = True  # "<eos>" in a task is text, not an end
        self._cached = lru_cache(maxsize=65_536)(self._encode)
        newline = self.encode("\n")
        if len(newline) != 1 or self.encode(" a\n")[-1] != newline[0]:
            raise TextError(f"{self.path}: newline is {list(newline)}, wanted one token of its own")
        (self.newline,) = newline

    def encode(self, text: str) -> Ids:
        return self._cached(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._bpe.decode([int(i) for i in ids if 0 <= i < self.size and not self._is_action(i)])

    def cue(self, cue: Cue) -> Ids:
        return self.encode(cue)

    def line(self, text: str) -> Ids:
        return (*self.encode(f" {text}"), self.newline)

    def state(self, bins: Sequence[int]) -> Ids:
        """As numbers in digits, " 127 8 255": Gemma gives each digit a token."""
        ids: list[int] = []
        for value in bins:
            ids += self.encode(f" {int(value)}")
        return (*ids, self.newline)

    def indicator(self, positive: bool) -> Ids:
        return self.line("positive" if positive else "negative")

    def to_actions(self, codes: ArrayLike) -> NDArray[np.int64]:
        return self._first_code - _codes(codes, self.action_codes)

    def from_actions(self, ids: ArrayLike) -> NDArray[np.int64]:
        codes = self._first_code - np.asarray(ids, np.int64)
        return np.where((codes >= 0) & (codes < self.action_codes), codes, -1)

    def save(self, folder: str | Path) -> None:
        """Copy the file into a checkpoint, in one step."""
        data = self.path.read_bytes()
        replace_file(Path(folder) / FILE, lambda temporary: temporary.write_bytes(data))

    def _encode(self, text: str) -> Ids:
        return tuple(self._bpe.encode(text, add_special_tokens=False).ids)

    def _is_action(self, token: int) -> bool:
        return 0 <= self._first_code - token < self.action_codes

    def _special(self, name: str) -> int:
        token = self._bpe.token_to_id(name)
        if token is None:
            raise TextError(f"{self.path}: no token {name}, wanted a tokenizer of Gemma's kind")
        return token


class TinyTokenizer(tokens.Tokenizer):
    """Bytes and learnt words (tokens.py), with one token for each cue, state bin and FAST code."""

    pad, newline, end = tokens.PAD, tokens.NEWLINE, tokens.END
    begin: Ids = ()

    def __init__(self, words: Sequence[str] = (), word_slots: int = 128, action_codes: int = 1024) -> None:
        if len(words) > word_slots:
            raise TextError(f"{len(words)} words, wanted at most {word_slots}")
        super().__init__(words)
        self._first_code = tokens.vocabulary_size(word_slots)
        self.action_codes = action_codes
        self.size = tokens.vocabulary_size(word_slots, action_codes)

    def cue(self, cue: Cue) -> Ids:
        return (_TINY_CUES[cue],)

    def line(self, text: str) -> Ids:
        return (*self.encode(text), self.newline)

    def state(self, bins: Sequence[int]) -> Ids:
        return tuple(tokens.FIRST_STATE_BIN + int(value) for value in bins)

    def indicator(self, positive: bool) -> Ids:
        return (tokens.POSITIVE if positive else tokens.NEGATIVE,)

    def to_actions(self, codes: ArrayLike) -> NDArray[np.int64]:
        return self._first_code + _codes(codes, self.action_codes)

    def from_actions(self, ids: ArrayLike) -> NDArray[np.int64]:
        codes = np.asarray(ids, np.int64) - self._first_code
        return np.where((codes >= 0) & (codes < self.action_codes), codes, -1)


_TINY_CUES = {
    Cue.STATE: tokens.STATE,
    Cue.TASK: tokens.TASK,
    Cue.METADATA: tokens.METADATA,
    Cue.SUBTASK: tokens.SUBTASK,
    Cue.ADVANTAGE: tokens.ADVANTAGE,
    Cue.ACTION: tokens.ACTION,
}


def _codes(codes: ArrayLike, count: int) -> NDArray[np.int64]:
    array = np.asarray(codes, np.int64)
    wrong = array[(array < 0) | (array >= count)]
    if wrong.size:
        raise TextError(f"FAST code {wrong[0]}, wanted 0 .. {count - 1}: the vocabulary has no id for it")
    return array
