"""What labels know of speed: rank correlation of the advantage with how fast it truly went. Last line JSON.

    python benchmarks/label_signal.py runs/study/…/seed_0/iteration_02 [--lookaheads 50,100,150]

Of a run's labels.parquet, over the frames of successes: by Spearman, the advantage against the speed of the
stage that the frame lies in (the median length of that stage over its length in this episode, by the
simulator's truth). For both ways of judging speed (`LabelRule.speed`) and every lookahead; no model is run.
`value_rmse`: how far each way's value is from the return of successes, as a share of the returns' range.
`positive_by_quarter`: share of positive frames in the fastest to the slowest quarter of the successes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from recap_learner.data.episodes import SUFFIX, load_episode
from recap_learner.value.labelling import SPEEDS, value_given_success
from recap_learner.value.labels import FILE, label_ticks, load_ticks
from recap_learner.value.returns import returns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("iteration", type=Path, help="folder of an iteration, of a run on one task")
    parser.add_argument("--lookaheads", default="50,100,150", help="ticks")
    parser.add_argument("--fraction", type=float, default=0.15, help="of the judged frames to be positive")
    given = parser.parse_args()
    try:
        ticks, rules, _ = load_ticks(given.iteration / FILE)
        lookaheads = [int(word) for word in given.lookaheads.split(",")]
    except (OSError, ValueError) as error:
        print(f"label_signal: {error}", file=sys.stderr)
        return 1
    [rule], norm = rules.values(), ticks.norms[ticks.task[0]]
    files = {f.name.removesuffix(SUFFIX): f for f in given.iteration.parent.rglob(f"*{SUFFIX}")}
    stages = [load_episode(files[name]).stage.astype(str) for name in ticks.episode]
    speed = _speeds(stages, ticks.success)
    won = ticks.spread(ticks.success)
    truth = returns(ticks.starts, ticks.success, [norm] * len(ticks.success))
    values = {"expected": ticks.value, "given_success": value_given_success(ticks, norm)}
    quarter = np.digitize(ticks.lengths, np.quantile(ticks.lengths[ticks.success], [0.25, 0.5, 0.75]))
    rank: dict[str, dict[str, float]] = {way: {} for way in SPEEDS}
    share: dict[str, dict[str, list[float]]] = {way: {} for way in SPEEDS}
    for way in SPEEDS:
        for lookahead in lookaheads:
            asked = replace(rule, speed=way, lookahead=lookahead, positive_fraction=given.fraction)
            labels = label_ticks(ticks, asked)
            rank[way][str(lookahead)] = round(
                float(spearmanr(labels.flat["advantage"][won], speed[won])[0]), 3
            )
            share[way][str(lookahead)] = [
                round(float(labels.flat["indicator"][ticks.spread(ticks.success & (quarter == q))].mean()), 3)
                for q in range(4)
            ]
            print(f"{way}, {lookahead} ticks: {rank[way][str(lookahead)]}", file=sys.stderr)
    rmse = {way: round(float(np.sqrt(np.mean((v - truth)[won] ** 2))), 3) for way, v in values.items()}
    result = {"spearman": rank, "positive_by_quarter": share, "value_rmse": rmse, "fraction": given.fraction}
    print(json.dumps({**result, "episodes": len(stages), "frames": len(speed)}))
    return 0


def _speeds(stages: list[np.ndarray], success: np.ndarray) -> np.ndarray:
    """Of every tick, how much faster than usual its stage was done → (N,)."""
    lengths = [{name: int((one == name).sum()) for name in np.unique(one)} for one in stages]
    names = {name for length in lengths for name in length}
    usual = {
        name: float(
            np.median([own[name] for own, won in zip(lengths, success, strict=True) if won and name in own])
        )
        for name in names
        if any(won and name in own for own, won in zip(lengths, success, strict=True))
    }
    return np.concatenate(
        [
            np.array([usual.get(n, own[n]) / own[n] for n in one])
            for one, own in zip(stages, lengths, strict=True)
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
