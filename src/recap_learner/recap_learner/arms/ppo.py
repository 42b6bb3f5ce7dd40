"""PPO on recorded data: a one-step bound of the flow's likelihood under the constraint of SPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recap_learner.arms.base import Arm, Judged, Lesson, Terms, learn_from


@dataclass(frozen=True)
class PPO(Arm):
    """Maximise E[ ρA − |A| / (2ε) · (ρ − 1)² ], ρ = π(a | o) / π_ref(a | o) (eq. 11).

    A flow has no likelihood at hand; for log π stands the bound by one step (eq. 10, as in FPO, arXiv
    2507.21053): log π(a | o) ≥ −E_{η, ω}‖ω − a − f(a^η, o)‖² + c, so that with the same noise and times for
    both policies log ρ = scale · (loss_ref − loss). The penalty is that of SPO (arXiv 2401.16025); eq. 11 is
    printed without its square. For each A ≠ 0 the best ratio is ρ = 1 + ε · sign(A).

    Flow and FAST tokens have a ratio, hence a constraint, each; the sub-task's text is imitated.

    trust: ε (paper: 0.01, more was unstable); scale of the bound (choice: 1); the policy so far becomes
    π_ref every `refresh` steps (choice: 50).
    """

    name: ClassVar[str] = "ppo"
    title: ClassVar[str] = "PPO"
    refresh: ClassVar[int] = 50

    trust: float = 0.01
    scale: float = 1.0

    def lesson(self, data: Judged) -> Lesson:
        return learn_from(self, data, np.ones(len(data), bool))

    def objective(
        self, terms: Terms, reference: Terms | None, advantage: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        assert reference is not None
        found = dict(terms)
        for name in found.keys() & {"flow", "fast"}:
            ratio = (self.scale * (reference[name] - terms[name])).clamp(-20.0, 20.0).exp()
            found[name] = -spo(ratio, advantage, self.trust)
        return found


def spo(ratio: Tensor, advantage: Tensor, trust: float) -> Tensor:
    """ρA − |A| / (2ε) · (ρ − 1)², element-wise."""
    return ratio * advantage - advantage.abs() / (2 * trust) * torch.square(ratio - 1)
