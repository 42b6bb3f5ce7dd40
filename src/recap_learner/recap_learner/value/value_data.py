"""What values are trained on: normalisers from the tasks' contracts, those of a checkpoint, outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recap_learner.data.episodes import Episode
from recap_learner.data.frames import Frames
from recap_learner.value.returns import Normalizer, check_same
from recap_policy.checkpoint import read


def normalizers(frames: Frames, fail_ratio: float = 1.0, fail_rule: str = "ordered") -> dict[str, Normalizer]:
    """Each task's normaliser, from its contract: T_max is its maximum episode length.

    Raises ValueError where episodes of one task disagree about that.
    """
    found: dict[str, Normalizer] = {}
    for e in frames.episodes:
        info = e.info
        ticks = round(info.task.max_episode_s * info.station.control_rate_hz)
        norm = found.setdefault(info.task.name, Normalizer(ticks, fail_ratio, fail_rule))
        if norm.max_steps != ticks:
            raise ValueError(
                f"{info.id}: task {info.task.name} of at most {ticks} ticks, others of {norm.max_steps}: "
                "wanted one maximum episode length a task"
            )
    return found


def normalizer(frames: Frames) -> Normalizer:
    """The task's normaliser. Raises ValueError if the frames are of several tasks."""
    found = normalizers(frames)
    if len(found) != 1:
        raise ValueError(f"wanted episodes of one task, found {sorted(found)}")
    return next(iter(found.values()))


def check_start(start: Path, norms: dict[str, Normalizer]) -> None:
    """Refuse a value checkpoint that was trained by another normaliser. Raises ValueError.

    One of before they were kept was trained by the default rule, and its lengths are not known.
    """
    known = read(start).lineage.get("normalizers")
    found = (
        {task: Normalizer(**norm) for task, norm in known.items()}
        if known
        else {task: Normalizer(norm.max_steps) for task, norm in norms.items()}
    )
    check_same(found, norms, f"value checkpoint {start}")


def check_outcomes(episodes: Sequence[Episode]) -> None:
    """Raise ValueError where one has no outcome: it would count as a failure."""
    missing = [e.info.id for e in episodes if e.info.outcome not in ("success", "failure")]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(episodes)} episodes have no outcome, the first: {missing[0]}: give it "
            "by ./recap label set STORE EPISODE success|failure"
        )
