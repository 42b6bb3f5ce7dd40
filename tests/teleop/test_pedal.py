"""Pedals. A virtual device is made with uinput where the kernel allows it; elsewhere a stand-in for
evdev's device, fed through a pipe, says the same events."""

from __future__ import annotations

import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import evdev
import pytest
from evdev import ecodes

from recap_station.contract import ContractError
from recap_teleop.pedal import EvdevPedal, KeyboardPedal, PedalLost, open_pedal

KEYS = [ecodes.KEY_A, ecodes.KEY_B]


@dataclass
class Foot:
    path: str
    press: Callable[[int, int], object]
    unplug: Callable[[], None]


class StandIn:
    """What EvdevPedal uses of evdev.InputDevice, without a kernel device behind it."""

    name = "stand-in, not a kernel device"

    def __init__(self) -> None:
        self.fd, self.feet = os.pipe()
        self.grabbed = False

    def capabilities(self) -> dict[int, list[int]]:
        return {ecodes.EV_KEY: KEYS}

    def active_keys(self) -> list[int]:
        return []

    def grab(self) -> None:
        self.grabbed = True

    def read(self) -> Iterator[evdev.InputEvent]:
        data = os.read(self.fd, 2)
        if not data:
            raise OSError(19, "No such device")
        yield evdev.InputEvent(0, 0, ecodes.EV_KEY, data[0], data[1])

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def foot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Foot]:
    if os.access("/dev/uinput", os.W_OK):
        device = evdev.UInput({ecodes.EV_KEY: KEYS}, name="recap test pedal")
        deadline = time.monotonic() + 3.0
        while not (device.device and os.access(device.device.path, os.R_OK)) and time.monotonic() < deadline:
            time.sleep(0.05)

        def press(code: int, value: int) -> None:
            device.write(ecodes.EV_KEY, code, value)
            device.syn()
            time.sleep(0.05)

        yield Foot(str(device.device.path), press, device.close)
        device.close()
        return
    stand_in = StandIn()
    monkeypatch.setattr(evdev, "InputDevice", lambda path: stand_in)
    yield Foot(
        "stand-in",
        lambda code, value: os.write(stand_in.feet, bytes([code, value])),
        lambda: os.close(stand_in.feet),
    )


def test_keys_become_buttons_in_the_order_asked_for(foot: Foot) -> None:
    pedal = EvdevPedal(foot.path, ["KEY_B", "KEY_A"])
    assert pedal.read() == (False, False)
    foot.press(ecodes.KEY_A, 1)
    assert pedal.read() == (False, True)
    foot.press(ecodes.KEY_A, 2)  # the kernel repeats a held key
    foot.press(ecodes.KEY_B, 1)
    assert pedal.read() == (True, True)
    foot.press(ecodes.KEY_A, 0)
    assert pedal.read() == (True, False)
    pedal.close()


def test_unplugged_pedal_is_noticed(foot: Foot) -> None:
    pedal = EvdevPedal(foot.path)
    foot.unplug()
    with pytest.raises(PedalLost, match="is gone"):
        for _ in range(100):
            pedal.read()
            time.sleep(0.01)


def test_wrong_keys_and_devices_are_named(foot: Foot) -> None:
    with pytest.raises(ContractError, match="wanted a name such as KEY_A"):
        EvdevPedal(foot.path, ["LEFT"])
    with pytest.raises(ContractError, match="has no KEY_Z"):
        EvdevPedal(foot.path, ["KEY_Z"])


def test_missing_device_is_one_line() -> None:
    with pytest.raises(ContractError, match=r"/dev/input/nothing: No such file.*by-id"):
        open_pedal("/dev/input/nothing")


def test_keyboard_wants_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(ContractError, match="wants a terminal"):
        KeyboardPedal()


def test_space_bar_is_held_by_its_repeats_and_released_without(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, terminal = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, "r"))
    pedal = KeyboardPedal(release_s=0.3, first_s=0.5)
    assert pedal.read() == (False,)
    os.write(keyboard, b"x")
    assert pedal.read() == (False,)
    os.write(keyboard, b" ")
    time.sleep(0.02)
    assert pedal.read() == (True,)
    deadline = time.monotonic() + 5.0
    while pedal.read()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pedal.close()
