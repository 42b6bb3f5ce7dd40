"""Files of the `tokenizers` library, and what their tokens stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers


class TokenizerError(ValueError):
    """A tokenizer, or what it is given, does not fit. One line: value found, value wanted, place."""


def parse(text: str, place: str) -> tokenizers.Tokenizer:
    """The tokenizer in the text of a tokenizer.json. Raises TokenizerError, naming `place`."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{place}: no tokenizer of the tokenizers library: {error!s}") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error!s}") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: not JSON: {error!s}") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: holds a {type(data).__name__}, wanted an object")
    return data


def token_bytes(bpe: tokenizers.Tokenizer) -> dict[int, bytes]:
    """Id → the UTF-8 bytes that it stands for; of a byte-level BPE, possibly a part of a character."""
    decoder = json.loads(bpe.to_str()).get("decoder") or {}
    vocabulary = bpe.get_vocab()
    if decoder.get("type") != "ByteLevel":
        return {token: piece.encode() for piece, token in vocabulary.items()}
    table = _byte_level()
    return {token: b"".join(table.get(c, c.encode()) for c in piece) for piece, token in vocabulary.items()}


def _byte_level() -> dict[str, bytes]:
    """Characters that stand for bytes in a byte-level BPE: Latin-1's visible ones for themselves, those from
    U+0100 on for the other bytes in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    shown = {chr(byte): bytes([byte]) for byte in visible}
    return shown | {chr(256 + place): bytes([byte]) for place, byte in enumerate(hidden)}
