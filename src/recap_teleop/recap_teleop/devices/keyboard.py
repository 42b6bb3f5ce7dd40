"""A terminal's keyboard as a pedal, over SSH too."""

from __future__ import annotations

import errno
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Mapping

from recap_station.contract import ContractError
from recap_teleop.devices import PedalLost
from recap_teleop.keys import ACTIONS, KEYS, split_keys, unfinished

ESCAPE_S = 0.1  # the rest of a key's sequence comes sooner than this, also over a slow connection


class KeyboardPedal:
    """One switch for each action that has a key, in the order of `ACTIONS`: see `actions`.

    A terminal sends no key-up, only repeats while a key is held: a switch opens when none came for
    `release_s` (the first repeat comes late, so a press lasts at least `first_s`). It repeats only the last
    key pressed: whoever holds the space bar and presses another lets go of the space bar.
    Raises ContractError where standard input is not a terminal.
    """

    def __init__(self, keys: Mapping[str, str] = KEYS, release_s: float = 0.15, first_s: float = 0.6) -> None:
        self.name = "keyboard"
        self.actions = actions_of(keys)
        if not sys.stdin.isatty():
            raise ContractError("pedal 'keyboard' wants a terminal, but standard input is not one")
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        self._keys = dict(keys)
        self._release_s, self._first_s = release_s, first_s
        self._until_s = dict.fromkeys(self.actions, 0.0)
        self._rest, self._rest_s = "", 0.0

    def read(self) -> tuple[bool, ...]:
        now = time.monotonic()
        for key in split_keys(self._typed(now)):
            action = self._keys.get(key)
            if action is not None:
                until = self._until_s[action]
                lasts = self._first_s if now >= until else self._release_s
                self._until_s[action] = max(until, now + lasts)
        return tuple(now < until for until in self._until_s.values())

    def _typed(self, now_s: float) -> str:
        """What was typed since, with the beginning of an unfinished sequence kept for the next time."""
        typed, self._rest = self._rest, ""
        while select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 256)
            if not data:
                raise PedalLost(errno.EIO, "the terminal is gone")
            typed, self._rest_s = typed + data.decode(errors="ignore"), now_s
        if now_s - self._rest_s < ESCAPE_S:
            self._rest = unfinished(typed)
        return typed.removesuffix(self._rest)

    def close(self) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


def actions_of(keys: Mapping[str, str]) -> tuple[str, ...]:
    """The actions that have a key, in the order of `ACTIONS`."""
    return tuple(action for action in ACTIONS if action in keys.values())
