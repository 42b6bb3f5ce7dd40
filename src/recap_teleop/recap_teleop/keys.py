"""What a switch can ask for, and which key of a keyboard asks for it: two literal tables.

Pedals, gamepads, the terminal and `./recap operate` all take their words from `ACTIONS`. A press asks once,
on its way down; only `takeover` also has a release, and what that means is the arbiter's `pedal_style`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recap_station.contract import ContractError


@dataclass(frozen=True)
class Action:
    """One thing that a press can ask for. `service` is its name; "" for takeover, which `joy` carries.
    `outcome` is EndEpisode's, 0 where the service takes none."""

    service: str
    text: str
    outcome: int = 0


ACTIONS: dict[str, Action] = {
    "takeover": Action("", "take over: while held, or from press to press"),
    "success": Action("end_episode", "end the attempt: success", 1),
    "failure": Action("end_episode", "end the attempt: failure", 2),
    "discard": Action("end_episode", "end the attempt and discard it", 3),
    "start": Action("start_episode", "reset the cell and start the next attempt"),
    "stop": Action("stop", "stop: hold until resumed"),
    "resume": Action("resume", "go on after a stop"),
    "estop": Action("estop", "emergency stop, latched"),
    "release_estop": Action("release_estop", "release the emergency stop, into a stop"),
    "undo": Action("undo_label", "take back the outcome just given, within 10 s"),
}

# No key releases an emergency stop by default: whoever does that should have to look for it.
KEYS: dict[str, str] = {
    "space": "takeover",
    "s": "success",
    "f": "failure",
    "d": "discard",
    "n": "start",
    "x": "stop",
    "r": "resume",
    "e": "estop",
    "u": "undo",
}

_NAMES = {" ": "space", "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace"}
_ESCAPE = "\x1b"
_UNFINISHED = re.compile(r"\x1b(?:\[[^@-~]*|O)?\Z")


def split_keys(typed: str) -> list[str]:
    """What a terminal in cbreak mode sent → names of the keys: "a", "space", "enter", "tab", "escape".

    Letters come out small, so that a caps lock disarms nothing. Sequences of arrow and function keys,
    which begin with escape and end in letters that nobody typed, are left out. One may be cut in two
    between two reads: keep what is `unfinished` and put it before what comes next.
    """
    keys = []
    index = 0
    while index < len(typed):
        letter = typed[index]
        index += 1
        if letter == _ESCAPE:
            if index == len(typed):
                keys.append("escape")
            elif typed[index] in "[O":  # CSI and SS3: parameters, then one final byte from @ to ~
                index += 1
                while index < len(typed) and not "@" <= typed[index] <= "~":
                    index += 1
                index += 1
            else:
                index += 1  # alt and a letter
        elif name := _NAMES.get(letter, letter.lower() if letter.isprintable() else ""):
            keys.append(name)
    return keys


def unfinished(typed: str) -> str:
    """The end of `typed` that may be the beginning of a key's sequence; an escape typed alone is one too."""
    found = _UNFINISHED.search(typed)
    return found.group() if found else ""


def check_action(name: str) -> str:
    """The name itself. Raises ContractError, with the nearest one, where it is no action."""
    if name in ACTIONS:
        return name
    close = difflib.get_close_matches(name, ACTIONS, n=1, cutoff=0.5)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise ContractError(f"no action {name!r}{hint} (there are: {', '.join(ACTIONS)})")


def read_keys(words: Sequence[str], defaults: Mapping[str, str] = KEYS) -> dict[str, str]:
    """`key=action` words laid over the defaults; `key=` unbinds. → key name to action.

    Raises ContractError on a word of another form or an unknown action.
    """
    keys = dict(defaults)
    for word in words:
        key, separator, action = word.rpartition("=")
        if not separator or not key:
            raise ContractError(f"key {word!r}: wanted KEY=ACTION, such as space=takeover")
        keys.pop(key.lower(), None)
        if action:
            keys[key.lower()] = check_action(action)
    return keys
