"""Pedals. Where the kernel allows it a virtual device is made with uinput; elsewhere a fake, saying so."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import evdev
import pytest
from evdev import ecodes

from recap_station.contract import ContractError
from recap_teleop.devices import HotPlug, Pedal, PedalLost
from recap_teleop.devices.event_device import EvdevPedal, list_devices
from recap_teleop.devices.fake import FAKE, FakeDevice, FakePedal
from recap_teleop.devices.keyboard import KeyboardPedal

pytestmark = pytest.mark.alone

KEYS = [ecodes.KEY_A, ecodes.KEY_B]


class Foot(Protocol):
    """What a test does to a pedal; `device` is how the software names it, lastingly."""

    device: str

    def press(self, code: int) -> None: ...

    def repeat(self, code: int) -> None: ...

    def release(self, code: int) -> None: ...

    def unplug(self) -> None: ...

    def plug(self) -> None: ...


class UinputFoot:
    """A device of the kernel's. Its lasting name is a link, as udev makes them under by-id."""

    def __init__(self, folder: Path):
        self._link = folder / "usb-test-event-kbd"
        self.device = str(self._link)
        self.plug()

    def plug(self) -> None:
        self._made = evdev.UInput({ecodes.EV_KEY: KEYS}, name="recap test pedal")
        wait(lambda: self._made.device and os.access(self._made.device.path, os.R_OK))
        self._link.symlink_to(self._made.device.path)

    def unplug(self) -> None:
        self._link.unlink(missing_ok=True)
        self._made.close()

    def press(self, code: int) -> None:
        self._write(code, 1)

    def repeat(self, code: int) -> None:
        self._write(code, 2)

    def release(self, code: int) -> None:
        self._write(code, 0)

    def _write(self, code: int, value: int) -> None:
        self._made.write(ecodes.EV_KEY, code, value)
        self._made.syn()


class FakeFoot(FakePedal):
    def __init__(self, folder: Path):
        super().__init__(folder / "pedal", KEYS)
        self.device = f"{FAKE}{self.path}"


@pytest.fixture
def foot(tmp_path: Path) -> Iterator[Foot]:
    made: Foot = UinputFoot(tmp_path) if os.access("/dev/uinput", os.W_OK) else FakeFoot(tmp_path)
    yield made
    made.unplug()


def wait(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until(pedal: Pedal, wanted: tuple[bool, ...]) -> None:
    wait(lambda: pedal.read() == wanted)


# --- event devices ------------------------------------------------------------------------------------


def test_keys_become_buttons_in_the_order_asked_for(foot: Foot) -> None:
    pedal = EvdevPedal(foot.device, ["KEY_B", "KEY_A"])
    assert pedal.read() == (False, False)
    foot.press(ecodes.KEY_A)
    until(pedal, (False, True))
    foot.repeat(ecodes.KEY_A)  # the kernel repeats a held key
    foot.press(ecodes.KEY_B)
    until(pedal, (True, True))
    foot.release(ecodes.KEY_A)
    until(pedal, (True, False))
    pedal.close()


def test_key_that_is_down_when_the_device_is_opened_is_down(foot: Foot) -> None:
    foot.press(ecodes.KEY_B)
    wait(lambda: EvdevPedal(foot.device, grab=False).read() == (False, True))


def test_unplugged_pedal_is_noticed_with_a_key_down_too(foot: Foot) -> None:
    pedal = EvdevPedal(foot.device)
    foot.press(ecodes.KEY_A)
    until(pedal, (True, False))
    foot.unplug()
    with pytest.raises(PedalLost, match="is gone"):
        wait(lambda: not pedal.read()[0])


def test_grabbed_pedal_is_nobody_elses(foot: Foot) -> None:
    pedal = EvdevPedal(foot.device)
    with pytest.raises(ContractError, match="grabbed by another program"):
        EvdevPedal(foot.device)
    listener = EvdevPedal(foot.device, grab=False)
    foot.press(ecodes.KEY_A)
    until(pedal, (True, False))
    assert listener.read() == (False, False)
    pedal.close()
    wait(lambda: _can_grab(foot.device))


def _can_grab(device: str) -> bool:
    try:
        EvdevPedal(device).close()
    except ContractError:
        return False
    return True


def test_wrong_keys_and_devices_are_named(foot: Foot) -> None:
    with pytest.raises(ContractError, match="wanted a name such as KEY_A"):
        EvdevPedal(foot.device, ["LEFT"])
    with pytest.raises(ContractError, match="has no KEY_Z; it has KEY_A, KEY_B"):
        EvdevPedal(foot.device, ["KEY_Z"])


def test_missing_device_is_one_line() -> None:
    with pytest.raises(ContractError, match=r"/dev/input/nothing: No such file.*by-id"):
        EvdevPedal("/dev/input/nothing")


def test_pedal_that_goes_while_it_is_opened_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foot = FakePedal(tmp_path / "pedal", KEYS)

    def gone(self: FakeDevice) -> list[int]:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(FakeDevice, "active_keys", gone)
    with pytest.raises(ContractError, match="went while it was opened: No such device"):
        EvdevPedal(f"{FAKE}{foot.path}")
    wait(lambda: not foot.grabbed)
    foot.unplug()


def test_events_that_the_kernel_lost_are_made_up_for(tmp_path: Path) -> None:
    foot = FakePedal(tmp_path / "pedal", KEYS)
    pedal = EvdevPedal(f"{FAKE}{foot.path}")
    foot.press(ecodes.KEY_A)
    until(pedal, (True, False))
    foot.lose(ecodes.KEY_A, 0)
    until(pedal, (False, False))
    foot.lose(ecodes.KEY_B, 1)
    until(pedal, (False, True))
    foot.unplug()


def test_of_a_whole_keyboard_the_switches_must_be_named(tmp_path: Path) -> None:
    foot = FakePedal(tmp_path / "pedal", list(range(ecodes.KEY_1, ecodes.KEY_1 + 40)))
    with pytest.raises(ContractError, match=r"has 40 keys: name those of its switches"):
        EvdevPedal(f"{FAKE}{foot.path}")
    assert EvdevPedal(f"{FAKE}{foot.path}", ["KEY_Q"]).read() == (False,)
    foot.unplug()


def test_devices_are_listed_and_watched(foot: Foot, tmp_path: Path) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "by-id" / "usb-Maker_Pedal-event-kbd").symlink_to(tmp_path / "event7")
    (tmp_path / "event7").touch()  # no device: found, and its problem said
    (tmp_path / "event9").touch()
    found = list_devices(tmp_path)
    assert [Path(one.path).name for one in found] == ["usb-Maker_Pedal-event-kbd", "event9"]
    assert all(one.problem and not one.keys for one in found)
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "recap_teleop.devices", foot.device], stdout=file, stderr=file,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def shown() -> bool:
        foot.press(ecodes.KEY_B)  # again and again: when it listens is not known
        foot.release(ecodes.KEY_B)
        return "KEY_B" in output.read_text()

    try:
        wait(shown)
        foot.unplug()
        assert process.wait(20.0) == 1
        assert "is gone" in output.read_text()
    finally:
        process.kill()
        process.wait()


# --- hot-plug -----------------------------------------------------------------------------------------


def test_pedal_is_found_again_after_a_replug_with_a_key_down(foot: Foot) -> None:
    plug = HotPlug(lambda: EvdevPedal(foot.device))
    assert plug.poll(0.0) == (False, False) and plug.problem == ""
    foot.press(ecodes.KEY_A)
    wait(lambda: plug.poll(0.1) == (True, False))
    foot.unplug()
    wait(lambda: plug.poll(0.2) is None)  # mid-press: not "up", but not known
    assert "is gone" in plug.problem and plug.lost == 1
    assert plug.poll(0.6) is None and "No such" in plug.problem
    foot.plug()
    assert plug.poll(0.9) is None  # not yet due
    wait(lambda: plug.poll(1.2) == (False, False) or plug.poll(99.0) == (False, False))
    assert plug.problem == "" and plug.opened == 2


# --- a terminal's keyboard ------------------------------------------------------------------------------


def test_keyboard_wants_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(ContractError, match="wants a terminal"):
        KeyboardPedal()


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], object]]:
    keyboard, terminal = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, "r"))
    yield lambda typed: os.write(keyboard, typed)
    os.close(keyboard)


def test_space_bar_is_held_by_its_repeats_and_released_without(typing: Callable[[bytes], object]) -> None:
    pedal = KeyboardPedal({"space": "takeover"}, release_s=0.3, first_s=0.5)
    assert pedal.actions == ("takeover",)
    assert pedal.read() == (False,)
    typing(b"x")
    assert pedal.read() == (False,)
    typing(b" ")
    until(pedal, (True,))
    until(pedal, (False,))
    pedal.close()


def test_keys_of_actions_are_switches_and_arrows_are_not(typing: Callable[[bytes], object]) -> None:
    pedal = KeyboardPedal({"d": "discard", "space": "takeover", "s": "success"}, first_s=60.0)
    assert pedal.actions == ("takeover", "success", "discard")
    typing(b"\x1b[D")  # the left arrow, whose sequence ends in a D
    time.sleep(0.05)
    assert pedal.read() == (False, False, False)
    typing(b"\x1b[")
    pedal.read()
    typing(b"D" + b"S")  # cut in two by the line, and a letter behind it
    until(pedal, (False, True, False))
    pedal.close()
