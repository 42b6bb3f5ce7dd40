"""A fake event device: what EvdevPedal uses of the kernel, over a socket, where no device can be made.

    pedal = FakePedal("/tmp/pedal", [ecodes.KEY_A])     # the side of the foot
    EvdevPedal("fake:/tmp/pedal")                       # the side of the software, of any process
    pedal.press(ecodes.KEY_A)
    pedal.unplug()

It is no kernel device and says so in its name. Like one, it hands events to all who have opened it or to the
one who grabbed it, refuses a second grab, and is gone for its readers at the moment that it is unplugged.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import evdev
from evdev import ecodes

FAKE = "fake:"
EVENTS, HELD, GRAB = b"E", b"H", b"G"  # first byte of a packet; GRAB is answered by itself and 1 or 0
_WAIT_S = 5.0


class FakeDevice:
    """The members of evdev.InputDevice that are used here. Raises OSError as that does."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_WAIT_S)
        try:
            self._socket.connect(path)
            hello = json.loads(self._socket.recv(4096) or b"null")
        except OSError as error:
            self._socket.close()
            number = errno.ENOENT if isinstance(error, ConnectionRefusedError) else error.errno
            raise OSError(number, os.strerror(number or errno.ENODEV)) from error
        if hello is None:
            self._socket.close()
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        self.name, self._codes, self._held = hello["name"], hello["codes"], set(hello["held"])
        self.fd = self._socket.fileno()

    def capabilities(self) -> dict[int, list[int]]:
        return {ecodes.EV_KEY: self._codes}

    def active_keys(self) -> list[int]:
        return sorted(self._held)

    def grab(self) -> None:
        self._socket.send(GRAB)
        while (answer := self._socket.recv(4096)) and answer[:1] != GRAB:
            continue  # an event on its way to all
        if answer != GRAB + b"1":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def read(self) -> Iterator[evdev.InputEvent]:
        packet = self._socket.recv(4096)
        if not packet:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if packet[:1] == HELD:
            self._held = set(json.loads(packet[1:]))
            yield evdev.InputEvent(0, 0, ecodes.EV_SYN, ecodes.SYN_DROPPED, 0)
        elif packet[:1] == EVENTS:
            code, value = json.loads(packet[1:])
            yield evdev.InputEvent(0, 0, ecodes.EV_KEY, code, value)

    def close(self) -> None:
        self._socket.close()


@dataclass
class FakePedal:
    """The side of the foot. `codes` are the kernel's numbers of its keys."""

    path: str | Path
    codes: Sequence[int]
    name: str = "fake pedal, not a kernel device"
    _held: set[int] = field(default_factory=set)
    _readers: list[socket.socket] = field(default_factory=list)
    _grabber: socket.socket | None = None
    _server: socket.socket | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.plug()

    def plug(self) -> None:
        """Plug it in: it can be opened."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.bind(str(self.path))
        server.listen()
        self._server = server
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def unplug(self) -> None:
        """Pull it out: its readers find it gone."""
        if self._server is None:
            return
        Path(self.path).unlink()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._server = None
        with self._lock:
            for reader in self._readers:
                with suppress(OSError):
                    reader.shutdown(socket.SHUT_RDWR)
            self._readers.clear()
            self._grabber = None
            self._held.clear()  # the kernel forgets them too

    def press(self, code: int) -> None:
        self._change(code, 1)

    def repeat(self, code: int) -> None:
        self._change(code, 2)

    def release(self, code: int) -> None:
        self._change(code, 0)

    def lose(self, code: int, value: int) -> None:
        """A change whose event is lost: readers are told only that some were (SYN_DROPPED)."""
        self._note(code, value)
        self._send(HELD + json.dumps(sorted(self._held)).encode())

    @property
    def grabbed(self) -> bool:
        with self._lock:
            return self._grabber is not None

    def _change(self, code: int, value: int) -> None:
        self._note(code, value)
        self._send(EVENTS + json.dumps([code, value]).encode())

    def _note(self, code: int, value: int) -> None:
        with self._lock:
            (self._held.add if value else self._held.discard)(code)

    def _send(self, packet: bytes) -> None:
        with self._lock:
            readers = [self._grabber] if self._grabber is not None else list(self._readers)
        for reader in readers:
            with suppress(OSError):
                reader.send(packet)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                reader, _ = server.accept()
                with self._lock:
                    hello = {"name": self.name, "codes": list(self.codes), "held": sorted(self._held)}
                    reader.send(json.dumps(hello).encode())
                    self._readers.append(reader)
                threading.Thread(target=self._serve, args=(reader,), daemon=True).start()

    def _serve(self, reader: socket.socket) -> None:
        with suppress(OSError):
            while packet := reader.recv(16):
                if packet == GRAB:
                    with self._lock:
                        free = self._grabber in (None, reader)
                        self._grabber = reader if free else self._grabber
                    reader.send(GRAB + (b"1" if free else b"0"))
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)
            if self._grabber is reader:
                self._grabber = None
        reader.close()
