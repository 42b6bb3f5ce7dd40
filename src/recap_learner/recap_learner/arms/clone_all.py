"""Behaviour cloning of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recap_learner.arms.base import Arm, Judged, Lesson, learn_from


@dataclass(frozen=True)
class CloneAll(Arm):
    """Minimise E[ −log π(a | o, ℓ) ] over demonstrations, rollouts and corrections alike; no reward.

    Its minimum is the data's own policy μ(a | o), good and bad attempts in their shares.
    """

    name: ClassVar[str] = "clone_all"
    title: ClassVar[str] = "Cloning everything"

    def lesson(self, data: Judged) -> Lesson:
        return learn_from(self, data, np.ones(len(data), bool))
