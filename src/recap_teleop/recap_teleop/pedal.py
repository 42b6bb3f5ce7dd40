"""Pedals: anything with switches that a person can hold down, behind one small interface.

`EvdevPedal` reads a Linux input device (most USB foot pedals are keyboards to the kernel) and grabs it, so
that its keys reach nobody else. `KeyboardPedal` makes a pedal of a terminal's space bar.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import evdev
from evdev import ecodes

from recap_station.contract import ContractError


class PedalLost(OSError):
    """The device is gone."""


class Pedal(Protocol):
    """Switches of one device. `read()` never blocks and raises PedalLost when the device is gone."""

    name: str

    def read(self) -> tuple[bool, ...]: ...

    def close(self) -> None: ...


class EvdevPedal:
    """A Linux input device by path, best one under /dev/input/by-id: those names survive a re-plug.

    `keys` names the key of each button in order ("KEY_A"); empty takes every key that the device has, in
    the kernel's order, up to eight. Raises ContractError where the device or a key does not exist.
    """

    def __init__(self, path: str, keys: Sequence[str] = (), grab: bool = True):
        self.name = path
        try:
            self._device = evdev.InputDevice(path)
        except OSError as error:
            raise ContractError(f"pedal {path}: {error.strerror}; {_devices()}") from error
        available = self._device.capabilities().get(ecodes.EV_KEY, [])
        try:
            codes = [ecodes.ecodes[key] for key in keys] or available[:8]
        except KeyError as error:
            raise ContractError(f"pedal key {error}: no such key; wanted a name such as KEY_A") from None
        if missing := [key for key, code in zip(keys, codes, strict=False) if code not in available]:
            raise ContractError(f"pedal {path} has no {missing[0]}")
        if not codes:
            raise ContractError(f"pedal {path} ({self._device.name}) has no keys")
        if grab:
            try:
                self._device.grab()
            except OSError as error:
                raise ContractError(
                    f"pedal {path} is grabbed by another program: {error.strerror}"
                ) from error
        held = self._device.active_keys()
        self._pressed = {code: code in held for code in codes}

    def read(self) -> tuple[bool, ...]:
        try:
            while select.select([self._device.fd], [], [], 0)[0]:
                for event in self._device.read():
                    if event.type == ecodes.EV_KEY and event.code in self._pressed:
                        self._pressed[event.code] = event.value != 0  # 1 down, 2 repeated, 0 up
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return tuple(self._pressed.values())
            raise PedalLost(error.errno, f"pedal {self.name} is gone: {error.strerror}") from error
        return tuple(self._pressed.values())

    def close(self) -> None:
        try:
            self._device.close()
        except OSError:
            return  # unplugged: nothing left to close


class KeyboardPedal:
    """The space bar of a terminal, over SSH too. A terminal sends no key-up, only repeats while a key is
    held: the switch opens when none came for `release_s` (the first repeat comes late, so a press lasts at
    least `first_s`). Raises ContractError where standard input is not a terminal."""

    def __init__(self, release_s: float = 0.15, first_s: float = 0.6):
        self.name = "keyboard"
        if not sys.stdin.isatty():
            raise ContractError("pedal 'keyboard' wants a terminal, but standard input is not one")
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        self._release_s, self._first_s = release_s, first_s
        self._until_s = 0.0

    def read(self) -> tuple[bool, ...]:
        now = time.monotonic()
        while select.select([self._fd], [], [], 0)[0]:
            typed = os.read(self._fd, 64)
            if not typed:
                raise PedalLost(errno.EIO, "the terminal is gone")
            if b" " in typed:
                first = now >= self._until_s
                self._until_s = max(self._until_s, now + (self._first_s if first else self._release_s))
        return (now < self._until_s,)

    def close(self) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


def open_pedal(device: str, keys: Sequence[str] = (), grab: bool = True) -> Pedal:
    """Open "keyboard" or an input device by its path."""
    return KeyboardPedal() if device == "keyboard" else EvdevPedal(device, keys, grab)


def _devices() -> str:
    names = sorted(str(path) for path in Path("/dev/input/by-id").glob("*"))
    return "there are: " + ", ".join(names) if names else "there is none in /dev/input/by-id"
