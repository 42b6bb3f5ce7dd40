"""The prompt of one example as token ids, each with what kind of token it is.

    images | State: b1 … bD ↵ Task: … ↵ [Metadata: … ↵] [Subtask: … ↵] [Advantage: positive ↵]
           [Action: FAST end]                                         the policy's
    images | State: … Task: … ↵ [Metadata: … ↵] Value:                the value function's

π*0.6's order (arXiv 2511.14759): the indicator stands behind the sub-task, so that it touches the likelihood
of actions alone. State comes first, in 256 bins, where openpi's π0.5 has it behind the task (a choice: the
paper gives no order; this is also `tiny`'s, whose state is a vector without ids: prefix.py). Images are the
model's own and have no ids here.

Loss is borne by the sub-task, with the newline that ends it, and by the FAST tokens, with the end; never by
prompt, state or indicator. The action expert sees everything but the action line.

    python -m recap_policy.prompt                              an example, in `tiny`'s tokens
    python -m recap_policy.prompt --tokenizer tokenizer.json   the same in Gemma's
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recap_policy.bpe import TokenizerError
from recap_policy.fast import Fast
from recap_policy.text import Cue, GemmaTokenizer, TextTokenizer, TinyTokenizer
from recap_policy.tokens import INDICATORS, STATE_BINS


class PromptError(TokenizerError):
    """An example that cannot be written as a prompt. One line: value found, value wanted, place."""


class PromptWarning(UserWarning):
    """Something was left out of a prompt to make it fit."""


class Kind(IntEnum):
    """What a token is part of."""

    PAD = 0
    BEGIN = 1
    STATE = 2
    TASK = 3
    METADATA = 4
    SUBTASK_CUE = 5
    SUBTASK = 6
    ADVANTAGE = 7
    ACTION_CUE = 8
    ACTION = 9
    VALUE_CUE = 10
    IMAGE = 11


LEARNT = (Kind.SUBTASK, Kind.ACTION)
HIDDEN_FROM_EXPERT = (Kind.PAD, Kind.ACTION_CUE, Kind.ACTION)
_LEARNT, _HIDDEN = (np.isin(list(Kind), kinds) for kinds in (LEARNT, HIDDEN_FROM_EXPERT))
_KEPT = 4096  # rows


@dataclass(frozen=True, eq=False)
class Row:
    """One example, or a part of one; parts are put together by `+`. ids: (N,) int64; kinds: (N,) uint8."""

    ids: NDArray[np.int64]
    kinds: NDArray[np.uint8]

    @staticmethod
    def of(kind: Kind, ids: Sequence[int] | NDArray[np.int64]) -> Row:
        return Row(np.asarray(ids, np.int64), np.full(len(ids), kind, np.uint8))

    def __add__(self, other: Row) -> Row:
        return Row(np.concatenate([self.ids, other.ids]), np.concatenate([self.kinds, other.kinds]))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows padded at their ends. ids: (B, L) int64; kinds: (B, L) uint8; masks: (B, L) bool."""

    ids: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    pad: int

    @property
    def valid(self) -> NDArray[np.bool_]:
        return self.kinds != Kind.PAD

    @property
    def learnt(self) -> NDArray[np.bool_]:
        """Tokens that bear loss as targets, each predicted from what stands before it."""
        return _LEARNT[self.kinds]

    @property
    def seen_by_expert(self) -> NDArray[np.bool_]:
        return ~_HIDDEN[self.kinds]

    @property
    def indicator(self) -> NDArray[np.bool_]:
        return self.kinds == Kind.ADVANTAGE


@dataclass(frozen=True)
class Layout:
    """Writes the parts of an example. Limits are in tokens, cues and ends of line counted.

    prompt_limit: state, task and metadata together; of these the metadata gives way, with a PromptWarning.
    action_limit: FAST tokens; a longer chunk loses its end, the highest frequencies, with a PromptWarning.
    """

    tokenizer: TextTokenizer
    prompt_limit: int = 200
    subtask_limit: int = 48
    action_limit: int = 256
    _rows: dict[tuple[str | None, ...], Row] = field(default_factory=dict, repr=False, compare=False)

    def prompt(self, task: str, bins: ArrayLike | None = None, metadata: str | None = None) -> Row:
        """What every example begins with. bins: (D,) integers, see `state_bins`; None: state is no text.

        Raises PromptError on an empty text, on a bin outside 0 .. 255, and where the prompt is too long even
        without metadata: the task is never cut.
        """
        if bins is None:
            return self._kept("prompt", task, metadata, write=lambda: self._prompt((), task, metadata))
        state = self.tokenizer.cue(Cue.STATE) + self.tokenizer.state(_bins(bins))
        return self._prompt(state, task, metadata)

    def _prompt(self, state: Sequence[int], task: str, metadata: str | None) -> Row:
        tokenizer = self.tokenizer
        row = (
            Row.of(Kind.BEGIN, tokenizer.begin)
            + Row.of(Kind.STATE, state)
            + Row.of(Kind.TASK, tokenizer.cue(Cue.TASK) + tokenizer.line(_text(task, "task")))
        )
        if len(row) > self.prompt_limit:
            raise PromptError(
                f"prompt of {len(row)} tokens, wanted at most {self.prompt_limit}: "
                f"state and task {task[:60]!r}"
            )
        if metadata is None:
            return row
        cue, text = tokenizer.cue(Cue.METADATA), tokenizer.line(_text(metadata, "metadata"))
        excess = len(row) + len(cue) + len(text) - self.prompt_limit
        if excess <= 0:
            return row + Row.of(Kind.METADATA, cue + text)
        body = text[: max(len(text) - 1 - excess, 0)]  # without the end of the line, which stays
        _warn(f"prompt {excess} tokens over {self.prompt_limit}: metadata {metadata[:60]!r} cut short")
        return row + Row.of(Kind.METADATA, (*cue, *body, tokenizer.newline) if body else ())

    @property
    def subtask_cue(self) -> Row:
        """What a sub-task is decoded behind, token by token, until `tokenizer.newline`."""
        return Row.of(Kind.SUBTASK_CUE, self.tokenizer.cue(Cue.SUBTASK))

    def subtask(self, text: str) -> Row:
        """A known sub-task. Raises PromptError where it is empty or too long: a target is never cut."""
        return self._kept("subtask", text, write=lambda: self._subtask(text))

    def _subtask(self, text: str) -> Row:
        row = self.subtask_cue + Row.of(Kind.SUBTASK, self.tokenizer.line(_text(text, "sub-task")))
        if len(row) > self.subtask_limit:
            raise PromptError(
                f"sub-task of {len(row)} tokens, wanted at most {self.subtask_limit}: {text[:60]!r}"
            )
        return row

    @property
    def no_subtask(self) -> Row:
        """Where nobody knows the sub-task: an empty line, so that a model learns to write one."""
        return self.subtask_cue + Row.of(Kind.SUBTASK, self.tokenizer.line(""))

    def guess(self, text: str) -> Row | None:
        """A sub-task as a model may have written it, be it empty; None where none is so long."""
        row = self.subtask_cue + Row.of(Kind.SUBTASK, self.tokenizer.line(text))
        return row if len(row) <= self.subtask_limit else None

    def advantage(self, indicator: str) -> Row:
        """indicator: "positive", "negative" or "" (no tokens). Raises PromptError on another."""
        if indicator not in INDICATORS:
            raise PromptError(f"indicator is {indicator!r}, wanted one of {list(INDICATORS)}")
        if not indicator:
            return Row.of(Kind.ADVANTAGE, ())
        word = self.tokenizer.indicator(indicator == "positive")
        return Row.of(Kind.ADVANTAGE, self.tokenizer.cue(Cue.ADVANTAGE) + word)

    @property
    def value_cue(self) -> Row:
        """The value is read from its last token: never padding, whatever stands before it."""
        return Row.of(Kind.VALUE_CUE, self.tokenizer.cue(Cue.VALUE))

    @property
    def action_cue(self) -> Row:
        """What FAST tokens are decoded behind, until `tokenizer.end`."""
        return Row.of(Kind.ACTION_CUE, self.tokenizer.cue(Cue.ACTION))

    def actions(self, codes: ArrayLike) -> Row:
        """A chunk's FAST codes, as `Fast.encode` gives them. Raises TextError on an unknown one."""
        ids = [*self.tokenizer.to_actions(codes).tolist(), self.tokenizer.end]
        room = self.action_limit - len(self.action_cue)
        if len(ids) > room:
            _warn(f"{len(ids)} action tokens, wanted at most {room}: the chunk's highest frequencies cut")
            ids = ids[:room]  # every token of a beginning is a true target; the end is not there to learn
        return self.action_cue + Row.of(Kind.ACTION, ids)

    def codes(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Decoded ids → FAST codes for `Fast.decode`: up to the end, whatever is no action -1."""
        array = np.asarray(ids, np.int64).reshape(-1)
        ends = np.flatnonzero(array == self.tokenizer.end)
        return self.tokenizer.from_actions(array[: ends[0]] if ends.size else array)

    def table(self, rows: Sequence[Row], length: int | None = None) -> Table:
        """Rows → one padded table, as long as the longest or `length`. Raises PromptError on a longer row."""
        longest = max((len(row) for row in rows), default=0)
        columns = longest if length is None else length
        if longest > columns:
            raise PromptError(f"row of {longest} tokens, wanted at most {columns}: the table's length")
        ids = np.full((len(rows), columns), self.tokenizer.pad, np.int64)
        kinds = np.zeros((len(rows), columns), np.uint8)
        for index, row in enumerate(rows):
            ids[index, : len(row)], kinds[index, : len(row)] = row.ids, row.kinds
        return Table(ids, kinds, self.tokenizer.pad)

    def _kept(self, *key: str | None, write: Callable[[], Row]) -> Row:
        """A row that was written before, since batches repeat a few texts."""
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= _KEPT:
                self._rows.clear()
            row = self._rows[key] = write()
        return row


def state_bins(scaled: ArrayLike) -> NDArray[np.int64]:
    """(…, D) with the data's range at [-1, 1] → bins 0 .. 255, clipped. Raises PromptError on a NaN."""
    array = np.asarray(scaled, np.float64)
    if np.isnan(array).any():
        place = ", ".join(map(str, np.argwhere(np.isnan(array))[0]))
        raise PromptError(f"state[{place}] is nan, wanted numbers")
    return np.floor((array.clip(-1, 1) + 1) / 2 * STATE_BINS).clip(0, STATE_BINS - 1).astype(np.int64)


def _bins(bins: ArrayLike) -> list[int]:
    array = np.asarray(bins)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise PromptError(f"state of shape {array.shape} and type {array.dtype}, wanted (joints,) integers")
    wrong = np.flatnonzero((array < 0) | (array >= STATE_BINS))
    if wrong.size:
        raise PromptError(f"state[{wrong[0]}] is bin {array[wrong[0]]}, wanted 0 .. {STATE_BINS - 1}")
    return array.tolist()


def _text(text: str, place: str) -> str:
    """One line without double spaces: a newline inside would end it."""
    words = text.split()
    if not words:
        raise PromptError(f"{place} is {text!r}, wanted a text")
    return " ".join(words)


def _warn(message: str) -> None:
    warnings.warn(message, PromptWarning, stacklevel=3)


def _example(tokenizer: TextTokenizer) -> tuple[Layout, Row]:
    """One example with all parts; its FAST is learnt from minimum-jerk reaches."""
    random = np.random.default_rng(0)
    time = np.linspace(0, 1, 50)[None, :, None]
    reach = time**3 * (10 - 15 * time + 6 * time**2)
    chunks = random.normal(size=(300, 1, 14)) * 0.5 * reach
    bins = state_bins(random.uniform(-1, 1, 14))
    layout = Layout(tokenizer)
    return layout, (
        layout.prompt("insert the peg into the socket", bins, "fast, no mistake")
        + layout.subtask("pick up the peg")
        + layout.advantage("positive")
        + layout.actions(Fast.fit(chunks).encode(chunks[:1])[0])
    )


def _describe(layout: Layout, row: Row) -> str:
    lines = [f"{'kind':<12} {'loss':<5} {'tokens':>6}  text, ids"]
    for kind in Kind:
        ids = row.ids[row.kinds == kind].tolist()
        if not ids:
            continue
        shown = " ".join(map(str, ids[:8])) + (" …" if len(ids) > 8 else "")
        loss, text = "yes" if kind in LEARNT else "", layout.tokenizer.decode(ids)
        lines.append(f"{kind.name:<12} {loss:<5} {len(ids):>6}  {text!r} [{shown}]")
    return "\n".join([*lines, f"{'':<12} {'':<5} {len(row):>6}  in all"])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print an example of the prompt's layout.")
    parser.add_argument("--tokenizer", help="a local tokenizer.json of Gemma's kind (default: tiny's own)")
    arguments = parser.parse_args(words)
    try:
        file = arguments.tokenizer
        print(_describe(*_example(GemmaTokenizer(file) if file else TinyTokenizer(action_codes=1024))))
    except TokenizerError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
