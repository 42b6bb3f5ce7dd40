"""Evaluations of what was recorded: attempts in bags or in a store, by the checkpoint that made them.

The outcomes are those of the cell: the simulator's, or a person's, said live or afterwards
(`./recap label`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np

from recap_learner.data.episodes import OUTCOMES, SUFFIX, Episode, find_bags, read_attempts
from recap_learner.data.store import Store, load_judged
from recap_learner.evaluation.evaluation import Attempt, Evaluation, EvaluationError

LONGEST_RESET_S = 600.0  # a longer pause is a break, not a reset


def evaluate_recorded(
    paths: Sequence[Path],
    reset_s: float | None = None,
    count_reset: bool = False,
    progress: Callable[[float, str], None] | None = None,
    wanted: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Evaluation], list[str]]:
    """Bags, folders of bags or stores → (one evaluation a checkpoint, lines about what was left out).

    reset_s: between attempts; None: the median pause between the recordings. wanted: checkpoints, by what
    recordings call them or an end of it → another name that they may carry (the identity, as live ones do);
    none: all. Demonstrations and discarded attempts are left out.
    Raises EvaluationError where nothing is left.
    """
    episodes, problems = _read(paths, progress)
    groups: dict[str, list[Episode]] = {}
    without: dict[str, list[str]] = {"no outcome yet (./recap label gives one)": [], "discarded": []}
    for episode in episodes:
        info = episode.info
        if info.outcome not in OUTCOMES:
            without["no outcome yet (./recap label gives one)"].append(info.id)
        elif info.outcome == "discarded":
            without["discarded"].append(info.id)
        elif info.source != "demonstration":
            groups.setdefault(info.checkpoint, []).append(episode)
    for why, ids in without.items():
        if ids:
            some = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
            problems.append(f"{len(ids)} attempts left out, {why}: {some}")
    if wanted and groups:
        chosen: dict[str, list[Episode]] = {}
        for name, identity in wanted.items():
            for said, group in groups.items():
                if said in (name, identity) or _ends_with(said, name):
                    chosen.setdefault(name, []).extend(group)
        if not chosen:
            raise EvaluationError(
                f"checkpoint {next(iter(wanted))!r}: wanted one of {', '.join(map(repr, groups))}"
            )
        groups = chosen
    if not groups:
        said = f"; {problems[0]}" if problems else ""
        raise EvaluationError(f"{paths[0]}: holds no attempt of a policy with an outcome{said}")
    short = _short_names(list(groups))
    order = list(groups) if wanted else sorted(groups)
    return [
        _evaluation(short[c], c, wanted.get(c, c), groups[c], reset_s, count_reset) for c in order
    ], problems


def attempt_of(episode: Episode) -> Attempt:
    """What an evaluation knows of a recorded attempt."""
    info = episode.info
    corrected = np.flatnonzero(np.diff(np.r_[False, episode.correction].astype(np.int8)) > 0)
    stages: dict[str, float] = {}
    for tick in np.flatnonzero(np.r_[True, episode.stage[1:] != episode.stage[:-1]]):
        if name := str(episode.stage[tick]):
            stages.setdefault(name, round(float(tick) * info.station.step_s, 3))
    return Attempt(
        seed=info.seed,
        success=info.success,
        reason=info.reason or info.outcome,
        duration_s=episode.duration_s,
        takeovers=len(corrected),
        correction=float(episode.correction.mean()),
        bag=info.bag,
        stage=str(episode.stage[-1]),
        stages=stages or None,
    )


def _read(
    paths: Sequence[Path], progress: Callable[[float, str], None] | None
) -> tuple[list[Episode], list[str]]:
    stores = [path for path in paths if path.is_dir() and any(path.glob(f"*{SUFFIX}"))]
    episodes = load_judged(file for store in stores for file in Store(store).files())
    bags = find_bags([path for path in paths if path not in stores])
    problems = []
    for index, bag in enumerate(bags):
        try:
            episodes += read_attempts(bag, bag.parent)
        except Exception as error:  # somebody else's data: the others go on
            problems.append(f"{bag}: {error}".replace("\n", " "))
        if progress:
            progress((index + 1) / len(bags), f"{index + 1}/{len(bags)} bags")
    return episodes, problems


def _evaluation(
    name: str,
    checkpoint: str,
    identity: str,
    episodes: list[Episode],
    reset_s: float | None,
    count_reset: bool,
) -> Evaluation:
    episodes = sorted(episodes, key=lambda e: (e.info.seed, int(e.time_ns[0])))
    first, notes = episodes[0].info, []
    tasks = {e.info.task.name for e in episodes}
    if len(tasks) > 1:
        raise EvaluationError(
            f"{name}: attempts of several tasks ({', '.join(sorted(tasks))}), wanted of one"
        )
    measured = _pause_s(episodes) if reset_s is None else reset_s
    if measured is None and count_reset:
        raise EvaluationError(
            f"{name}: the time between attempts cannot be seen in the recordings: wanted --reset-s"
        )
    corrected = sum(e.correction.any() for e in episodes)
    if corrected:
        notes.append(
            f"a person took over in {corrected} of {len(episodes)} attempts; their outcomes count too"
        )
    return Evaluation(
        name=name,
        attempts=tuple(attempt_of(e) for e in episodes),
        checkpoint=checkpoint,
        identity=identity,
        task=first.task.name,
        station=first.station.name,
        stages=tuple(first.task.stages),
        source="bags",
        reset_s=measured or 0.0,
        reset_from="measured" if reset_s is None and measured is not None else "stated",
        count_reset=count_reset,
        stopping={"rule": "recorded", "attempts": len(episodes)},
        notes=tuple(notes),
    )


def _pause_s(episodes: Sequence[Episode]) -> float | None:
    """Median time between the end of one recording and the start of the next [s]; None where they overlap,
    as attempts do that were made side by side on simulated time."""
    spans = sorted((int(e.time_ns[0]), int(e.time_ns[-1])) for e in episodes)
    pauses = [(start - end) / 1e9 for (_, end), (start, _) in pairwise(spans)]
    if not pauses or min(pauses) < 0:
        return None
    pauses = [pause for pause in pauses if pause <= LONGEST_RESET_S]
    return float(np.median(pauses)) if pauses else None


def _ends_with(path: str, end: str) -> bool:
    return Path(path).parts[-len(Path(end).parts) :] == Path(end).parts


def _short_names(checkpoints: Sequence[str]) -> Mapping[str, str]:
    """Checkpoint → its last parts, as many as tell it from the others."""
    for parts in range(1, 12):
        short = {c: "/".join(Path(c).parts[-parts:]) or "unknown policy" for c in checkpoints}
        if len(set(short.values())) == len(checkpoints) and parts > 1:
            return short
    return {c: c for c in checkpoints}
