"""Messages of one bag, or of the live graph, gathered stream by stream until an episode is cut from them.

`Collector.add` takes every message as it comes, with the CDR bytes as they are; nothing is resampled here and
no image is decoded. A message that cannot be meant (a joint the cell lacks, a NaN, an image of no size or
without its end; see `data.messages`) is left out and counted; one whose every message is so is an
error. Clocks that jump back are found and told; see `recap_learner.data.series`. So are breaks of a
recording, and clocks that jump forward.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recap_learner.data.messages import (
    image_reader,
    joint_reader,
    known_reader,
    read_event,
    read_mode,
    read_stage,
)
from recap_learner.data.series import JUMP_S, Series
from recap_station import topics
from recap_station.cdr_scan import EpisodeEvent
from recap_station.contract import ContractError, Station
from recap_station.streams import ROLES, TRAJECTORY_TYPE, Stream, Streams

# Of two publishers on one topic: how far their numbers are apart at least, messages of one in a row at most,
# and how often, of all messages, it must happen; a sensor that errs now and then is no second publisher.
_STEP, _TURN, _TURNS, _FEWEST_TURNS, _LOOKED_AT = 0.02, 10, 0.02, 4, 500
SILENCE_S = 60.0  # neither state nor command for longer: the recording was broken off, or its clock jumped
NOWHERE = (-1, -1, -1, -1)  # place of a message that is in no bag


@dataclass(frozen=True)
class JointStream:
    """Rows of some joints: stamps_ns (M,) ascending, columns (K,) of the station's joints, values (M, K)
    float32, labels (M,) str."""

    stream: Stream
    stamps_ns: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ImageStream:
    """stamps_ns (M,) ascending; number (M,): which of the usable images in order of arrival; place (M, 4)."""

    stream: Stream
    stamps_ns: np.ndarray
    number: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class Collected:
    """Everything that was gathered. `notes`: what was lost or left out, a readable line each."""

    joints: dict[str, list[JointStream]]
    images: dict[str, ImageStream]
    modes: tuple[np.ndarray, list[tuple[int, str]]]
    stages: tuple[np.ndarray, list[str]]
    events: list[EpisodeEvent]
    notes: list[str]


class Collector:
    """Gathers messages. `streams`: resolved, each with its type. Not thread-safe."""

    def __init__(self, station: Station, streams: Streams):
        self.station, self.streams = station, streams
        self._roles = {
            role: [Series(stream, joint_reader(stream)) for stream in getattr(streams, role)]
            for role in ROLES
        }
        self._cameras = {
            camera: Series(stream, image_reader(stream.type), placed=True)
            for camera, stream in streams.images
        }
        mode, stage, event = streams.control_mode, streams.stage, streams.episode
        self._modes = Series(mode, known_reader(mode, topics.MODE_TYPE, read_mode), latched=True)
        self._stages = Series(stage, known_reader(stage, topics.TRUTH_TYPE, read_stage))
        self._events = Series(event, known_reader(event, topics.EPISODE_TYPE, read_event), latched=True)
        self._by_topic: dict[str, list[Series]] = {}
        for series in self._all():
            self._by_topic.setdefault(series.stream.topic, []).append(series)
        self.topics = tuple(self._by_topic)

    def _all(self) -> list[Series]:
        joints = [series for role in self._roles.values() for series in role]
        return [*joints, *self._cameras.values(), self._modes, self._stages, self._events]

    def add(
        self, topic: str, received_ns: int, data: memoryview, place: tuple[int, int, int, int] = NOWHERE
    ) -> None:
        """Take in one message, in order of arrival."""
        for series in self._by_topic[topic]:
            series.add(received_ns, data, place)

    def last_event(self) -> EpisodeEvent | None:
        """The newest episode event, as the live graph asks for it."""
        return self._events.items[-1] if self._events.items else None

    def collected(self) -> Collected:
        """Raises ContractError where the states' or commands' messages are none that can be used."""
        notes: list[str] = []
        for series in (*self._roles["state"], *self._roles["command"]):
            if series.first_reason is not None and not series.items:
                raise ContractError(f"{series.stream.topic}: {series.first_reason}")
        main, stretches = self._main_stretch(notes)
        joints: dict[str, list[JointStream]] = {}
        for role, all_series in self._roles.items():
            joints[role] = []
            for series in all_series:
                stamps, rows = self._settled(series, main, stretches, notes)
                found = _joint_streams(series, stamps, rows, self.station, notes)
                if series.stream.type == TRAJECTORY_TYPE and len(rows):
                    ends = [int(s.stamps_ns[-1]) for s in joints["state"] if len(s.stamps_ns)]
                    found = _ended(found, max([*ends, int(series.received[rows].max())]), notes)
                joints[role] += found
        images = {}
        for camera, series in self._cameras.items():
            stamps, rows = self._settled(series, main, stretches, notes)
            order = np.argsort(stamps, kind="stable")
            place = np.array([series.places[i] for i in rows[order]], dtype=np.int64).reshape(-1, 4)
            images[camera] = ImageStream(series.stream, stamps[order], rows[order], place)
            if not len(series.items):
                notes.append(f"no image of {camera} ({series.stream.topic})")
            senders = Counter(series.items[i] for i in rows)
            if len(senders) > 1:
                said = ", ".join(f"{name!r} {times} ×" for name, times in senders.most_common(3))
                notes.append(
                    f"images of {len(senders)} frame_ids on {series.stream.topic}, wanted one: {said}"
                )
        modes = self._ordered(self._modes, main, stretches, notes)
        stages = self._ordered(self._stages, main, stretches, notes)
        event_stamps, events = self._ordered(self._events, main, stretches, notes)
        events = [e._replace(stamp_ns=int(t)) for t, e in zip(event_stamps, events, strict=True)]
        if not stages[1]:  # no simulator that knows: as a person marked them
            marks = [event for event in events if event.stage]
            stages = (np.array([e.stamp_ns for e in marks], dtype=np.int64), [e.stage for e in marks])
        collected = Collected(joints, images, modes, stages, events, notes)
        return collected if events else _longest_unbroken(collected)  # else attempts are cut by events

    def _main_stretch(self, notes: list[str]) -> tuple[int, int]:
        """Where the clock of the commands, or else of the states, jumped back: the stretch of most messages
        without a jump is the episode → (its number, of how many)."""
        for series in (*self._roles["command"], *self._roles["state"]):
            _, stretch, _, count = series.settle()
            if count > 1:
                received = series.received  # stamps may be damaged, and tell no stretch's length
                parts = [received[stretch == k] for k in range(count)]
                lengths = [np.ptp(part) for part in parts]
                main = max(range(count), key=lambda k: (len(parts[k]), lengths[k]))
                notes.append(
                    f"the clock of {series.stream.topic} jumps back {count - 1} times: only the longest of "
                    f"{count} stretches is used, {lengths[main] * 1e-9:.1f} of {sum(lengths) * 1e-9:.1f} s"
                )
                return main, count
        return 0, 1

    def _settled(
        self, series: Series, main: int, stretches: int, notes: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(stamps, rows) of the messages that count, in order of arrival."""
        stamps, stretch, said, count = series.settle()
        notes += said
        if count == stretches:
            rows = np.flatnonzero(stretch == main)
        elif count == 1:
            rows = np.flatnonzero(stretch >= 0)
        else:  # its own clock jumped where the robot's did not, or otherwise
            received = series.received
            rows = np.flatnonzero(stretch >= 0)
            steady = not np.any(np.diff(received[rows]) < -JUMP_S * 1e9)
            if steady and stretches == 1:
                notes.append(f"the clock of {series.stream.topic} jumps back: its times of receipt are used")
                return received[rows], rows
            lengths = [np.count_nonzero(stretch == k) for k in range(count)]
            rows = np.flatnonzero(stretch == int(np.argmax(lengths)))
            left_out = len(stretch) - len(rows)
            notes.append(f"the clock of {series.stream.topic} jumps back: {left_out} left out")
        return stamps[rows], rows

    def _ordered(self, series: Series, main: int, stretches: int, notes: list[str]) -> Any:
        stamps, rows = self._settled(series, main, stretches, notes)
        order = np.argsort(stamps, kind="stable")
        return stamps[order], [series.items[i] for i in rows[order]]


def _joint_streams(
    series: Series, stamps: np.ndarray, rows: np.ndarray, station: Station, notes: list[str]
) -> list[JointStream]:
    """One stream for each set of joints that messages of a topic carry: drivers of two arms may share one.

    Raises ContractError where no message names joints that the cell has.
    """
    layouts: dict[tuple[str, ...], list[int]] = {}
    items = series.items
    for i, row in enumerate(rows.tolist()):
        layouts.setdefault(items[row].names, []).append(i)
    groups: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    reason: ContractError | None = None
    wrong = 0
    topic = series.stream.topic
    for names, of_layout in layouts.items():
        at = np.array(of_layout)
        try:
            chosen, columns = _columns(names, series.stream, station)
            width = len(names) if names else len(columns)
            whole = [items[rows[i]].values for i in of_layout]
            fits = np.array([len(one) == 8 * width for one in whole], dtype=bool)
            if not fits.all():
                found = len(whole[int(np.argmin(fits))]) // 8
                if not fits.any():
                    raise ContractError(f"{topic}: {found} numbers, wanted {width}")
                short = np.count_nonzero(~fits)
                notes.append(f"{short} × another number of joints on {topic} (first {found}, wanted {width})")
                at, whole = at[fits], [one for one, fit in zip(whole, fits, strict=True) if fit]
        except ContractError as error:
            reason = reason or error
            wrong += len(of_layout)
            continue
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and left out
            values = np.frombuffer(b"".join(whole), "<f8").reshape(-1, width)[:, chosen].astype(np.float32)
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            notes.append(f"{np.count_nonzero(~finite)} × a number that is not finite on {topic}")
        groups.setdefault(tuple(columns), []).append((stamps[at][finite], values[finite], at[finite]))
    if reason is not None:
        if not groups:
            raise reason
        notes.append(f"{wrong} × other joints than the cell's on {topic} ({reason})")
    found_streams = []
    for carried, parts in groups.items():
        times = np.concatenate([part[0] for part in parts])
        values = np.concatenate([part[1] for part in parts])
        members = np.concatenate([part[2] for part in parts])
        labels = np.array([items[rows[i]].label for i in members], dtype=object)
        order = np.lexsort((members, times))  # order of arrival decides between equal stamps
        times, values, labels, members = times[order], values[order], labels[order], members[order]
        if series.stream.type == TRAJECTORY_TYPE:  # up to a later one's begin
            kept = members >= np.maximum.accumulate(members)
            times, values, labels = times[kept], values[kept], labels[kept]
        if _takes_turns(values):
            notes.append(f"two publishers take turns on {topic}")
        found_streams.append(JointStream(series.stream, times, np.array(carried), values, labels))
    return found_streams


def _ended(streams: list[JointStream], end_ns: int, notes: list[str]) -> list[JointStream]:
    """Trajectories without the points after `end_ns`, of the last state or the last trajectory's receipt:
    nobody knows whether they came to be commanded."""
    ended = []
    for stream in streams:
        kept = stream.stamps_ns <= end_ns
        if not kept.all():
            late = np.count_nonzero(~kept)
            notes.append(f"{late} × a trajectory's point after the last state on {stream.stream.topic}")
        ended.append(_of(stream, kept))
    return ended


def _of(stream: JointStream, kept: np.ndarray) -> JointStream:
    stamps, values, labels = stream.stamps_ns[kept], stream.values[kept], stream.labels[kept]
    return replace(stream, stamps_ns=stamps, values=values, labels=labels)


def _longest_unbroken(collected: Collected) -> Collected:
    """Where there is neither state nor command for longer than SILENCE_S: the stretch without such a silence
    that has most of both. Set points that are sent now and then while states go on are no silence."""
    states, commands = (
        np.sort(np.concatenate([np.zeros(0, np.int64), *(s.stamps_ns for s in collected.joints[role])]))
        for role in ("state", "command")
    )
    silences = []
    for k in np.flatnonzero(np.diff(commands) > SILENCE_S * 1e9).tolist():
        first, last = np.searchsorted(states, commands[k : k + 2])
        times = np.concatenate([commands[k : k + 1], states[first:last], commands[k + 1 : k + 2]])
        widest = int(np.argmax(np.diff(times)))
        if times[widest + 1] - times[widest] > SILENCE_S * 1e9:
            silences.append((int(times[widest]), int(times[widest + 1])))
    if not silences:
        return collected
    middles = np.array([(begin + end) // 2 for begin, end in silences])
    count = len(silences) + 1
    of_states, of_commands = np.searchsorted(middles, states), np.searchsorted(middles, commands)
    parts = [commands[of_commands == k] for k in range(count)]
    fewest = [min(len(part), np.count_nonzero(of_states == k)) for k, part in enumerate(parts)]
    lengths = [np.ptp(part) * 1e-9 for part in parts]
    main = max(range(count), key=lambda k: (fewest[k], lengths[k]))

    def within(stamps: np.ndarray) -> np.ndarray:
        return np.searchsorted(middles, stamps) == main

    joints = {
        role: [_of(stream, kept) for stream in streams if (kept := within(stream.stamps_ns)).any()]
        for role, streams in collected.joints.items()
    }
    images = {}
    for camera, image in collected.images.items():
        kept = within(image.stamps_ns)
        images[camera] = ImageStream(
            image.stream, image.stamps_ns[kept], image.number[kept], image.place[kept]
        )
    longest = max(end - begin for begin, end in silences) * 1e-9
    silent = f"{longest / 3600:.1f} h" if longest >= 3600 else f"{longest:.0f} s"
    note = (
        f"neither state nor command for {silent}: only the longest of {count} stretches is used, "
        f"{lengths[main]:.1f} of {sum(lengths):.1f} s"
    )
    return replace(collected, joints=joints, images=images, notes=[*collected.notes, note])


def _columns(names: tuple[str, ...], stream: Stream, station: Station) -> tuple[list[int], list[int]]:
    """Which numbers of a message are taken, and which of the station's joints they are, in its order."""
    if not names:
        names = stream.joints or station.joint_names
    elif stream.joints:
        missing = [name for name in stream.joints if name not in names]
        if missing:
            raise ContractError(f"{stream.topic}: joint {missing[0]!r} is missing")
    wanted = [name for name in names if name in stream.joints] if stream.joints else list(names)
    if len(set(wanted)) != len(wanted):
        raise ContractError(f"{stream.topic}: a joint is named twice in {list(names)}")
    ordered = sorted(wanted, key=station.column)
    return [names.index(name) for name in ordered], [station.column(name) for name in ordered]


def _takes_turns(values: np.ndarray) -> bool:
    """Whether somebody else speaks in between, at whatever rate: time and again the numbers (M, K) jump, stay
    where they are for up to `_TURN` messages, and jump back to where they were."""
    jumps = np.flatnonzero(np.abs(np.diff(values, axis=0)).max(axis=1) > _STEP)
    jumps = jumps[jumps + _TURN < len(values)]
    if len(jumps) < _FEWEST_TURNS:
        return False
    some = jumps[np.linspace(0, len(jumps) - 1, min(len(jumps), _LOOKED_AT)).astype(int)]
    window = values[some[:, None] + np.arange(_TURN + 1)]  # (J, turn + 1, K)
    far = np.abs(window[:, 1] - window[:, 0]).max(axis=1)[:, None]
    back = np.abs(window[:, 2:] - window[:, :1]).max(axis=2) < far / 5
    stayed = np.maximum.accumulate(np.abs(window[:, 1:-1] - window[:, 1:2]).max(axis=2), axis=1) < far / 2
    undone = (back & stayed).any(axis=1)
    share = undone.mean() * len(jumps) / (len(values) - 1)
    return bool(undone.sum() >= _FEWEST_TURNS and share > _TURNS)
