"""What a robot was last seen like: the newest image of each camera and the newest joint states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recap_station import topics
from recap_station.contract import Station

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True)
class Observation:
    """jpegs: camera → JPEG; state: (dof,) [rad; gripper 0..1]; stamp_ns: the oldest of its parts', and
    received_s: when the first of them was received."""

    jpegs: Mapping[str, Buffer]
    state: np.ndarray
    stamp_ns: int
    received_s: float


class Observer:
    """Keeps what was received last. Times of receipt are a steady clock's seconds, passed in.

    A message with the stamp of the one before is the same one again, and does not make a stream alive; one
    without a stamp (0) always counts.
    """

    def __init__(self, station: Station, timeout_s: float):
        """timeout_s: what was received longer ago is not used."""
        self._station, self._timeout_s = station, timeout_s
        self._images: dict[str, tuple[Buffer, int, float]] = {}
        self._state: tuple[np.ndarray, int, float] | None = None

    def image(self, camera: str, jpeg: Buffer, stamp_ns: int, now_s: float) -> None:
        if stamp_ns == 0 or camera not in self._images or self._images[camera][1] != stamp_ns:
            self._images[camera] = (jpeg, stamp_ns, now_s)

    def state(self, positions: np.ndarray, stamp_ns: int, now_s: float) -> None:
        """positions: (dof,) in the station's order."""
        if stamp_ns == 0 or self._state is None or self._state[1] != stamp_ns:
            self._state = (positions, stamp_ns, now_s)

    def observe(self, now_s: float) -> Observation | str:
        """The observation of this moment, or in words what keeps it from being whole and recent."""
        if self._state is None:
            return f"no {topics.JOINT_STATES} yet"
        if unseen := [camera for camera in self._station.camera_names if camera not in self._images]:
            return f"no image of {unseen[0]} yet"
        ages = {camera: now_s - at for camera, (_, _, at) in self._images.items()}
        ages[topics.JOINT_STATES] = now_s - self._state[2]
        name, age = max(ages.items(), key=lambda item: item[1])
        if age > self._timeout_s:
            return f"{name} is {age:.2f} s old, wanted at most {self._timeout_s:g} s"
        parts = [self._state, *self._images.values()]
        jpegs = {camera: jpeg for camera, (jpeg, _, _) in self._images.items()}
        return Observation(jpegs, self._state[0], min(p[1] for p in parts), min(p[2] for p in parts))
