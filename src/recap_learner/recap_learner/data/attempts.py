"""From collected streams to episodes: attempts are cut by episode events, and every stream meets the ticks.

Offline and live use is one: the converter collects from a bag, the learner node from the graph, and both end
here, so that the same messages give the same ticks bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from recap_learner.data.collect import Collected, ImageStream, JointStream
from recap_learner.data.episode_file import OUTCOMES, ConversionError, Episode, EpisodeInfo
from recap_station.cdr_scan import EpisodeEvent
from recap_station.contract import Station, Task
from recap_station.ticks import STALE_S, age_s, align, hold, tick_times

RUNNING, ENDED = 1, 2  # recap_interfaces/msg/Episode
OUTCOME_OF = ("unknown", "success", "failure", "discarded")  # likewise, by number
IMAGE_STALE_S = 1.0  # a camera whose picture is older at most ticks is slow, or has another clock
LONGEST_H = 24.0  # of an attempt: events of two clocks are further apart
SOURCES = frozenset({"policy", "teleop", "hold"})  # that the arbiter names in a command's frame_id


@dataclass(frozen=True)
class Attempt:
    """A stretch of the recording, and the last event that tells of it; None where none does."""

    start_ns: int
    end_ns: int
    event: EpisodeEvent | None


def cut(events: Sequence[EpisodeEvent], first_ns: int, last_ns: int) -> list[Attempt]:
    """Attempts by events in order of time; first_ns, last_ns: of the commands.

    RUNNING begins one and ENDED of the same id ends it; a later ENDED of it is a new judgement. Without
    RUNNING the recording is one attempt, to the first ENDED within it if there is any.
    """
    runs: list[tuple[int, int | None, EpisodeEvent]] = []
    for event in events:
        under_way = bool(runs) and runs[-1][1] is None
        if event.state == RUNNING:
            if under_way and runs[-1][2].id == event.id:
                continue
            if under_way:
                runs[-1] = (runs[-1][0], event.stamp_ns, runs[-1][2])
            runs.append((event.stamp_ns, None, event))
        elif event.state == ENDED:
            for k in range(len(runs) - 1, -1, -1):
                start, end, told = runs[k]
                if told.id == event.id:
                    runs[k] = (start, event.stamp_ns if end is None else end, event)
                    break
    if not runs:
        ends = [e for e in events if e.state == ENDED and e.stamp_ns > first_ns]
        if not ends:
            return [Attempt(first_ns, last_ns, None)]
        return [Attempt(first_ns, min(ends[0].stamp_ns, last_ns), ends[-1])]
    return [
        Attempt(start, last_ns if end is None else min(end, last_ns), event if event.state == ENDED else None)
        for start, end, event in runs
    ]


def command_span(collected: Collected, station: Station) -> tuple[int, int]:
    """Time of the first moment at which every joint has a command, and of the last command.

    Raises ConversionError where states or commands are too few, or lack a joint.
    """
    states, commands = collected.joints["state"], collected.joints["command"]
    counts = [sum(len(stream.stamps_ns) for stream in streams) for streams in (states, commands)]
    if min(counts) < 2:
        raise ConversionError(f"{counts[0]} joint states and {counts[1]} commands, wanted at least 2 of each")
    for streams, what in ((states, "state"), (commands, "command")):
        known = {int(column) for stream in streams for column in stream.columns}
        missing = [name for k, name in enumerate(station.joint_names) if k not in known]
        if missing:
            raise ConversionError(f"no {what} of joint {missing[0]!r} ({len(missing)} joints in all)")
    return _complete_from(commands), max(int(s.stamps_ns[-1]) for s in commands if len(s.stamps_ns))


def to_episode(collected: Collected, attempt: Attempt, station: Station, info: EpisodeInfo) -> Episode:
    """The ticks of one attempt. Raises ConversionError where it has none."""
    states, commands = collected.joints["state"], collected.joints["command"]
    start = max(attempt.start_ns, _complete_from(states), _complete_from(commands))
    if attempt.end_ns <= start:
        raise ConversionError("no time in which the episode ran and both state and command were there")
    if (hours := (attempt.end_ns - start) / 3.6e12) > LONGEST_H:
        raise ConversionError(f"an attempt of {hours:.1f} h, wanted {LONGEST_H:.0f} h at most")
    ticks = tick_times(start, attempt.end_ns, station.control_rate_hz)
    state, state_gap, _ = _at_ticks(states, ticks, station)
    command, command_gap, labels = _at_ticks(commands, ticks, station)
    modes, sources = _modes(collected, ticks)
    source = labels if SOURCES.intersection(labels.tolist()) else sources
    # An arbiter that died while somebody commanded leaves nobody's span open.
    source = np.where(command_gap & np.isin(source, ("policy", "teleop")), "hold", source).astype(object)
    stage_stamps, stages = collected.stages
    stage_at = hold(stage_stamps, ticks)
    image, image_age, image_at = {}, {}, {}
    for camera, images in collected.images.items():
        stream = images.stream
        at = align(images.stamps_ns, ticks, stream.align, stream.tolerance_s, station.step_s)
        there = at >= 0
        image[camera] = np.full(len(ticks), -1, dtype=np.int32)
        image[camera][there] = images.number[at[there]]
        image_age[camera] = age_s(images.stamps_ns, ticks, at)
        image_at[camera] = np.full((len(ticks), 4), -1, dtype=np.int64)
        image_at[camera][there] = images.place[at[there]]
    stale = _stale(collected, ticks, state_gap | command_gap)
    return Episode(
        info=replace(info, damage="; ".join([*([info.damage] if info.damage else []), *stale])),
        time_ns=ticks,
        state=state,
        command=command,
        policy_command=_at_ticks(collected.joints["policy_command"], ticks, station)[0],
        teleop_command=_at_ticks(collected.joints["teleop_command"], ticks, station)[0],
        source=source,
        correction=(source == "teleop") & (info.source != "demonstration"),
        stage=np.array([stages[i] if i >= 0 else "" for i in stage_at], dtype=object),
        gap=state_gap | command_gap,
        image=image,
        image_age=image_age,
        image_at=image_at,
        mode=modes,
    )


def task_of(event: EpisodeEvent | None, station: Station, duration_s: float) -> Task:
    """A stand-in for a task that nobody named: as long as the attempt took, with the prompt of its event."""
    name, prompt = (event.task or "unnamed", event.prompt) if event else ("unnamed", "")
    return Task(name, prompt, duration_s, duration_s, (), "person")


def describe(base: EpisodeInfo, attempt: Attempt, task: Task | None, number: int) -> EpisodeInfo:
    """What is known of one attempt: by the bag's metadata, and by the episode's event where they are silent
    or the bag holds several."""
    event = attempt.event
    info = base
    if task is None:
        seconds = max(1.0, (attempt.end_ns - attempt.start_ns) * 1e-9)
        info = replace(info, task=task_of(event, base.station, seconds))
    if number:
        info = replace(info, id=f"{base.id}_attempt{number}", outcome="unknown", reason="")
    if event is not None and info.outcome not in OUTCOMES:
        outcome = OUTCOME_OF[event.outcome] if event.outcome < len(OUTCOME_OF) else "unknown"
        info = replace(info, outcome=outcome, reason=event.reason)
        if number or not info.checkpoint:
            info = replace(info, checkpoint=event.checkpoint)
        if number or info.seed < 0:
            info = replace(info, seed=event.seed)
    return info


def _complete_from(streams: Sequence[JointStream]) -> int:
    """The first time from which every joint has had a message."""
    first: dict[int, int] = {}
    for stream in streams:
        if len(stream.stamps_ns):
            for column in stream.columns.tolist():
                first[column] = min(first.get(column, 1 << 62), int(stream.stamps_ns[0]))
    return max(first.values())


def _at_ticks(
    streams: Sequence[JointStream], ticks: np.ndarray, station: Station
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """→ values (T, D) float32, NaN where there are none; whether any joint's is missing or stale (T,); label
    of the newest message (T,) str. Where several streams carry a joint the newest message counts."""
    values = np.full((len(ticks), station.dof), np.nan, dtype=np.float32)
    newest = np.full((len(ticks), station.dof), np.iinfo(np.int64).min)
    label_at = np.full(len(ticks), np.iinfo(np.int64).min)
    labels = np.full(len(ticks), "", dtype=object)
    for joints in streams:
        stream = joints.stream
        at = align(joints.stamps_ns, ticks, stream.align, stream.tolerance_s, station.step_s)
        there = np.flatnonzero(at >= 0)
        stamps = joints.stamps_ns[at[there]]
        later = there[stamps >= label_at[there]]
        labels[later] = joints.labels[at[later]]
        label_at[later] = joints.stamps_ns[at[later]]
        block = np.ix_(there, joints.columns)
        replaces = stamps[:, None] >= newest[block]
        values[block] = np.where(replaces, joints.values[at[there]], values[block])
        newest[block] = np.where(replaces, stamps[:, None], newest[block])
    oldest = newest.min(axis=1)
    gap = (oldest < 0) | ((ticks - np.maximum(oldest, 0)) * 1e-9 > STALE_S)
    return values, gap, labels


def _stale(collected: Collected, ticks: np.ndarray, gap: np.ndarray) -> list[str]:
    """Notes of streams that are old at most ticks, as where clocks differ that stamp them."""

    def age(stream: JointStream | ImageStream) -> float:
        return float(np.median(age_s(stream.stamps_ns, ticks, hold(stream.stamps_ns, ticks))))

    notes = []
    if gap.mean() > 0.5:
        ages = {s.stream.topic: age(s) for role in ("state", "command") for s in collected.joints[role]}
        oldest = max(ages, key=ages.__getitem__)
        note = f"{gap.mean():.0%} of the ticks are gaps"
        if ages[oldest] > STALE_S:
            note += f": {oldest} is {ages[oldest]:.2f} s old at the median tick, wanted {STALE_S} s at most"
        notes.append(note)
    for images in collected.images.values():
        if len(images.stamps_ns) and age(images) > IMAGE_STALE_S:
            old = f"is {age(images):.1f} s old" if np.isfinite(age(images)) else "has no image yet"
            notes.append(
                f"{images.stream.topic} {old} at the median tick, wanted one of {IMAGE_STALE_S} s at most"
            )
    return notes


def _modes(collected: Collected, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """→ mode (T,) int8, and the source that the arbiter said it followed (T,) str."""
    stamps, said = collected.modes
    at = hold(stamps, ticks)
    modes = np.array([said[i][0] if i >= 0 else -1 for i in at], dtype=np.int8)
    return modes, np.array([said[i][1] if i >= 0 else "" for i in at], dtype=object)
