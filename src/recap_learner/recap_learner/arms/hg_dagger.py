"""HG-DAgger: demonstrations and corrections, no reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recap_learner.arms.base import Arm, ArmError, Judged, Lesson, learn_from


@dataclass(frozen=True)
class HGDAgger(Arm):
    """Minimise E[ −log π(a | o, ℓ) ] over what a person commanded (arXiv 1810.02890, algorithm 1).

    Demonstrations, and of the rollouts the corrections alone: what the policy did by itself is no example,
    and neither outcome nor value plays a part.
    """

    name: ClassVar[str] = "hg_dagger"
    title: ClassVar[str] = "HG-DAgger"

    def lesson(self, data: Judged) -> Lesson:
        if not data.correction.any():
            raise ArmError(
                f"{self.name}: no correction among {len(data)} frames of {len(data.score)} episodes; "
                "it learns from takeovers: record attempts in which a person corrects"
            )
        return learn_from(self, data, data.demonstration | data.correction)
