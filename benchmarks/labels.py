"""Labels of a million frames, and the same relabelled from their sidecar, on one core. The last line is JSON.

    python benchmarks/labels.py [--frames 1000000] [--ticks 500] [--repeat 5] [--store]

Episodes of `--ticks` ticks at most are made up: values that follow the return with noise, a third failures,
a tenth of the frames corrected by a person. One labelling is what `recap_learner.value.labelling` does by
the rule of the demo's iterations (N = 50, 40 %, whole-episode quantile 0.3): two advantages, thresholds,
indicators. `frames_per_s` is of CPU time, the median of `--repeat`; so are all times here.

`plain_ratio` is the time that the same arithmetic takes episode by episode, over it. `relabel_s`: sidecar
read, labels by another fraction, lookahead and C_fail, sidecar written. `store_s`, with `--store`: each
episode's file written into a store too. Wanted (`held`, and exit 0): a million frames in at
most 2 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from recap_learner.data.store import Store
from recap_learner.value.labelling import LabelRule, label_ticks
from recap_learner.value.labels import relabel, save_labels, save_to_store
from recap_learner.value.returns import Normalizer, n_step_advantages, returns
from recap_learner.value.ticks import Ticks

NORM = Normalizer(750)
RULE = LabelRule(lookahead=50, positive_fraction=0.4, whole_episode_quantile=0.3)


def made(frames: int, ticks: int) -> Ticks:
    rng = np.random.default_rng(0)
    lengths = rng.integers(ticks // 2, ticks + 1, max(1, round(frames / (0.75 * ticks))))
    lengths[-1] = max(1, frames - lengths[:-1].sum())
    count, starts = len(lengths), np.cumsum([0, *lengths])
    success = np.arange(count) % 3 > 0
    true = returns(starts, success, [NORM] * count)
    values = np.clip(true + rng.normal(0, 0.05, len(true)), -1, 0).astype(np.float32)
    chance = np.where(np.repeat(success, lengths), 0.2, 0.8)
    failed = np.stack([chance, np.minimum(-0.5, values) * chance], 1).astype(np.float32)
    place = np.arange(len(true)) - np.repeat(starts[:-1], lengths)
    corrected = (place >= 40) & (place < 40 + np.repeat(lengths, lengths) // 10)
    names = tuple(f"episode_{i:06}" for i in range(count))
    return Ticks(
        names, ("lift",) * count, ("rollout",) * count, success, np.arange(count) % 2 > 0,
        np.full(count, -1), starts, values, corrected, failed, {"lift": NORM},
    )  # fmt: skip


def seconds(work: Callable[[], object], repeat: int) -> float:
    found = []
    for _ in range(repeat):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return float(np.median(found))


def one_by_one(ticks: Ticks) -> None:
    """Returns and both advantages of each episode on its own: what flat arrays spare."""
    for first, stop, won in zip(ticks.starts, ticks.starts[1:], ticks.success, strict=False):
        value, corrected = ticks.value[first:stop], ticks.correction[first:stop]
        n_step_advantages(value, bool(won), len(value), NORM)
        n_step_advantages(value, bool(won), RULE.lookahead, NORM, corrected)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", "--count", type=int, default=1_000_000)
    parser.add_argument("--ticks", type=int, default=500, help="of the longest episode")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--store", action="store_true", help="write each episode's labels too")
    given = parser.parse_args()
    ticks = made(given.frames, given.ticks)
    count = len(ticks.value)
    print(f"{count} frames of {len(ticks.episode)} episodes")
    labelling = seconds(lambda: label_ticks(ticks, RULE), given.repeat)
    print(f"labelled in {labelling:.3f} s: {count / labelling / 1e6:.1f} million frames a second")
    plain = seconds(lambda: one_by_one(ticks), 1)
    print(f"advantages alone, episode by episode: {plain:.3f} s")
    result = {
        "frames_per_s": round(count / labelling),
        "frames": count,
        "million_s": round(1e6 * labelling / count, 3),
        "plain_ratio": round(plain / labelling, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder, "labels.parquet"), Path(folder, "labels.other.parquet")
        labels = label_ticks(ticks, RULE)
        result["save_s"] = round(seconds(lambda: save_labels(labels, path, {}), 1), 3)
        again = seconds(
            lambda: relabel(
                path, other, lambda task, rule: replace(rule, lookahead=100, positive_fraction=0.1),
                lambda norm: replace(norm, fail_ratio=2.0),
            ),
            given.repeat,
        )  # fmt: skip
        result |= {"relabel_s": round(again, 3), "sidecar_mb": round(path.stat().st_size / 1e6, 1)}
        print(f"sidecar of {result['sidecar_mb']} MB relabelled in {again:.3f} s")
        if given.store:
            store = Store(Path(folder, "store"))
            result["store_s"] = round(seconds(lambda: save_to_store(labels, store, "tag", {}), 1), 3)
            print(f"into a store: {result['store_s']} s")
    held = result["million_s"] <= 2.0
    print(json.dumps({**result, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
