"""Advantage-weighted regression: imitation, in which good frames count for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recap_learner.arms.base import ABSENT, Arm, Judged, Lesson, standardized


@dataclass(frozen=True)
class AWR(Arm):
    """Minimise E[ w · −log π(a | o, ℓ) ], w = min(exp(A / λ), w_max) (arXiv 1910.00177, eq. 9).

    With enough capacity its minimum is π(a | o) ∝ μ(a | o) w(A), μ the data's policy.

    temperature: λ, on advantages divided by their standard deviation; clip: w_max. The paper gives neither
    (choice: 1 and 20). Weights are then scaled to a mean of 1, so that the learning rate means the same as
    for the other arms.
    """

    name: ClassVar[str] = "awr"
    title: ClassVar[str] = "AWR"

    temperature: float = 1.0
    clip: float = 20.0

    def lesson(self, data: Judged) -> Lesson:
        advantage = standardized(data.advantage)
        weight = np.minimum(np.exp(np.minimum(advantage / self.temperature, 80.0)), self.clip)
        everywhere = np.ones(len(data), bool)
        indicator = np.full(len(data), ABSENT, np.int8)
        return Lesson(everywhere, indicator, (weight / weight.mean()).astype(np.float32), advantage)
