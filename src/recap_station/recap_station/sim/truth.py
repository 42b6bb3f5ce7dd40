"""What only a simulator knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Truth:
    """qpos: (n,) float64, MuJoCo's joint positions, then the positions of props without joints, then the
    task's memory; see `scene.pack`."""

    stage: str
    success: bool
    failure: bool
    qpos: np.ndarray
