"""What is wrong with recorded episodes, before anything is trained on them.

Each finding has a kind of KINDS, so that a script can fail on those that matter to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recap_learner.data.episodes import ConversionError, Episode, read_images
from recap_learner.data.store import Store, load_judged
from recap_learner.data.stream_times import StreamReport, declared_streams, read_stamps, timing_of
from recap_station.contract import ContractError
from recap_station.streams import TRAJECTORY_TYPE
from recap_station.ticks import STALE_S

KINDS = {
    "unlabelled": "no outcome, neither recorded nor given by a person",
    "damage": "something was lost or left out when the recording was read",
    "gap": f"state or command older than {STALE_S} s",
    "rate": "a camera, states or commands slower than the contract says",
    "stall": "a stream that paused",
    "frozen": "a camera that showed one picture while the robot moved",
    "black": "a camera that showed nothing",
    "jump": "a joint that moved faster than it can",
    "limit": "a command outside the joint's range",
    "skew": "streams whose clocks or delays differ",
    "duplicate": "two episodes with the same numbers",
    "unreadable": "an episode or a bag that cannot be read",
}


@dataclass(frozen=True)
class Limits:
    """Where something becomes a finding. slow: share of the wanted rate; stall_s, frozen_s: seconds; moved:
    rad that some joint must have moved meanwhile; black: grey level of 255; jump: times a joint's greatest
    velocity; skew_s: difference of two streams' median delays; pictures: decoded of each camera."""

    slow: float = 0.8
    stall_s: float = 0.5
    frozen_s: float = 0.5
    moved: float = 0.05
    black: float = 6.0
    jump: float = 3.0
    slack: float = 1e-3
    skew_s: float = 0.05
    pictures: int = 12


@dataclass(frozen=True)
class Finding:
    kind: str
    episode: str
    text: str


@dataclass(frozen=True)
class EpisodeReport:
    """corrections: ticks of each stretch that a person commanded; brightness: camera → mean grey level."""

    episode: str
    outcome: str
    source: str
    ticks: int
    duration_s: float
    gap_share: float
    unchecked: bool = False
    corrections: tuple[int, ...] = ()
    streams: dict[str, StreamReport] = field(default_factory=dict)
    brightness: dict[str, float] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class StoreReport:
    episodes: tuple[EpisodeReport, ...]
    findings: tuple[Finding, ...]
    step_s: float

    def summary(self) -> dict[str, Any]:
        """Numbers over all episodes; counts of findings by kind."""
        lengths = [n for e in self.episodes for n in e.corrections]
        ticks = sum(e.ticks for e in self.episodes)
        seconds = np.array([e.duration_s for e in self.episodes] or [0.0])
        return {
            "episodes": len(self.episodes),
            "hours": float(seconds.sum() / 3600),
            "outcomes": _counts(e.outcome for e in self.episodes),
            "sources": _counts(e.source for e in self.episodes),
            "duration_s": {
                name: round(float(np.quantile(seconds, q)), 3)
                for name, q in (("shortest", 0.0), ("median", 0.5), ("longest", 1.0))
            },
            "corrections": len(lengths),
            "corrected_episodes": sum(bool(e.corrections) for e in self.episodes),
            "corrected_share": sum(lengths) / ticks if ticks else 0.0,
            "correction_s": {
                name: round(float(np.quantile(lengths, q)) * self.step_s, 3) if lengths else None
                for name, q in (("shortest", 0.0), ("median", 0.5), ("longest", 1.0))
            },
            "unchecked": sum(e.unchecked for e in self.episodes),
            "findings": _counts(f.kind for f in self.findings),
        }


def inspect_store(
    store: Store, limits: Limits = Limits(), progress: Callable[[float, str], None] | None = None
) -> StoreReport:
    """Look at every episode of a store, and at its bag. Raises FileNotFoundError where there is no store."""
    entries, problems = store.index()
    reports: list[EpisodeReport] = []
    findings = [Finding("unreadable", "", problem) for problem in problems]
    step_s = 0.02
    for number, entry in enumerate(entries):
        try:
            [episode] = load_judged([store.path(entry.id)])
        except (OSError, ValueError) as error:
            findings.append(Finding("unreadable", entry.id, str(error)))
            continue
        step_s = episode.info.station.step_s
        report, found = inspect_episode(episode, store.folder, limits)
        reports.append(report)
        findings += found
        if progress:
            progress((number + 1) / len(entries), f"{number + 1}/{len(entries)} episodes")
    findings += _duplicates(reports)
    order = {kind: place for place, kind in enumerate(KINDS)}
    findings.sort(key=lambda f: (order[f.kind], f.episode))
    return StoreReport(tuple(reports), tuple(findings), step_s)


def inspect_episode(episode: Episode, folder: Path, limits: Limits) -> tuple[EpisodeReport, list[Finding]]:
    """One episode; `folder`: the store's, from which its bag is found."""
    name, found = episode.info.id, check_ticks(episode, limits)
    streams: dict[str, StreamReport] = {}
    brightness: dict[str, float] = {}
    try:
        stamps, sums = read_stamps(episode, episode.info.bag_in(folder))
        streams = {stream: timing_of(times) for stream, times in stamps.items() if len(times)}
        found += [Finding(kind, name, text) for kind, text in check_streams(episode, streams, limits)]
        for camera, seen in sums.items():
            shown = stamps[declared_streams(episode).image(camera).topic][:, 0]
            if text := frozen(episode, shown, seen, limits):
                found.append(Finding("frozen", name, f"{camera}: {text}"))
        brightness = _brightness(episode, episode.info.bag_in(folder), limits.pictures)
    except (ConversionError, ContractError, OSError) as error:
        found.append(Finding("unreadable", name, str(error)))
    found += [
        Finding("black", name, f"{camera}: mean grey level {level:.1f} of 255, wanted above {limits.black}")
        for camera, level in brightness.items()
        if level < limits.black
    ]
    report = EpisodeReport(
        episode=name,
        outcome=episode.info.outcome,
        source=episode.info.source,
        ticks=len(episode),
        duration_s=episode.duration_s,
        gap_share=float(episode.gap.mean()),
        unchecked=episode.info.unchecked,
        corrections=tuple(stretches(episode.correction)),
        streams=streams,
        brightness=brightness,
        digest=hashlib.sha256(episode.state.tobytes() + episode.command.tobytes()).hexdigest()[:16],
    )
    return report, found


def check_ticks(episode: Episode, limits: Limits) -> list[Finding]:
    """What the numbers alone tell: outcome, damage, gaps, jumps of joints, commands out of range. Pure."""
    info, station = episode.info, episode.info.station
    found = []
    if info.outcome not in ("success", "failure", "discarded"):
        found.append(Finding("unlabelled", info.id, f"outcome {info.outcome!r}"))
    if info.damage:
        found.append(Finding("damage", info.id, info.damage))
    if episode.gap.any():
        longest = max(stretches(episode.gap)) * station.step_s
        share = 100 * episode.gap.mean()
        found.append(Finding("gap", info.id, f"{share:.1f} % of the ticks, the longest {longest:.2f} s"))
    speed = np.abs(np.diff(episode.state, axis=0)) / station.step_s
    # A gap ends with a step that no joint has made.
    speed[episode.gap[1:] | episode.gap[:-1]] = 0.0
    ratio = speed / station.max_velocity
    if len(ratio) and np.nanmax(ratio) > limits.jump:
        tick, joint = np.unravel_index(np.nanargmax(ratio), ratio.shape)
        found.append(
            Finding(
                "jump",
                info.id,
                f"{station.joint_names[joint]} at {(tick + 1) * station.step_s:.2f} s: "
                f"{speed[tick, joint]:.1f}/s, it can do {station.max_velocity[joint]:.1f}/s "
                f"({int((ratio > limits.jump).sum())} jumps)",
            )
        )
    if not np.isfinite(episode.state).all() or not np.isfinite(episode.command).all():
        found.append(Finding("limit", info.id, "a state or command that is no number"))
    beyond = np.maximum(station.lower - episode.command, episode.command - station.upper)
    if len(beyond) and np.nanmax(beyond) > limits.slack:
        tick, joint = np.unravel_index(np.nanargmax(beyond), beyond.shape)
        found.append(
            Finding(
                "limit",
                info.id,
                f"{station.joint_names[joint]} at {tick * station.step_s:.2f} s: "
                f"{episode.command[tick, joint]:.3f}, wanted {station.lower[joint]:.3f} .. "
                f"{station.upper[joint]:.3f} ({int((beyond > limits.slack).any(1).sum())} ticks)",
            )
        )
    return found


def check_streams(
    episode: Episode, streams: dict[str, StreamReport], limits: Limits
) -> list[tuple[str, str]]:
    """(kind, text) of what is wrong with the streams' timing; `streams`: by topic. Pure."""
    found, slow, declared = [], [], declared_streams(episode)
    for camera in episode.info.station.cameras:
        stream = streams.get(declared.image(camera.name).topic)
        if stream is None:
            slow.append(f"{camera.name} has no image, wanted {camera.rate_hz:.0f} Hz")
        elif stream.rate_hz < limits.slow * camera.rate_hz and stream.messages > 1:
            slow.append(f"{camera.name} {stream.rate_hz:.1f} Hz, wanted {camera.rate_hz:.0f} Hz")
    joints = [s.topic for s in (*declared.state, *declared.command) if s.type != TRAJECTORY_TYPE]
    stalled = []  # a trajectory says much at once, and then nothing
    for name in dict.fromkeys([*joints, *(stream.topic for _, stream in declared.images)]):
        if name in streams and streams[name].longest_gap_s > limits.stall_s:
            stalled.append(name)
            found.append(("stall", f"{name}: nothing for {streams[name].longest_gap_s:.2f} s"))
    wanted = episode.info.station.control_rate_hz
    for name in dict.fromkeys(joints):
        stream = streams.get(name)
        if stream and stream.messages > 1 and name not in stalled and stream.rate_hz < limits.slow * wanted:
            slow.append(f"{name} {stream.rate_hz:.1f} Hz, wanted {wanted:.0f} Hz")
    if slow:
        found.append(("rate", "; ".join(slow)))
    delays = {name: stream.delay_s for name, stream in streams.items() if stream.messages > 1}
    if delays:
        early, late = min(delays, key=delays.__getitem__), max(delays, key=delays.__getitem__)
        if delays[late] - delays[early] > limits.skew_s:
            found.append(
                (
                    "skew",
                    f"{late} comes {1e3 * delays[late]:.0f} ms after its stamp, "
                    f"{early} {1e3 * delays[early]:.0f} ms",
                )
            )
    return found


def frozen(episode: Episode, stamps: np.ndarray, sums: np.ndarray, limits: Limits) -> str:
    """Text if a camera sent the same bytes for too long while a joint moved; else "". Pure.

    stamps, sums: (M,) int64, time in ns and checksum of each of its images.
    """
    starts = [0, *(np.flatnonzero(sums[1:] != sums[:-1]) + 1).tolist()]
    worst = ("", 0.0)
    for start, end in pairwise([*starts, len(sums)] if len(sums) else []):
        seconds = (stamps[end - 1] - stamps[start]) * 1e-9
        inside = (episode.time_ns >= stamps[start]) & (episode.time_ns <= stamps[end - 1])
        if seconds < max(limits.frozen_s, worst[1]) or not inside.any():
            continue
        moved = float(np.ptp(episode.state[inside], axis=0).max())
        if moved > limits.moved:
            begin = (stamps[start] - episode.time_ns[0]) * 1e-9
            worst = (
                f"{end - start} equal images in {seconds:.2f} s from {begin:.2f} s on, "
                f"while a joint moved {moved:.2f}",
                seconds,
            )
    return worst[0]


def stretches(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of True in (T,) bool."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return (np.flatnonzero(edges < 0) - np.flatnonzero(edges > 0)).tolist()


def _brightness(episode: Episode, bag: Path, pictures: int) -> dict[str, float]:
    levels = {}
    for camera, index in episode.image.items():
        seen = np.unique(index[index >= 0])
        if len(seen):
            chosen = seen[np.unique(np.linspace(0, len(seen) - 1, pictures).astype(int))]
            images = read_images(bag, camera, chosen, episode.info.streams, episode.info.files)
            grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
            # Lit anywhere is not black: the brightest hundredth of each picture counts too.
            levels[camera] = float(np.median([(g.mean() + np.quantile(g, 0.99)) / 2 for g in grey]))
    return levels


def _duplicates(reports: Sequence[EpisodeReport]) -> list[Finding]:
    first: dict[str, str] = {}
    found = []
    for report in reports:
        if report.digest in first:
            found.append(Finding("duplicate", report.episode, f"the same as {first[report.digest]}"))
        first.setdefault(report.digest, report.episode)
    return found


def _counts(values: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
