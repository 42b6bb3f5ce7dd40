"""Linux input devices as pedals: most USB foot pedals are keyboards or mice to the kernel."""

from __future__ import annotations

import errno
import select
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evdev
from evdev import ecodes

from recap_station.contract import ContractError
from recap_teleop.devices import PedalLost
from recap_teleop.devices.fake import FAKE, FakeDevice

MOST_SWITCHES = 8  # a device with more keys is a whole keyboard: which of them are switches must be said
INPUT = Path("/dev/input")


class EvdevPedal:
    """An input device by path, best one under /dev/input/by-id: those names survive a re-plug.

    `keys` names the key of each button in order ("KEY_A"); empty takes all that the device has, in the
    kernel's order, up to eight. With `grab` its keys reach nobody else, so that a pedal types no letters
    into an editor. "fake:PATH" is a stand-in for a kernel device, see `fake.py`.
    Raises ContractError where the device or a key does not exist, or another program has grabbed it.
    """

    def __init__(self, path: str, keys: Sequence[str] = (), grab: bool = True):
        self.name = path
        try:
            self._device = _open(path)
        except OSError as error:
            raise ContractError(f"pedal {path}: {error.strerror}{_help(error)}") from error
        try:
            self._pressed = dict.fromkeys(self._codes(keys), False)
            if grab:
                self._device.grab()
            self._look()
        except OSError as error:
            self.close()
            why = (
                "is grabbed by another program" if error.errno == errno.EBUSY else "went while it was opened"
            )
            raise ContractError(f"pedal {path} {why}: {error.strerror}") from error
        except ContractError:
            self.close()
            raise

    def _codes(self, keys: Sequence[str]) -> list[int]:
        available = self._device.capabilities().get(ecodes.EV_KEY, [])
        if not available:
            raise ContractError(f"pedal {self.name} ({self._device.name}) has no keys")
        if not keys and len(available) > MOST_SWITCHES:
            raise ContractError(
                f"pedal {self.name} ({self._device.name}) has {len(available)} keys: name those of its "
                f"switches; python -m recap_teleop.devices {self.name} shows them as they are pressed"
            )
        for key in keys:
            if key not in ecodes.ecodes:
                raise ContractError(f"pedal key {key!r}: no such key; wanted a name such as KEY_A")
            if ecodes.ecodes[key] not in available:
                raise ContractError(f"pedal {self.name} has no {key}; it has {', '.join(_names(available))}")
        return [ecodes.ecodes[key] for key in keys] or list(available)

    def _look(self) -> None:
        """Ask the kernel which keys are down: on opening, and after events were lost."""
        held = self._device.active_keys()
        for code in self._pressed:
            self._pressed[code] = code in held

    def read(self) -> tuple[bool, ...]:
        try:
            while select.select([self._device.fd], [], [], 0)[0]:
                for event in self._device.read():
                    if event.type == ecodes.EV_KEY and event.code in self._pressed:
                        self._pressed[event.code] = event.value != 0  # 1 down, 2 repeated, 0 up
                    elif event.type == ecodes.EV_SYN and event.code == ecodes.SYN_DROPPED:
                        self._look()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise PedalLost(error.errno, f"pedal {self.name} is gone: {error.strerror}") from error
        return tuple(self._pressed.values())

    def close(self) -> None:
        try:
            self._device.close()
        except OSError:
            return  # unplugged: nothing left to close


def _open(path: str) -> Any:
    return FakeDevice(path.removeprefix(FAKE)) if path.startswith(FAKE) else evdev.InputDevice(path)


@dataclass(frozen=True)
class Found:
    """An input device: where it is, what it calls itself, names of its keys, and why they are not known."""

    path: str
    name: str = ""
    keys: tuple[str, ...] = ()
    problem: str = ""


def list_devices(folder: Path = INPUT) -> list[Found]:
    """Input devices with keys: by their lasting names under by-id; without one (Bluetooth) as event*."""
    lasting = sorted(path for path in (folder / "by-id").glob("*event*"))
    known = {path.resolve() for path in lasting}
    others = [path for path in sorted(folder.glob("event*")) if path.resolve() not in known]
    found = []
    for path in (*lasting, *others):
        try:
            device = evdev.InputDevice(str(path))
        except OSError as error:
            found.append(Found(str(path), problem=error.strerror or str(error)))
            continue
        keys = device.capabilities().get(ecodes.EV_KEY, [])
        if keys:
            found.append(Found(str(path), device.name, tuple(_names(keys))))
        device.close()
    return found


def watch(path: str) -> None:
    """Print the names of the keys of a device as they are pressed, until interrupted or unplugged."""
    try:
        device = _open(path)
    except OSError as error:
        raise ContractError(f"{path}: {error.strerror}{_help(error)}") from error
    try:
        while select.select([device.fd], [], [])[0]:
            for event in device.read():
                if event.type == ecodes.EV_KEY and event.value == 1:
                    print(_names([event.code])[0], flush=True)
    except OSError as error:
        raise PedalLost(error.errno, f"{path} is gone: {error.strerror}") from error
    finally:
        device.close()


def _names(codes: Sequence[int]) -> list[str]:
    """Names as `keys` wants them: KEY_A, BTN_LEFT; the first where the kernel has several for a code."""
    names = []
    for code in codes:
        known = ecodes.KEY.get(code) or ecodes.BTN.get(code) or f"code {code}"
        names.append(known if isinstance(known, str) else known[0])
    return names


def _help(error: OSError) -> str:
    if error.errno == errno.EACCES:
        return "; sudo usermod -aG input $USER, and log in again"
    names = sorted(str(path) for path in (INPUT / "by-id").glob("*event*"))
    return "; there are: " + ", ".join(names) if names else f"; there is none in {INPUT / 'by-id'}"
