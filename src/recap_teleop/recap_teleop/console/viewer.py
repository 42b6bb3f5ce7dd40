"""What one browser is sent, and when: pure. Of everything at most one is under way to it.

A browser answers what it has drawn; only then is the next sent, and that is the newest by then. A slow one
gets fewer pictures, never older ones, and the console keeps nothing for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from recap_teleop.console.feed import Feed, Frame

STATE_S = 0.1
SAMPLES_S = 0.05
MOST_SAMPLES = 500  # at once: the last 10 s at 50 Hz
IMAGE = struct.Struct("<BBxxId")  # kind, camera, number, age when sent [s]
PICTURE = 1


@dataclass
class Live:
    """State at 10 Hz and samples at 20 Hz, each after the last was answered."""

    state_s: float = -1e9
    samples_s: float = -1e9
    state_open: bool = False
    samples_open: bool = False
    seen: int = -1  # samples that it has

    def wants_state(self, now_s: float) -> bool:
        if self.state_open or now_s - self.state_s < STATE_S - 0.01:
            return False
        self.state_open, self.state_s = True, now_s
        return True

    def samples(self, feed: Feed, now_s: float) -> bytes:
        """b"" where nothing is to be sent now."""
        if self.samples_open or now_s - self.samples_s < SAMPLES_S - 0.01:
            return b""
        self.seen, message = feed.samples(self.seen, MOST_SAMPLES)
        if message:
            self.samples_open, self.samples_s = True, now_s
        return message

    def answered(self, what: str) -> bool:
        """→ whether it was a state: those are the browser's heartbeat."""
        if what == "samples":
            self.samples_open = False
        elif what == "state" and self.state_open:
            self.state_open = False
            return True
        return False


@dataclass
class Pictures:
    """Cameras that the browser has asked for; asking for one is how it answers the last."""

    wanted: set[int] = field(default_factory=set)
    sent: dict[int, int] = field(default_factory=dict)

    def want(self, camera: int, feed: Feed) -> bool:
        """→ False where there is no such camera."""
        if not 0 <= camera < len(feed.frames):
            return False
        self.wanted.add(camera)
        return True

    def due(self, feed: Feed) -> list[tuple[int, Frame]]:
        """Pictures to be sent now, each newer than the last one sent of its camera."""
        ready = []
        for camera in sorted(self.wanted):
            frame = feed.frames[camera]
            if frame is not None and frame.number != self.sent.get(camera):
                self.sent[camera] = frame.number
                ready.append((camera, frame))
        self.wanted.difference_update(camera for camera, _ in ready)
        return ready


def picture(camera: int, frame: Frame, now_s: float) -> bytes:
    """A message: 16 bytes, then the JPEG as it came."""
    return IMAGE.pack(PICTURE, camera, frame.number, now_s - frame.at_s) + frame.jpeg
