"""RECAP: advantage-conditioned supervised learning, the method itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recap_learner.arms.base import NEGATIVE, POSITIVE, Arm, Judged, Lesson, learn_from


@dataclass(frozen=True)
class Recap(Arm):
    """π*0.6, eq. 3: minimise E[ −log π(a | o, ℓ) − α log π(a | I, o, ℓ) ], I = [A > ε_ℓ].

    All frames, each with its indicator. α is not a factor here: the indicator is left out of 30 % of the
    examples (`PolicyTraining.indicator_dropout`), which stands for it. Asked for "positive" on the robot,
    the policy is π(a | I = 1, o) ∝ π(a | o) p(I = 1 | a, o): better than the data's (section III-B).
    """

    name: ClassVar[str] = "recap"
    title: ClassVar[str] = "RECAP"
    asked: ClassVar[str] = "positive"

    def lesson(self, data: Judged) -> Lesson:
        indicator = np.where(data.positive, POSITIVE, NEGATIVE)
        return learn_from(self, data, np.ones(len(data), bool), indicator)
