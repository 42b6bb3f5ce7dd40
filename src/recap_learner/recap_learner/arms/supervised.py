"""Supervised π0.6: the demonstrations alone, without an indicator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recap_learner.arms.base import Arm, Judged, Lesson, learn_from


@dataclass(frozen=True)
class Supervised(Arm):
    """Minimise E_demo[ −log π(a | o, ℓ) ]: imitation of the demonstrations (section V-B, "π0.6").

    It starts where all arms do, from the pre-trained policy, whose branch without indicator is the
    supervised one: it saw 30 % of the pre-training.
    """

    name: ClassVar[str] = "supervised"
    title: ClassVar[str] = "Supervised, no indicator"

    def lesson(self, data: Judged) -> Lesson:
        return learn_from(self, data, data.demonstration, why="no demonstration")
