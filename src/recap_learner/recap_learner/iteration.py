"""One round of learning: bags → frames → value → labels → policy, with its files in one folder.

<folder>/value/            the value function
<folder>/values.npz        V of every tick of every episode, each by a model that had not seen it
<folder>/labels.parquet    indicator of every tick
<folder>/policy/           the policy
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recap_learner.episodes import EpisodeInfo, convert_bags
from recap_learner.frames import Frames, load_frames
from recap_learner.labels import EpisodeValues, LabelRule, label, load_indicator, save_labels
from recap_learner.policy_training import PolicyTraining, train_policy
from recap_learner.store import Store
from recap_learner.training import Progress
from recap_learner.value_training import ValueTraining, normalizer, train_value
from recap_station.files import replace_file


def gather_frames(
    bags: Sequence[Path], store: Path, vision: Path, progress: Progress | None = None
) -> Frames:
    """Convert what is new among `bags` into `store` and load the frames of all of them.

    Discarded attempts are left out. A bag that cannot be used (no outcome yet, say) is named on stderr and
    left out too. Raises ValueError if none can be used.
    """
    half = (lambda f, note: progress(0.5 * f, note)) if progress else None
    rest = (lambda f, note: progress(0.5 + 0.5 * f, note)) if progress else None
    files, problems = convert_bags(bags, store, half)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not files:
        raise ValueError(f"none of {len(problems)} bags can be used; the first: {problems[0]}")
    frames = load_frames(files, vision, progress=rest)
    discarded = [i for i, e in enumerate(frames.episodes) if e.info.outcome == "discarded"]
    return frames.without(discarded) if discarded else frames


def fit_value(
    frames: Frames,
    folder: Path,
    start: Path | None,
    how: ValueTraining,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the value function of this round → its report. The held-out values of all ticks are saved."""
    lineage = {"start": str(start or ""), "training": asdict(how), "seed": seed, **_data(frames)}
    values, report = train_value(frames, folder / "value", start, how, seed, lineage, progress)

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **values)  # type: ignore[arg-type]

    replace_file(folder / "values.npz", save)
    return {**report.to_dict(), "problems": report.problems()}


def make_labels(
    frames: Frames,
    folder: Path,
    rule: LabelRule,
    judged_by: Callable[[EpisodeInfo], bool],
    store: Path | None = None,
) -> dict[str, Any]:
    """Label every tick from the values of this round → shares and threshold.

    judged_by: the episodes whose autonomous frames the threshold is a quantile of. store: where
    each episode gets its labels under the tag `folder.name` too, for the loader, exports and whoever looks.
    """
    values = np.load(folder / "values.npz")
    episodes = [
        EpisodeValues(e.info.id, values[e.info.id], e.info.success, e.correction, judged_by(e.info))
        for e in frames.episodes
    ]
    labels = label(episodes, normalizer(frames), rule)
    save_labels(labels, folder / "labels.parquet", _data(frames))
    if store is not None:
        about = {"rule": asdict(rule), "threshold": labels.threshold, "run": str(folder)}
        for name, columns in labels.by_episode().items():
            Store(store).save_labels(folder.name, name, columns, about)
    by_source: dict[str, list[np.ndarray]] = {}
    for e in frames.episodes:
        by_source.setdefault(e.info.source, []).append(labels.indicator[e.info.id])
    forced = np.concatenate(list(labels.forced.values()))
    natural = np.concatenate([labels.advantage[n][f] > labels.threshold for n, f in labels.forced.items()])
    return {
        "threshold": labels.threshold,
        "positive": labels.positive_fraction,
        "positive_by_source": {k: float(np.mean(np.concatenate(v))) for k, v in by_source.items()},
        "forced": float(forced.mean()),
        "forced_that_would_be_negative": float(1 - natural.mean()) if len(natural) else None,
    }


def fit_policy(
    frames: Frames,
    folder: Path,
    start: Path | None,
    vision: Path,
    how: PolicyTraining,
    seed: int,
    progress: Progress | None = None,
    always_positive: bool = False,
) -> dict[str, Any]:
    """Train the policy of this round on its labels → first and last losses.

    always_positive: the indicator is True on every frame (SFT stage) and no labels are read.
    """
    if always_positive:
        indicator = np.ones(len(frames), dtype=np.int8)
    else:
        indicator = frames.per_tick(load_indicator(folder / "labels.parquet")).astype(np.int8)
    lineage = {"start": str(start or ""), "training": asdict(how), "seed": seed, **_data(frames)}
    # While the arbiter holds nobody acts: nothing to imitate.
    acted = np.array(
        [frames.episodes[e].source[t] != "hold" for e, t in zip(frames.episode, frames.tick, strict=True)]
    )
    frames, indicator = frames.where(acted), indicator[acted]
    log = train_policy(frames, indicator, folder / "policy", start, vision, how, seed, lineage, progress)
    return {"frames": len(frames), "positive": float(indicator.mean()), "first": log[0], "last": log[-1]}


def _data(frames: Frames) -> dict[str, Any]:
    """What the models of this round were made from."""
    return {"episodes": [e.info.id for e in frames.episodes], "frames": len(frames)}
