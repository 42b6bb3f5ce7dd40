"""Behaviour cloning of the positive frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recap_learner.arms.base import Arm, Judged, Lesson, learn_from


@dataclass(frozen=True)
class ClonePositive(Arm):
    """Minimise E[ −log π(a | o, ℓ) · [A > ε_ℓ] ]: RECAP's own labels as a filter; no indicator.

    Against RECAP it shows what the negative frames and the conditioning add.
    """

    name: ClassVar[str] = "clone_positive"
    title: ClassVar[str] = "Cloning positive frames"

    def lesson(self, data: Judged) -> Lesson:
        return learn_from(self, data, data.positive, why="no positive frame")
