"""Filtered behaviour cloning: the best episodes, whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recap_learner.arms.base import Arm, ArmError, Judged, Lesson, learn_from


@dataclass(frozen=True)
class CloneBest(Arm):
    """Minimise E[ −log π(a | o, ℓ) · [R(episode) among the best of its task] ]; no indicator.

    R is the return of the whole episode (eq. 5): successes before failures, quick ones before slow ones.
    Where attempts are short and good or bad as a whole this is a strong opponent.

    share: of each task's episodes that are learnt from (choice: 0.4, as many as RECAP's positive frames).
    """

    name: ClassVar[str] = "clone_best"
    title: ClassVar[str] = "Cloning the best episodes"

    share: float = 0.4

    def lesson(self, data: Judged) -> Lesson:
        if not 0 < self.share <= 1:
            raise ArmError(f"{self.name}: share is {self.share}, wanted more than 0, at most 1")
        best = np.zeros(len(data.score), bool)
        for task in np.unique(data.task):
            own = np.flatnonzero(data.task == task)
            order = own[np.argsort(-data.score[own], kind="stable")]
            best[order[: math.ceil(self.share * len(own))]] = True
        return learn_from(self, data, best[data.episode])
