"""The steps of one round of learning: bags → frames → value → labels → policy, files in one folder.

<folder>/value/            the value function
<folder>/value.json        its report on held-out episodes, and the gates that it fails
<folder>/values.npz        V of every tick of every episode, each by a model that had not seen it
<folder>/labels.parquet    indicator of every tick
<folder>/policy/           the policy
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recap_learner.arms import Arm, Judged
from recap_learner.arms.base import POSITIVE
from recap_learner.data.episodes import SUFFIX, Episode, EpisodeInfo, convert_bags, read_info
from recap_learner.data.frames import Frames, load_frames
from recap_learner.data.store import Store
from recap_learner.training.policy_training import RECAP, PolicyTraining, train_policy
from recap_learner.training.training import Progress
from recap_learner.value.cotraining import CoTraining
from recap_learner.value.gates import Gates, check_found
from recap_learner.value.labels import (
    FILE,
    EpisodeValues,
    LabelRule,
    label,
    save_labels,
    save_to_store,
)
from recap_learner.value.returns import Normalizer, monte_carlo_returns
from recap_learner.value.value_data import check_outcomes, normalizers
from recap_learner.value.value_file import load_values, save_values
from recap_learner.value.value_training import ValueTraining, train_value
from recap_station.files import write_json


def convert(
    bags: Sequence[Path], store: Path, progress: Progress | None = None, workers: int = 1
) -> tuple[list[Path], list[str]]:
    """Episode files of all bags, made where they are new or changed → (files, why others are left out).

    Files come in the order of their start states' seeds, not of when they were recorded: with equal attempts
    a run that was broken off and one that was not then draw the same batches.
    Attempts that were recorded as episode files, without bags, are taken as they are.
    Raises ValueError if no bag can be used.
    """
    files = [file for folder in bags if folder.is_dir() for file in sorted(folder.glob(f"*{SUFFIX}"))]
    if files:
        return sorted(files, key=lambda file: (read_info(file).seed, file.name)), []
    files, problems = convert_bags(bags, store, progress, workers=workers)
    if not files:
        raise ValueError(f"none of {len(problems)} bags can be used; the first: {problems[0]}")
    return sorted(files, key=lambda file: (read_info(file).seed, file.name)), problems


def open_frames(
    files: Sequence[Path], vision: Path, progress: Progress | None = None, to_learn: bool = True
) -> Frames:
    """Frames of episode files, in their order, without discarded attempts.

    Raises ValueError where no attempt is left and, where they are all there is to learn from, if none
    succeeded.
    """
    frames = load_frames(files, vision, progress=progress)
    discarded = [i for i, e in enumerate(frames.episodes) if e.info.outcome == "discarded"]
    frames = frames.without(discarded) if discarded else frames
    if not frames.episodes:
        raise ValueError(f"all {len(files)} attempts are discarded, wanted some to learn from")
    for task, counts in outcomes(frames).items():
        if to_learn and not counts["success"]:
            raise ValueError(
                f"task {task}: none of {counts['attempts']} attempts succeeded, wanted some: values would "
                "say nothing, every label be a guess; record better ones, or mend outcomes by ./recap label"
            )
    return frames


def outcomes(frames: Frames) -> dict[str, dict[str, int]]:
    """Task → attempts, successes and failures."""
    found: dict[str, dict[str, int]] = {}
    for episode in frames.episodes:
        counts = found.setdefault(episode.info.task.name, {"attempts": 0, "success": 0, "failure": 0})
        counts["attempts"] += 1
        counts["success" if episode.info.success else "failure"] += 1
    return found


def notices(frames: Frames) -> list[str]:
    """What a person should know of the data before trusting what is learnt from them."""
    return [
        f"task {task}: none of {counts['attempts']} attempts failed: the value function learns of time "
        "alone, and no label will say what leads to failure"
        for task, counts in outcomes(frames).items()
        if not counts["failure"]
    ]


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
    gates: Gates | None = None,
) -> dict[str, Any]:
    """Train the value function of this round → its report. The values of all ticks are saved.

    frames: of one task, or of several to pre-train on. fresh, cotraining: as `train_value`'s. gates: what it
    must reach on held-out episodes; None: what fails is reported and ends nothing.
    Raises GateError where it fails gates, on all tasks together or on one, after everything is saved, the
    report as <folder>/value.json too.
    """
    lineage = {"start": str(start or ""), "training": asdict(how), "seed": seed, **_data(frames)}
    made = train_value(
        frames, folder / "value", start, how, seed, lineage, progress, fresh=fresh, cotraining=cotraining
    )
    save_values(folder / "values.npz", made.values, made.failed, made.norms)
    several = made.by_task if len(made.by_task) > 1 else {}
    limits = gates or Gates()
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
    if gates is not None:
        check_found(found, gates, f"the value function in {folder}")
    return found


def make_labels(
    frames: Frames,
    folder: Path,
    rule: LabelRule | Mapping[str, LabelRule],
    judged_by: Callable[[EpisodeInfo], bool],
    store: Path | None = None,
    values_file: Path | None = None,
) -> dict[str, Any]:
    """Label every tick from the values of this round → shares and threshold.

    rule: of all tasks, or by task. judged_by: the episodes whose autonomous frames a task's threshold is a
    quantile of. store: where each episode gets its labels under the tag `folder.name` too, for the loader,
    exports and whoever looks. values_file: where the values are not this folder's. Raises ValueError on an
    episode without a value, and as `label_ticks`.
    """
    check_outcomes(frames.episodes)
    file = values_file or folder / "values.npz"
    values, failed, norms = load_values(file)
    if missing := [e.info.id for e in frames.episodes if e.info.id not in values]:
        raise ValueError(
            f"{file}: {len(missing)} episodes have no value, the first: {missing[0]}: train "
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
    arm: Arm = RECAP,
    labels: Sequence[Path] = (),
    pretrained_labels: Sequence[Path] = (),
    fresh: Callable[[Episode], bool] | None = None,
) -> dict[str, Any]:
    """Train the policy of this round as an arm does, into <folder>/policy → first and last losses.

    labels: sidecars with the advantage and indicator of this round; pretrained_labels: those of the
    pre-training. Frames that none covers have advantage 0 and are not positive. fresh: as `fit_value`'s.
    """
    # While the arbiter holds nobody acts: nothing to imitate.
    acted = np.array(
        [frames.episodes[e].source[t] != "hold" for e, t in zip(frames.episode, frames.tick, strict=True)]
    )
    lesson = arm.lesson(judge(frames.where(acted), labels, pretrained_labels))
    rows = np.flatnonzero(acted)[lesson.keep]
    frames, indicator = frames.where(rows), lesson.indicator[lesson.keep]
    lineage = {"start": str(start or ""), "training": asdict(how), "seed": seed, **_data(frames)}
    new = np.array([fresh(e) for e in frames.episodes])[frames.episode] if fresh else None
    lineage |= {"arm": {"name": arm.name, "asked": arm.asked, **asdict(arm)}}
    log = train_policy(
        frames,
        indicator,
        folder / "policy",
        start,
        vision,
        how,
        seed,
        lineage,
        progress,
        arm=arm,
        weight=lesson.weight[lesson.keep],
        advantage=lesson.advantage[lesson.keep],
        fresh=new,
    )
    positive = float((indicator == POSITIVE).mean())
    return {"frames": len(frames), "positive": positive, "first": log[0], "last": log[-1]}


def judge(frames: Frames, labels: Sequence[Path], pretrained_labels: Sequence[Path]) -> Judged:
    """What arms are told of the frames."""
    columns = _read_labels(frames, labels)
    before = _read_labels(frames, pretrained_labels)
    demonstration = np.array([e.info.source == "demonstration" for e in frames.episodes])[frames.episode]
    corrected = frames.per_tick({e.info.id: e.correction for e in frames.episodes}).astype(bool)
    return Judged(
        advantage=columns["advantage"],
        positive=columns["indicator"] > 0,
        pretrained_positive=before["indicator"] > 0,
        correction=corrected & ~demonstration,
        demonstration=demonstration,
        episode=frames.episode,
        score=np.array([_whole_return(e) for e in frames.episodes], np.float32),
        task=np.array([e.info.task.name for e in frames.episodes]),
    )


def _read_labels(frames: Frames, files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Advantage and indicator of each frame → (F,) float32 each, 0 where no file covers it."""
    names = ("advantage", "indicator")
    found = {n: {e.info.id: np.zeros(len(e), np.float32) for e in frames.episodes} for n in names}
    for file in files:
        table = pq.read_table(file, columns=["episode", *names])
        owner = np.asarray(table["episode"].to_pylist(), dtype=object)
        begins = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(owner) else np.empty(0, int)
        for begin, end in zip(begins, [*begins[1:], len(owner)], strict=True):
            for name in names:
                if owner[begin] in found[name]:
                    found[name][owner[begin]] = table[name].to_numpy()[begin:end].astype(np.float32)
    return {name: frames.per_tick(columns) for name, columns in found.items()}


def _whole_return(episode: Episode) -> float:
    """Normalised return of an episode (eq. 5): what episodes of one task are ranked by."""
    info = episode.info
    norm = Normalizer(round(info.task.max_episode_s * info.station.control_rate_hz))
    return float(monte_carlo_returns(len(episode), info.success, norm)[0])


def _data(frames: Frames) -> dict[str, Any]:
    """What the models of this round were made from."""
    return {"episodes": [e.info.id for e in frames.episodes], "frames": len(frames)}
