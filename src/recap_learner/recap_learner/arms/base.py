"""What every arm has in common: it is given the same judged frames, and says what to learn from them and how.

An arm is one way to draw a policy from data. Training (`training.policy_training`) is the same for all:
the same start, the same frames to choose from, the same number of steps and samples a step.

Shapes: F frames, E episodes, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

POSITIVE, NEGATIVE, ABSENT = 1, 0, -1  # as Batch.indicator of recap_policy.vla

Terms = Mapping[str, Tensor]  # losses of each example, (B,): "flow" and whatever else the model has


class ArmError(ValueError):
    """The data hold nothing that this arm learns from. One line with what was found and wanted."""


@dataclass(frozen=True)
class Judged:
    """The frames of all data so far, with what is known of each.

    advantage (F,) float32, normalised as returns are; positive (F,) bool, the indicator of this iteration's
    labels, True on corrections; pretrained_positive (F,) bool, that of the pre-training's labels, where they
    cover the frame; correction (F,) bool, a person commanded in an attempt of the policy; demonstration (F,)
    bool; episode (F,) int; score (E,) float32, the normalised return of each whole episode; task (E,) its
    task's name.
    """

    advantage: np.ndarray
    positive: np.ndarray
    pretrained_positive: np.ndarray
    correction: np.ndarray
    demonstration: np.ndarray
    episode: np.ndarray
    score: np.ndarray
    task: np.ndarray

    def __len__(self) -> int:
        return len(self.advantage)


@dataclass(frozen=True)
class Lesson:
    """What an arm makes of the frames.

    keep (F,) bool: learnt from; indicator (F,) int8: POSITIVE, NEGATIVE or ABSENT; weight (F,) float32 of a
    frame's loss, of mean 1 over those kept; advantage (F,) float32 in the arm's own scale.
    """

    keep: np.ndarray
    indicator: np.ndarray
    weight: np.ndarray
    advantage: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way to learn a policy. Subclasses set the first three, and `lesson`.

    asked: the indicator that its policy is asked for on the robot, "" for none.
    refresh: steps after which the policy so far becomes the reference of `objective`; 0: it has none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    asked: ClassVar[str] = ""
    refresh: ClassVar[int] = 0

    def lesson(self, data: Judged) -> Lesson:
        """Raises ArmError where the data hold nothing for this arm."""
        raise NotImplementedError

    def objective(
        self, terms: Terms, reference: Terms | None, advantage: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Terms to minimise the mean of, (B,) each, from the examples' losses.

        reference: losses of the reference policy on the same examples, noise and times.
        """
        return {name: each * weight for name, each in terms.items()}


def learn_from(
    arm: Arm, data: Judged, keep: np.ndarray, indicator: np.ndarray | int = ABSENT, why: str = "no frame"
) -> Lesson:
    """The lesson of an arm without weights: frames `keep` (F,) under an indicator. Raises ArmError(why)."""
    if not keep.any():
        raise ArmError(f"{arm.name}: {why} among {len(data)} frames of {len(data.score)} episodes")
    codes = np.broadcast_to(np.asarray(indicator, np.int8), keep.shape).copy()
    return Lesson(keep, codes, np.ones(len(data), np.float32), standardized(data.advantage))


def standardized(advantage: np.ndarray) -> np.ndarray:
    """(F,) advantages divided by their standard deviation: of no unit, with their sign kept."""
    spread = float(advantage.std())
    return (advantage / spread if spread > 0 else advantage).astype(np.float32)
