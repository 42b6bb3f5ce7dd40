"""Offline RL + SFT: the demonstrations, every frame called positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recap_learner.arms.base import POSITIVE, Arm, Judged, Lesson, learn_from


@dataclass(frozen=True)
class SFT(Arm):
    """Algorithm 1, step 5: minimise E_demo[ −log π(a | o, ℓ) − α log π(a | I = 1, o, ℓ) ].

    The start is pre-trained by offline RL; fine-tuning fixes the indicator to positive, which the paper
    found better than the labels of V⁰. It is the policy that collects the first rollouts.
    """

    name: ClassVar[str] = "sft"
    title: ClassVar[str] = "Offline RL + SFT"
    asked: ClassVar[str] = "positive"

    def lesson(self, data: Judged) -> Lesson:
        return learn_from(self, data, data.demonstration, POSITIVE, "no demonstration")
