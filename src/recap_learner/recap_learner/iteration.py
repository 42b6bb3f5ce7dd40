"""One round of learning: bags → frames → value → labels → policy, with its files in one folder.

<folder>/value/            the value function
<folder>/value.json        its report on held-out episodes, and the gates that it fails
<folder>/values.npz        V of every tick of every episode, each by a model that had not seen it
<folder>/labels.parquet    indicator of every tick
<folder>/policy/           the policy
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recap_learner.cotraining import CoTraining
from recap_learner.episodes import Episode, EpisodeInfo, convert_bags
from recap_learner.frames import Frames, load_frames
from recap_learner.gates import Gates
from recap_learner.labels import (
    FILE,
    EpisodeValues,
    LabelRule,
    label,
    load_indicator,
    save_labels,
    save_to_store,
)
from recap_learner.policy_training import PolicyTraining, train_policy
from recap_learner.store import Store
from recap_learner.training import Progress
from recap_learner.value_data import check_outcomes, normalizers
from recap_learner.value_file import load_values, save_values
from recap_learner.value_training import ValueTraining, train_value
from recap_station.files import write_json


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
    *,
    fresh: Callable[[Episode], bool] | None = None,
    cotraining: CoTraining | None = None,
) -> dict[str, Any]:
    """Train the value function of this round → its report. The values of all ticks are saved.

    frames: of one task, or of several to pre-train on. fresh, cotraining: as `train_value`'s.
    Raises GateError where it fails how.gates, on all tasks together or on one, after everything is saved, the
    report as <folder>/value.json too.
    """
    lineage = {"start": str(start or ""), "training": asdict(how), "seed": seed, **_data(frames)}
    made = train_value(
        frames, folder / "value", start, how, seed, lineage, progress, fresh=fresh, cotraining=cotraining
    )
    save_values(folder / "values.npz", made.values, made.failed, made.norms)
    several = made.by_task if len(made.by_task) > 1 else {}
    limits = how.gates or Gates()
    found = {
        **made.report.to_dict(),
        "problems": made.report.problems(limits),
        "unmeasured": made.report.unmeasured(),
        "by_task": {
            task: {**report.to_dict(), "problems": report.problems(limits)}
            for task, report in several.items()
        },
    }
    write_json(folder / "value.json", found)
    if how.gates is not None:
        made.report.check(how.gates, f"the value function in {folder}")
        for task, report in several.items():
            report.check(how.gates, f"the value function in {folder}, on {task},")
    return found


def make_labels(
    frames: Frames,
    folder: Path,
    rule: LabelRule | Mapping[str, LabelRule],
    judged_by: Callable[[EpisodeInfo], bool],
    store: Path | None = None,
) -> dict[str, Any]:
    """Label every tick from the values of this round → shares and threshold.

    rule: of all tasks, or by task. judged_by: the episodes whose autonomous frames a task's threshold is a
    quantile of. store: where each episode gets its labels under the tag `folder.name` too, for the loader,
    exports and whoever looks. Raises ValueError on an episode without a value, and as `label_ticks`.
    """
    check_outcomes(frames.episodes)
    values, failed, norms = load_values(folder / "values.npz")
    if missing := [e.info.id for e in frames.episodes if e.info.id not in values]:
        raise ValueError(
            f"{folder / 'values.npz'}: {len(missing)} episodes have no value, the first: {missing[0]}: train "
            "the value function on them too"
        )
    episodes = [
        EpisodeValues(
            e.info.id,
            values[e.info.id],
            e.info.success,
            e.correction,
            judged_by(e.info),
            e.info.task.name,
            failed.get(e.info.id),
            frames.failed_at.get(e.info.id, -1),
            e.info.source,
        )
        for e in frames.episodes
    ]
    labels = label(episodes, norms or normalizers(frames), rule)
    save_labels(labels, folder / FILE, _data(frames))
    if store is not None:
        save_to_store(labels, Store(store), folder.name, {"run": str(folder)})
    return labels.summary()


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
        indicator = frames.per_tick(load_indicator(folder / FILE)).astype(np.int8)
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
