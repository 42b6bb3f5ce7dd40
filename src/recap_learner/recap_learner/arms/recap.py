"""RECAP: advantage-conditioned supervised learning, the method itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recap_learner.arms.base import NEGATIVE, POSITIVE, Arm, ArmError, Judged, Lesson, learn_from


@dataclass(frozen=True)
class Recap(Arm):
    """π*0.6, eq. 3: minimise E[ −log π(a | o, ℓ) − α log π(a | I, o, ℓ) ], I = [A > ε_ℓ].

    All frames, each with its indicator. α is not a factor here: the indicator is left out of 30 % of the
    examples (`PolicyTraining.indicator_dropout`), which stands for it. Asked for "positive" on the robot,
    the policy is π(a | I = 1, o) ∝ π(a | o) p(I = 1 | a, o): better than the data's (section III-B).

    without: of the data, "corrections", the frames that a person commanded, or "corrected", whole attempts in
    which one did, are not learnt from ("": all are), to see what they are good for.
    """

    name: ClassVar[str] = "recap"
    title: ClassVar[str] = "RECAP"
    asked: ClassVar[str] = "positive"

    without: str = ""

    def lesson(self, data: Judged) -> Lesson:
        indicator = np.where(data.positive, POSITIVE, NEGATIVE)
        if self.without not in ("", "corrections", "corrected"):
            raise ArmError(f"recap: without is {self.without!r}, wanted corrections, corrected or nothing")
        keep = np.ones(len(data), bool)
        if self.without:
            keep = ~data.correction
        if self.without == "corrected":
            keep = ~np.isin(data.episode, data.episode[data.correction])
        return learn_from(self, data, keep, indicator)
