"""Whether arms that are held were put elsewhere, by the simulator's reset or by hand.

The command must then follow them, or they would be dragged back. It must not follow arms that only lag
behind while they come to rest: it would jump back to where they are.
"""

from __future__ import annotations

import numpy as np

from recap_station.contract import Station

FAR = 0.05  # rad from where they are held
SETTLE_S = 2.0  # after which arms that are still elsewhere are stuck there
_LEAP = 3.0  # velocity limits: faster than that no motor moves an arm


class Displaced:
    """Watches held arms tick by tick. Vectors (dof,) float64; grippers are not looked at, since one that
    grips is not where it is told to be."""

    def __init__(self, station: Station):
        self._arms = ~station.is_gripper
        self._fastest = (_LEAP * station.max_velocity)[self._arms]
        self._step_s = station.step_s
        self._seen: tuple[float, np.ndarray] | None = None
        self._held_s = np.inf  # since when
        self._known = False  # whether they were seen where they are held, or seen to leap

    def watch(self, now_s: float, measured: np.ndarray, held: np.ndarray | None) -> bool:
        """held: the command while nothing moves it and nobody's is followed; None: it moves, or somebody is.
        → whether they were put elsewhere."""
        before, position = self._seen, measured[self._arms]
        self._seen = (now_s, position)
        if held is None:
            self._held_s, self._known = np.inf, False
            return False
        self._held_s = min(self._held_s, now_s)
        if np.abs(position - held[self._arms]).max() <= FAR:
            self._known = True
            return False
        if before is not None:
            leap = np.abs(position - before[1]) > self._fastest * (now_s - before[0] + self._step_s)
            self._known |= bool(leap.any())
        return self._known or now_s - self._held_s > SETTLE_S
