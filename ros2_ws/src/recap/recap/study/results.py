"""The study's results: attempts of all training seeds, added up, as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recap_learner.evaluation.evaluation import Attempt
from recap_learner.evaluation.statistics import (
    clustered_interval,
    paired_rate_difference_interval,
    throughput_interval,
    throughput_per_hour,
    throughput_ratio_interval,
    wilson_interval,
)

FORMAT, VERSION = "recap-study", 1
BySeed = Mapping[int, Sequence[Attempt]]  # training seed → attempts, on the same start states


def summarize_policy(found: BySeed) -> dict[str, Any]:
    """Success and throughput of one policy with 95 % intervals.

    One training seed: Wilson's and a bootstrap over attempts, which know nothing of training. More: a
    bootstrap over training seeds and, within each, over attempts.
    """
    every = [a for attempts in found.values() for a in attempts]
    won, seconds = [a.success for a in every], [a.duration_s for a in every]
    if len(found) > 1:
        rows = [np.array([[a.success, a.duration_s] for a in attempts], float) for attempts in found.values()]
        success = clustered_interval(rows, lambda means: means[:, 0])
        throughput = clustered_interval(rows, lambda means: 3600.0 * means[:, 0] / means[:, 1])
    else:
        success = wilson_interval(sum(won), len(won))
        throughput = throughput_interval(won, seconds)
    fine = [a.duration_s for a in every if a.success]
    return {
        "success": sum(won) / len(won),
        "success_ci95": list(success),
        "throughput_per_hour": throughput_per_hour(won, seconds),
        "throughput_ci95": list(throughput),
        "attempts": len(every),
        "training_seeds": sorted(found),
        "mean_success_s": float(np.mean(fine)) if fine else None,
        "by_training_seed": {
            str(seed): {
                "success": float(np.mean([a.success for a in attempts])),
                "throughput_per_hour": throughput_per_hour(
                    [a.success for a in attempts], [a.duration_s for a in attempts]
                ),
            }
            for seed, attempts in found.items()
        },
    }


def compare_policies(first: BySeed, second: BySeed) -> dict[str, Any]:
    """`second` against `first`, attempt by attempt on the same training seed and start state. The intervals
    know the attempts alone; `by_training_seed` of the policies shows how much trainings differ."""
    pairs = [
        (a, b)
        for seed in sorted(first.keys() & second.keys())
        for a, b in zip(first[seed], second[seed], strict=False)
    ]
    one = [a.success for a, _ in pairs], [a.duration_s for a, _ in pairs]
    two = [b.success for _, b in pairs], [b.duration_s for _, b in pairs]
    base = throughput_per_hour(*one)
    failures = len(pairs) - sum(one[0])
    return {
        "pairs": len(pairs),
        "success_difference": float(np.mean(two[0])) - float(np.mean(one[0])),
        "success_difference_ci95": list(paired_rate_difference_interval(one[0], two[0])),
        "throughput_ratio": throughput_per_hour(*two) / base if base else None,
        "throughput_ratio_ci95": [_finite(x) for x in throughput_ratio_interval(one, two, paired=True)],
        "failures_ratio": (len(pairs) - sum(two[0])) / failures if failures else None,
    }


def study_results(found: Mapping[str, BySeed], about: Mapping[str, Any]) -> dict[str, Any]:
    """The file of one task and observation. about: command, commit, settings and whatever says how."""
    policies = {name: summarize_policy(by_seed) for name, by_seed in found.items() if by_seed}
    last, base = found.get("recap_2") or {}, found.get("offline_rl_sft") or {}
    comparisons = {
        f"recap_2 against {name}": compare_policies(by_seed, last)
        for name, by_seed in found.items()
        if name != "recap_2" and last and by_seed
    }
    headline = comparisons.get("recap_2 against offline_rl_sft") if base else None
    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "policies": policies,
        "headline": headline,
        "comparisons": comparisons,
    }


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None
