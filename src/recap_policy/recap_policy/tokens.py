"""Ids of the own vocabulary, which `tiny` reads; text.py makes them of text.

the layout's fixed words | bytes | state bins | word slots | FAST codes
"""

from __future__ import annotations

PAD, NEWLINE, STATE, TASK, SUBTASK, ADVANTAGE, POSITIVE, NEGATIVE, VALUE, METADATA, ACTION, END = range(12)
FIRST_BYTE = 16
_BYTES = 256
STATE_BINS = 256
FIRST_STATE_BIN = FIRST_BYTE + _BYTES
FIRST_WORD = FIRST_STATE_BIN + STATE_BINS

INDICATORS = {"positive": 1, "negative": 0, "": -1}  # text → code in batches and labels


def vocabulary_size(word_slots: int, action_codes: int = 0) -> int:
    """Rows of the embedding table; FAST codes have the last ones (text.py)."""
    return FIRST_WORD + word_slots + action_codes
