"""Returns and advantages: the arithmetic of RECAP, in numpy, without a model.

All values are normalised to [−1, 0] with one normaliser for rewards, returns and values
(π*0.6, section IV-A). Rewards (eq. 5): 0 at the last step of a success, −C_fail at the last step
of a failure, −1 at every other step; no discount.

Arrays are flat: the ticks of all episodes end to end, with `starts` (E + 1,) where each begins, so that a
million ticks are a dozen array operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FAIL_RULES = ("ordered", "clipped")
END_RULES = ("sum", "bootstrap")


@dataclass(frozen=True)
class Normalizer:
    """Scale of one task's returns. T_max = `max_steps`: the task's maximum episode length in ticks.

    The paper calls C_fail "a large constant"; here it is `fail_ratio`·T_max. `fail_rule` says what becomes of
    it in [−1, 0] (choice):

    - "ordered": divided by T_max + C_fail. With `fail_ratio` 1, the default, successes lie in [−½, 0] and
      failures in [−1, −½], all still ordered.
    - "clipped": divided by T_max and clipped at −1. Successes have the whole range; with `fail_ratio` of at
      least 1 all ticks of all failures are −1, which hides where an attempt went wrong.

    Raises ValueError on an unknown rule, a negative ratio and a length below 1.
    """

    max_steps: int
    fail_ratio: float = 1.0
    fail_rule: str = "ordered"

    def __post_init__(self) -> None:
        if self.fail_rule not in FAIL_RULES:
            raise ValueError(f"C_fail rule is {self.fail_rule!r}, wanted one of {', '.join(FAIL_RULES)}")
        if not 0 <= self.fail_ratio < float("inf") or self.max_steps < 1:
            raise ValueError(
                f"normaliser of {self.max_steps} ticks with C_fail {self.fail_ratio}·T_max, wanted at least "
                "1 tick and a ratio of 0 or more"
            )

    @property
    def fail_cost(self) -> float:
        return self.fail_ratio * self.max_steps

    @property
    def scale(self) -> float:
        return self.max_steps + (self.fail_cost if self.fail_rule == "ordered" else 0.0)

    @property
    def tells_failures(self) -> bool:
        """Whether returns of successes lie at −½ and above and those of failures at −½ and below, so that a
        distribution over returns says how probable failure is."""
        return self.fail_rule == "ordered" and self.fail_ratio >= 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def returns(starts: np.ndarray, success: np.ndarray, norms: list[Normalizer]) -> np.ndarray:
    """Normalised return of every tick of E episodes → (N,) float32 in [−1, 0] (eq. 5).

    R_t = −(T − 1 − t + C_fail·[failed]) / scale, clipped at −1. starts: (E + 1,) int64; success: (E,) bool;
    norms: of each episode's task.
    """
    ticks = np.diff(starts)
    left = np.repeat(starts[1:] - 1, ticks) - np.arange(starts[-1])
    lost = np.where(success, 0.0, [norm.fail_cost for norm in norms])
    cost = left + np.repeat(lost, ticks)
    return np.clip(-cost / np.repeat([norm.scale for norm in norms], ticks), -1.0, 0.0).astype(np.float32)


def advantages(
    values: np.ndarray,
    starts: np.ndarray,
    success: np.ndarray,
    lookahead: int | None,
    norms: list[Normalizer],
    bound: np.ndarray | None = None,
    end: str = "sum",
) -> np.ndarray:
    """A_t = Σ_{t'=t}^{t+N−1} r_t' + V(o_{t+N}) − V(o_t), normalised, of every tick → (N,) float32.

    values: (N,) normalised V; starts, success, norms: as `returns`'; lookahead: N in ticks, None: to the end,
    which is R_t − V(o_t), pre-training's.
    end: where t + N lies past the end (choice; the paper is silent). "sum": the rewards are summed to the
    end and nothing is bootstrapped. "bootstrap": the lookahead shortens to the last tick, whose value counts
    instead of what came; the last tick itself has its reward.
    bound: (N,) int64, the place in the flat arrays at which each tick's lookahead ends at the latest, with
    the value there; a place past the episode's end is none.

    Raises ValueError on a lookahead below 1 or an unknown end rule.
    """
    if lookahead is not None and lookahead < 1:
        raise ValueError(f"lookahead is {lookahead} ticks, wanted at least 1")
    if end not in END_RULES:
        raise ValueError(f"end rule is {end!r}, wanted one of {', '.join(END_RULES)}")
    ticks = np.diff(starts)
    place, stop = np.arange(starts[-1]), np.repeat(starts[1:], ticks)
    scale = np.repeat([norm.scale for norm in norms], ticks)
    found = returns(starts, success, norms).astype(np.float64) - values
    until = np.full(len(place), starts[-1]) if lookahead is None else place + lookahead
    if end == "bootstrap" and lookahead is not None:
        until = np.where(place < stop - 1, np.minimum(until, stop - 1), until)
    if bound is not None:
        until = np.where(bound < stop, np.minimum(until, bound), until)
    inside = np.flatnonzero(until < stop)
    ahead = until[inside]
    found[inside] = -(ahead - inside) / scale[inside] + values[ahead] - values[inside]
    return found.astype(np.float32)


def correction_bound(correction: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Where the next correction begins, for every tick: a bound of `advantages` → (N,) int64, N: none does.

    A lookahead of an autonomous tick ends there (choice): what the person then repairs is no credit of the
    policy that needed it. Ticks of a correction (N,) bool look over its end; they are labelled by rule.
    """
    begins = correction & ~np.concatenate([[False], correction[:-1]])
    first = starts[:-1]
    begins[first] = correction[first]
    cuts = np.flatnonzero(begins)
    nearest = np.append(cuts, len(correction))[np.searchsorted(cuts, np.arange(len(correction)), "right")]
    return np.where(correction, len(correction), nearest)


def monte_carlo_returns(steps: int, success: bool, norm: Normalizer) -> np.ndarray:
    """`returns` of one episode → (steps,) float32."""
    return returns(np.array([0, steps]), np.array([success]), [norm])


def n_step_advantages(
    values: np.ndarray,
    success: bool,
    lookahead: int,
    norm: Normalizer,
    correction: np.ndarray | None = None,
) -> np.ndarray:
    """`advantages` of one episode → (T,) float32. correction: (T,) bool, ticks that a person commanded; see
    `correction_bound`."""
    starts = np.array([0, len(values)])
    bound = None if correction is None else correction_bound(np.asarray(correction, bool), starts)
    return advantages(values, starts, np.array([success]), lookahead, [norm], bound)


def renormalize(
    values: np.ndarray, failed: np.ndarray | None, old: Normalizer, new: Normalizer
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values under another C_fail, without a model → (values (N,), failed (N, 2)), float32.

    failed (N, 2): P(failure | o), the mass of the value's distribution at failures' returns, and those
    returns' part of the expectation, E[R·1(failed)]. With p and F = E[R·1(failed)] of the old normaliser, in
    ticks L_s = −(V − F)·scale of the successes and L_f = −F·scale − C_fail·p of the failures:

        ordered:  V' = −(L_s + L_f + C_fail'·p) / (T_max + C_fail')
        clipped:  V' = −L_s / T_max − p                                 (C_fail' ≥ T_max)

    Raises ValueError where it cannot be told: another T_max, values that were kept without `failed` (what a
    model keeps under a rule by which returns of successes and failures overlap), and clipped ones, whose L_f
    is lost.
    """
    if old == new:
        return values, failed
    if old.max_steps != new.max_steps:
        raise ValueError(
            f"values are of a normaliser with T_max = {old.max_steps} ticks, wanted {new.max_steps}: train "
            "the value function anew"
        )
    if failed is None or old.fail_rule != "ordered":
        raise ValueError(
            f"values under C_fail rule {old.fail_rule!r} with ratio {old.fail_ratio:g}"
            f"{', kept without the probability of failure,' if failed is None else ''} cannot be told under "
            f"{new.fail_rule!r} with {new.fail_ratio:g}: start from labels of the rule 'ordered' with a "
            "ratio of at least 1, or train the value function anew"
        )
    if new.fail_rule == "clipped" and new.fail_ratio < 1:
        raise ValueError(f"clipped with ratio {new.fail_ratio:g}, wanted at least 1: train the value anew")
    chance, part = failed[:, 0].astype(np.float64), failed[:, 1].astype(np.float64)
    of_successes = -(values - part) * old.scale
    of_failures = -part * old.scale - old.fail_cost * chance
    if new.fail_rule == "clipped":
        told = np.clip(-of_successes / new.scale - chance, -1, 0)
        return told.astype(np.float32), np.stack([chance, -chance], 1).astype(np.float32)
    part = -(of_failures + new.fail_cost * chance) / new.scale
    told = np.clip(-of_successes / new.scale + part, -1, 0)
    return told.astype(np.float32), np.stack([chance, part], 1).astype(np.float32)


def check_same(found: Mapping[str, Normalizer], wanted: Mapping[str, Normalizer], what: str) -> None:
    """Refuse values of another normaliser. Tasks that only one of them knows are let pass.

    Raises ValueError, naming task, what was found and what was wanted.
    """
    for task in found.keys() & wanted.keys():
        if found[task] != wanted[task]:
            raise ValueError(
                f"{what} is of another normaliser for {task}: {_told(found[task])}, wanted "
                f"{_told(wanted[task])}: train it anew, or ask for its own"
            )
    rules = {(n.fail_rule, n.fail_ratio) for n in (*found.values(), *wanted.values())}
    if len(rules) > 1:
        told = ", ".join(f"{rule} {ratio:g}·T_max" for rule, ratio in sorted(rules))
        raise ValueError(f"{what}: wanted one C_fail rule for all tasks, found {told}")


def _told(norm: Normalizer) -> str:
    return f"T_max = {norm.max_steps} ticks, C_fail = {norm.fail_ratio:g}·T_max, {norm.fail_rule}"
