"""How well the scripted expert works: its dials, and the named settings of them.

Measured over 100 seeds by `python benchmarks/experts.py`; the numbers stand in docs/cell.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """How the expert works. Probabilities are per try, times in seconds, lengths in metres."""

    name: str
    speed: float = 1.0  # 1 is fast
    hesitate: float = 0.0  # probability of a pause before a step
    pause_s: float = 0.0  # its mean length
    bad_grasp: float = 0.0
    early_release: float = 0.0
    misaligned: float = 0.0
    patience_s: float = 0.5  # pushing without progress before another try
    tremor_m: float = 0.0


FAST = Style("fast", speed=0.85)
MODERATE = Style("moderate", speed=0.6)
SLOW = Style("slow", speed=0.38, hesitate=0.4, pause_s=0.5, tremor_m=0.001)
SLOPPY = Style(
    "sloppy", speed=0.5, hesitate=0.35, pause_s=0.5, bad_grasp=0.4, early_release=0.25, misaligned=0.55,
    patience_s=0.9, tremor_m=0.002,
)  # fmt: skip
FAILING = Style(
    "failing", speed=0.45, hesitate=0.4, pause_s=0.8, bad_grasp=0.65, early_release=0.6, misaligned=0.8,
    patience_s=1.5, tremor_m=0.003,
)  # fmt: skip
STYLES = {style.name: style for style in (FAST, MODERATE, SLOW, SLOPPY, FAILING)}
