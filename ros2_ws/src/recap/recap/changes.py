"""`--set NAME=VALUE`: one setting of many, by its path through the dataclasses that hold them."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

Settings = TypeVar("Settings")
_WORDS = {"true": True, "false": False}


def changed(how: Settings, words: Sequence[str]) -> Settings:
    """With NAME=VALUE for each word, in their order. NAME is a path, as in improvement.rule.lookahead=25;
    VALUE a number, a word, true or false, none where that is allowed, or a mapping as JSON.

    Raises ValueError on a name there is not, with the nearest one, and on what the settings do not take.
    """
    for word in words:
        path, found, value = word.partition("=")
        if not found:
            raise ValueError(f"--set {word}: wanted NAME=VALUE")
        how = _put(how, path.strip().split("."), value.strip(), word)
    return how


def _put(part: Any, path: Sequence[str], value: str, word: str) -> Any:
    known = {f.name for f in fields(part)} if is_dataclass(part) and not isinstance(part, type) else set()
    name, rest = path[0], path[1:]
    if part is None:
        raise ValueError(f"--set {word}: there is no {name!r}, what it is of is none")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f", did you mean {close[0]!r}?" if close else f" (there are: {', '.join(sorted(known))})"
        raise ValueError(f"--set {word}: no setting {name!r}{hint}")
    old = getattr(part, name)
    if rest:
        return replace(part, **{name: _put(old, rest, value, word)})
    try:
        return replace(part, **{name: _read(value, typing.get_type_hints(type(part))[name])})
    except ValueError as error:
        raise ValueError(f"--set {word}: {name} is {old!r} so far: {error}") from error


def _read(text: str, hint: Any) -> Any:
    """The value that a text stands for, of the type that a field is declared with. Raises ValueError."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    if types.NoneType in kinds and text.lower() in ("none", "null"):
        return None
    for kind in kinds:
        if kind is bool and text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if kind is str:
            return text
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) in (Mapping, dict):
            found = json.loads(text)
            if isinstance(found, dict):
                return found
    wanted = "true or false" if bool in kinds else "a setting that is a number, a word or a mapping"
    raise ValueError(f"found {text!r}, wanted {wanted}")
