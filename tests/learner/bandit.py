"""A bandit with one action and known optimum, and a flow policy small enough to solve it in seconds.

The data's policy takes an action near −½ with probability 0.7, reward 0, and one near +½ with 0.3, reward 1.
The advantage is the reward less its mean. Any arm trains here by the same loop as any other: what it is
given are its own `lesson` and `objective`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recap_learner.arms import Arm, Judged

BETTER = 0.3  # how often the data's policy takes the better action
CODES = {"": 2, "positive": 1}


@dataclass(frozen=True)
class Bandit:
    actions: np.ndarray  # (F,)
    data: Judged


def bandit(count: int = 4000, corrected: bool = False) -> Bandit:
    """Every action is an episode of one frame; a person demonstrated the first half, and corrected, where
    `corrected`, the better actions of the others' first half."""
    rng = np.random.default_rng(0)
    better = rng.random(count) < BETTER
    actions = np.where(better, 0.5, -0.5) + rng.normal(0, 0.05, count)
    reward, number = better.astype(np.float32), np.arange(count)
    data = Judged(
        advantage=reward - reward.mean(),
        positive=better,
        pretrained_positive=better,
        correction=better & corrected & (number >= count // 2) & (number < 3 * count // 4),
        demonstration=number < count // 2,
        episode=number,
        score=reward - 1,
        task=np.zeros(count, int),
    )
    return Bandit(actions.astype(np.float32), data)


class Flow(nn.Module):
    """Velocity of one number, given the flow's time and the indicator (positive, negative or absent)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1))

    def velocity(self, x: Tensor, t: Tensor, indicator: Tensor) -> Tensor:
        """(N,) each → (N,)"""
        code = nn.functional.one_hot(indicator % 3, 3).float()  # −1, absent, is 2
        wave = torch.stack([x, t, x * t, torch.sin(3 * x), torch.cos(3 * x)], -1)
        return self.net(torch.cat([wave, code], -1))[:, 0]

    def terms(self, action: Tensor, noise: Tensor, t: Tensor, indicator: Tensor) -> dict[str, Tensor]:
        """Flow matching in VLA's convention: t = 1 is noise; one draw, averaged over K of them: (B, K)."""
        noisy = t * noise + (1 - t) * action[:, None]
        found = self.velocity(noisy.flatten(), t.flatten(), indicator.repeat_interleave(t.shape[1]))
        return {"flow": (found.view_as(t) - (noise - action[:, None])).square().mean(1)}

    @torch.no_grad()
    def better(self, asked: str, count: int = 4000, steps: int = 20) -> float:
        """How often the policy takes the better action."""
        x = torch.randn(count, generator=torch.Generator().manual_seed(1))
        code = torch.full((count,), CODES[asked])
        for step in range(steps):
            t = torch.full((count,), 1 - step / steps)
            x = x - self.velocity(x, t, code) / steps
        return float((x > 0).float().mean())


def train(arm: Arm, game: Bandit, steps: int, start: Flow | None = None, rate: float = 2e-3) -> Flow:
    """Minimise an arm's objective by Adam, 256 actions a step, 30 % of the indicators left out."""
    model = copy.deepcopy(start) if start else Flow()
    lesson = arm.lesson(game.data)
    kept = np.flatnonzero(lesson.keep)
    columns = [torch.from_numpy(c[kept]) for c in (game.actions, lesson.indicator, lesson.weight)]
    action, indicator, weight = columns
    advantage = torch.from_numpy(lesson.advantage[kept])
    reference = copy.deepcopy(model)
    adam = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        pick = torch.randint(len(kept), (256,), generator=generator)
        noise = torch.randn(256, 8, generator=generator)
        t = torch.rand(256, 8, generator=generator)
        code = indicator[pick].long()
        code = torch.where(torch.rand(256, generator=generator) < 0.3, -1, code)
        terms = model.terms(action[pick], noise, t, code)
        before = None
        if arm.refresh:
            with torch.no_grad():
                before = reference.terms(action[pick], noise, t, code)
        found = arm.objective(terms, before, advantage[pick], weight[pick])
        adam.zero_grad()
        found["flow"].mean().backward()
        adam.step()
        if arm.refresh and (step + 1) % arm.refresh == 0:
            reference.load_state_dict(model.state_dict())
    return model
