"""Text ↔ token ids behind one small interface: Gemma's tokenizer for real backbones, bytes for `tiny`.

`prompt.py` says in which order lines follow one another. Here stands how each part of a line is written.
No torch is needed for `GemmaTokenizer`; ids are plain integers and numpy arrays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recap_policy import bpe as bpes
from recap_policy import tokens
from recap_station.files import replace_file

FILE = "tokenizer.json"
Ids = tuple[int, ...]
_PIECE = re.compile(r" ?[^ ]+| +")


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
    VALUE = "Value:"


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

    def read_line(self, ids: Iterable[int]) -> str:
        """Inverse of `line`; what follows the end of the line is left out."""

    @property
    def writable(self) -> NDArray[np.bool_]:
        """(size,) The ids that a line may consist of: text, and the newline that ends it."""

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
        text = bpes.read_text(self.path)
        self.data = text.encode()  # the file may be gone when a checkpoint is written
        self._bpe = bpes.parse(text, str(self.path))
        # The image token that Gemma 3's releases put behind the vocabulary must not move the actions.
        image = self._bpe.token_to_id("<image_soft_token>")
        self.size = self._bpe.get_vocab_size(with_added_tokens=False) if image is None else image
        self.action_codes, self.skip = action_codes, skip
        self._first_code = self.size - 1 - skip
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

    def read_line(self, ids: Iterable[int]) -> str:
        return self.decode(_until(ids, self.newline)).removeprefix(" ")

    @cached_property
    def writable(self) -> NDArray[np.bool_]:
        known = np.zeros(self.size, np.bool_)
        for piece, token in self._bpe.get_vocab().items():
            if token < self.size:
                known[token] = "\n" not in piece and piece != "<0x0A>"  # a second newline ends nothing
        for token, added in self._bpe.get_added_tokens_decoder().items():
            if token < self.size and added.special:
                known[token] = False
        known[self._first_code - self.action_codes + 1 : self._first_code + 1] = False
        known[self.newline] = True
        return known

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
        """Write the file into a checkpoint, in one step."""
        replace_file(Path(folder) / FILE, lambda temporary: temporary.write_bytes(self.data))

    def _encode(self, text: str) -> Ids:
        return tuple(self._bpe.encode(text, add_special_tokens=False).ids)

    def _is_action(self, token: int) -> bool:
        return 0 <= self._first_code - token < self.action_codes

    def _special(self, name: str) -> int:
        token = self._bpe.token_to_id(name)
        if token is None:
            raise TextError(f"{self.path}: no token {name}, wanted a tokenizer of Gemma's kind")
        return token


class TinyTokenizer:
    """Bytes, plus one token for each of `words` (pieces with their leading space, as in sentence-piece, or
    whole lines), for each cue, state bin and FAST code (tokens.py)."""

    pad, newline, end = tokens.PAD, tokens.NEWLINE, tokens.END
    begin: Ids = ()

    def __init__(self, words: Sequence[str] = (), word_slots: int = 128, action_codes: int = 0) -> None:
        if len(words) > word_slots:
            raise TextError(f"tokenizer of {len(words)} words, wanted at most {word_slots}")
        self.words = tuple(words)
        self._id = {word: tokens.FIRST_WORD + index for index, word in enumerate(self.words)}
        self._cached = lru_cache(maxsize=4096)(self._encode)
        self._first_code = tokens.vocabulary_size(word_slots)
        self.action_codes = action_codes
        self.size = tokens.vocabulary_size(word_slots, action_codes)

    @staticmethod
    def fit(texts: Iterable[str], word_slots: int = 128, action_codes: int = 0) -> TinyTokenizer:
        """Give the `word_slots` most frequent words of `texts` a token of their own, and where slots are left
        the texts themselves: what a small model reads and writes all the time, the same few prompts and
        sub-tasks, is then two thirds shorter."""
        texts = list(texts)
        lines = sorted({text for text in texts if len(_PIECE.findall(text)) > 1})
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text))
        ranked = [word for word, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))]
        return TinyTokenizer([*ranked, *lines][:word_slots], word_slots, action_codes)

    def encode(self, text: str) -> Ids:
        """A line that has a token is that; words without one are spelt in bytes."""
        return self._cached(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Broken UTF-8 is replaced."""
        text = bytearray()
        for token in ids:
            if tokens.FIRST_BYTE <= token < tokens.FIRST_STATE_BIN:
                text.append(token - tokens.FIRST_BYTE)
            elif tokens.FIRST_WORD <= token < tokens.FIRST_WORD + len(self.words):
                text += self.words[token - tokens.FIRST_WORD].encode()
        return text.decode(errors="replace")

    def read_line(self, ids: Iterable[int]) -> str:
        return self.decode(_until(ids, self.newline))

    @cached_property
    def writable(self) -> NDArray[np.bool_]:
        known = np.zeros(self.size, np.bool_)
        known[tokens.FIRST_BYTE : tokens.FIRST_STATE_BIN] = True
        known[tokens.FIRST_WORD : tokens.FIRST_WORD + len(self.words)] = True
        known[self.newline] = True
        return known

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

    def _encode(self, text: str) -> Ids:
        if text in self._id:
            return (self._id[text],)
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            if piece in self._id:
                ids.append(self._id[piece])
            else:
                ids += [tokens.FIRST_BYTE + byte for byte in piece.encode()]
        return tuple(ids)


_TINY_CUES = {
    Cue.STATE: tokens.STATE,
    Cue.TASK: tokens.TASK,
    Cue.METADATA: tokens.METADATA,
    Cue.SUBTASK: tokens.SUBTASK,
    Cue.ADVANTAGE: tokens.ADVANTAGE,
    Cue.ACTION: tokens.ACTION,
    Cue.VALUE: tokens.VALUE,
}


def _until(ids: Iterable[int], end: int) -> list[int]:
    found: list[int] = []
    for token in ids:
        if token == end:
            break
        found.append(token)
    return found


def _codes(codes: ArrayLike, count: int) -> NDArray[np.int64]:
    array = np.asarray(codes, np.int64)
    wrong = array[(array < 0) | (array >= count)]
    if wrong.size:
        raise TextError(f"FAST code {wrong[0]}, wanted 0 .. {count - 1}: the vocabulary has no id for it")
    return array
