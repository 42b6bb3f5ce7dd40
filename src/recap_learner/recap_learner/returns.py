"""Returns and advantages: the arithmetic of RECAP, in numpy, without a model.

All values are normalised to [−1, 0] with one normaliser for rewards, returns and values
(π*0.6, section IV-A). Rewards (eq. 5): 0 at the last step of a success, −C_fail at the last step
of a failure, −1 at every other step; no discount.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Normalizer:
    """Scale of one task's returns.

    max_steps: T_max, the task's maximum episode length in ticks. The paper calls C_fail "a large
    constant"; here it is `fail_ratio`·T_max (choice: 1, so that successes lie in [−½, 0] and
    failures in [−1, −½], all still ordered) and the scale is T_max + C_fail.
    """

    max_steps: int
    fail_ratio: float = 1.0

    @property
    def fail_cost(self) -> float:
        return self.fail_ratio * self.max_steps

    @property
    def scale(self) -> float:
        return self.max_steps + self.fail_cost


def monte_carlo_returns(steps: int, success: bool, norm: Normalizer) -> np.ndarray:
    """Normalised return of every tick of one episode → (steps,) float32 in [−1, 0] (eq. 5)."""
    left = np.arange(steps - 1, -1, -1, dtype=np.float64)
    cost = left if success else left + norm.fail_cost
    return np.clip(-cost / norm.scale, -1.0, 0.0).astype(np.float32)


def n_step_advantages(
    values: np.ndarray,
    success: bool,
    lookahead: int,
    norm: Normalizer,
    correction: np.ndarray | None = None,
) -> np.ndarray:
    """A_t = Σ_{t'=t}^{t+N−1} r_t' + V(o_{t+N}) − V(o_t), normalised → (T,) float32.

    values: (T,) normalised V of every tick of one episode; lookahead: N in ticks. Where t + N lies
    past the end the rewards are summed to the end and nothing is bootstrapped (choice; the paper is
    silent). With N ≥ T this is the whole-episode advantage R_t − V(o_t) of pre-training.

    correction: (T,) bool, ticks that a person commanded. The lookahead of an autonomous tick ends where a
    correction begins (choice): what the person then repairs is no credit of the policy that needed it.
    """
    if lookahead < 1:
        raise ValueError(f"lookahead is {lookahead} ticks, wanted at least 1")
    steps = len(values)
    advantages = monte_carlo_returns(steps, success, norm).astype(np.float64) - values
    inside = steps - lookahead
    if inside > 0:
        advantages[:inside] = -lookahead / norm.scale + values[lookahead:] - values[:inside]
    if correction is not None and correction.any():
        begins = np.flatnonzero(correction & ~np.concatenate([[False], correction[:-1]]))
        ticks = np.flatnonzero(~correction)
        which = np.searchsorted(begins, ticks)
        near = which < len(begins)
        ticks, until = ticks[near], begins[which[near]]
        cut = until - ticks < lookahead
        ticks, until = ticks[cut], until[cut]
        advantages[ticks] = -(until - ticks) / norm.scale + values[until] - values[ticks]
    return advantages.astype(np.float32)
