"""Devices with switches that a person can press, behind one small interface, and plugged in when they like.

An adaptor is a class with the three members of `Pedal`; `HotPlug` opens it, and opens it again. Whatever is
a ROS topic already (gamepads on `joy`, leader arms, a SpaceMouse's twist) needs no adaptor: it comes through
`recap_teleop.buttons`, `recap_teleop.leader` and `recap_teleop.twist`.

    python -m recap_teleop.devices          # the input devices there are, and their keys
    python -m recap_teleop.devices PATH     # names of the keys of one, as they are pressed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from recap_station.contract import ContractError

RETRY_S = 0.5


class PedalLost(OSError):
    """The device is gone."""


class Pedal(Protocol):
    """Switches of one device. `read()` never blocks and raises PedalLost when the device is gone."""

    name: str

    def read(self) -> tuple[bool, ...]: ...

    def close(self) -> None: ...


class HotPlug:
    """A device that comes and goes. `open_device` raises ContractError while there is none."""

    def __init__(self, open_device: Callable[[], Pedal], retry_s: float = RETRY_S):
        self.problem = "not looked for yet"
        self.opened, self.lost = 0, 0  # how often
        self._open, self._retry_s = open_device, retry_s
        self._device: Pedal | None = None
        self._next_s = -float("inf")

    @property
    def name(self) -> str:
        return self._device.name if self._device is not None else ""

    def poll(self, now_s: float) -> tuple[bool, ...] | None:
        """Switches now; None while the device is missing, and `problem` then says so in one line."""
        if self._device is None:
            if now_s < self._next_s:
                return None
            self._next_s = now_s + self._retry_s
            try:
                self._device = self._open()
            except ContractError as error:
                self.problem = str(error)
                return None
            self.opened += 1
            self.problem = ""
        try:
            return self._device.read()
        except PedalLost as error:
            self.problem = error.strerror or str(error)
            self.lost += 1
            self.close()
            return None

    def close(self) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None
