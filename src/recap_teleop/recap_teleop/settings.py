"""What can be set of the arbiter, and what it says each tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recap_teleop.handover import STYLES
from recap_teleop.modes import Mode, State


@dataclass(frozen=True)
class ArbiterSettings:
    """Times in seconds. `handover_speed` is a fraction of each joint's velocity limit."""

    policy_timeout_s: float = 0.1
    teleop_timeout_s: float = 0.2
    pedal_timeout_s: float = 0.25
    state_timeout_s: float = 0.25
    console_timeout_s: float = 0.5  # of a console that has taken over
    episode_timeout_s: float = 2.0  # of an episode control that repeats itself
    fresh_timeout_s: float = 5.0  # how long a hand-back waits for the policy's fresh command
    handover: str = "slew"
    handover_speed: float = 0.5
    handover_s: float = 1.0  # from a change of hands to all of the velocity limit
    pedal_style: str = "hold"  # "hold": teleop while pressed; "toggle": each press changes over
    pedal_lock: bool = False  # follow the policy only while a pedal is heard

    def __post_init__(self) -> None:
        if self.handover not in STYLES:
            raise ValueError(f"handover is {self.handover!r}, wanted one of {', '.join(STYLES)}")
        if self.pedal_style not in ("hold", "toggle"):
            raise ValueError(f"pedal_style is {self.pedal_style!r}, wanted 'hold' or 'toggle'")


@dataclass(frozen=True)
class Command:
    """One tick's output. `positions` (dof,) float64 in the station's order."""

    positions: np.ndarray
    mode: Mode
    source: str  # whose command this is: "policy", "teleop" or "hold"
    reason: str  # the event that led to the mode
    flush: bool  # the policy must drop its chunk and infer from what it sees now
    limited: bool  # the source wanted more than the limits allow


class Logged(NamedTuple):
    """What the arbiter did in one tick."""

    now_s: float
    state: State
    source: str
    reason: str
