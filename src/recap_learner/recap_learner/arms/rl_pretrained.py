"""RL-pre-trained π*0.6: the demonstrations, under the labels of the pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recap_learner.arms.base import NEGATIVE, POSITIVE, Arm, Judged, Lesson, learn_from


@dataclass(frozen=True)
class RLPretrained(Arm):
    """Eq. 3 on the task's demonstrations with I = [R − V_pre(o) > ε_ℓ]: pre-training, gone on with.

    What Algorithm 1 has after step 2, given the same steps as the others on the task's data.
    """

    name: ClassVar[str] = "rl_pretrained"
    title: ClassVar[str] = "RL-pre-trained"
    asked: ClassVar[str] = "positive"

    def lesson(self, data: Judged) -> Lesson:
        indicator = np.where(data.pretrained_positive, POSITIVE, NEGATIVE)
        return learn_from(self, data, data.demonstration, indicator, "no demonstration")
