"""What was heard of a cell, and how it stands by that: pure; the caller passes a steady clock's seconds.

`./recap operate` in a terminal and the console in a browser show the same board.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from recap_station import topics
from recap_teleop.episode import RELABEL_S, Outcome, Phase
from recap_teleop.modes import Mode
from recap_teleop.snapshot import (
    Alarm,
    EpisodeSeen,
    Line,
    ModeSeen,
    NodeSeen,
    PolicySeen,
    RecorderSeen,
    Snapshot,
    Stream,
)

WINDOW_S = 2.0  # rates are of this long
SILENT_S = 0.5  # a stream that should flow and was not heard for this long is silent
MODE_SILENT_S = 1.5  # the arbiter repeats control_mode twice a second
NODE_SILENT_S = 5.0  # every node speaks in /diagnostics once a second

SAME_S = 0.5  # lines of one message of /diagnostics are heard within this

# The streams that may command, in the order shown: name, topic.
SOURCES = (("policy", topics.POLICY_COMMAND), ("teleop", topics.TELEOP_COMMAND), ("pedal", topics.JOY))


class Meter:
    """Arrivals of one topic."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque()
        self.last_s: float | None = None

    def heard(self, now_s: float) -> None:
        self._arrivals.append(now_s)
        self.last_s = now_s
        self._forget(now_s)

    def rate_hz(self, now_s: float) -> float:
        self._forget(now_s)
        if len(self._arrivals) < 2 or self.last_s is None:
            return 0.0
        span = max(self.last_s - self._arrivals[0], 1e-3)
        measured = (len(self._arrivals) - 1) / span
        idle = now_s - self.last_s
        return measured if idle < SILENT_S else 0.0

    def age_s(self, now_s: float) -> float | None:
        return None if self.last_s is None else max(0.0, now_s - self.last_s)

    def _forget(self, now_s: float) -> None:
        while self._arrivals and now_s - self._arrivals[0] > WINDOW_S:
            self._arrivals.popleft()


@dataclass
class _Status:
    level: int
    text: str
    values: Mapping[str, str]
    heard_s: float


@dataclass
class _Corrections:
    count: int = 0
    done_s: float = 0.0
    since_s: float | None = None
    whole: bool = True


@dataclass
class Board:
    """Takes in what is heard; `snapshot(now)` says how things stand.

    `wanted` maps the topics to watch, besides those of SOURCES, to their rates [Hz; 0: unknown].
    """

    domain: str
    namespace: str
    wanted: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.meters: dict[str, Meter] = {}
        self.answer = ""
        self.answer_good: bool | None = True
        self._handed_back = False
        self._mode: tuple[str, str, str] | None = None
        self._mode_since_s = self._mode_heard_s = 0.0
        self._mode_begun = False
        self._episode: dict[str, Any] = {}
        self._episode_said_s = self._ended_s = 0.0
        self._corrections = _Corrections()
        self._pressed = False
        self._value: tuple[float, float] | None = None
        self._statuses: dict[str, _Status] = {}
        self._nodes: dict[str, float] = {}

    # --- what comes in ------------------------------------------------------------------------------

    def heard(self, topic: str, now_s: float) -> None:
        self.meters.setdefault(topic, Meter()).heard(now_s)

    def joy(self, pressed: bool, now_s: float) -> None:
        self._pressed = pressed
        self.heard(topics.JOY, now_s)

    def mode(self, mode: int, source: str, reason: str, now_s: float) -> None:
        seen = (_called(Mode, mode), source, reason)
        before, self._mode, self._mode_heard_s = self._mode, seen, now_s
        self._handed_back &= before == seen
        if before is None or before[0] != seen[0]:
            self._mode_since_s, self._mode_begun = now_s, before is not None
            self._correcting(seen[0] == Mode.TELEOP.name, now_s)

    def episode(self, now_s: float, age_s: float, **fields: Any) -> None:
        """Fields of recap_interfaces/Episode, state and outcome as numbers. It is latched: `age_s` is how
        long ago it was said, which for the first one heard may be long."""
        before = self._episode
        same = fields["id"] == before.get("id") and fields["state"] == before.get("state")
        self._episode, self._episode_said_s = fields, now_s - age_s
        if before.get("state") == Phase.RUNNING != fields["state"]:
            self._handed_back = True  # with the attempt ends what a person wanted of it
        if not same:  # another outcome of an ended one does not end it anew
            self._ended_s = now_s - age_s
        if fields["id"] != before.get("id"):
            whole = bool(before) or fields["state"] != Phase.RUNNING or age_s < 1.0
            self._corrections = _Corrections(whole=whole)
        teleop = self._mode is not None and self._mode[0] == Mode.TELEOP.name
        self._correcting(teleop, now_s)

    def value(self, value: float, now_s: float) -> None:
        self._value = (value, now_s)

    def status(self, name: str, level: int, text: str, values: Mapping[str, str], now_s: float) -> None:
        """One line of /diagnostics, "<namespace>/<node>: <line>"; those of other cells are passed over."""
        cell = _node(name).rpartition("/")[0]
        if cell != self.namespace.strip("/"):
            return
        self._statuses[name] = _Status(level, text, values, now_s)
        self._nodes[_node(name)] = now_s

    def asked(self, service: str) -> None:
        """A service was called. A hold stays a hold at hand-back: only who asked knows that it was."""
        self._handed_back = service == "hand_back"

    def said(self, text: str, good: bool | None = True) -> None:
        self.answer, self.answer_good = text, good

    @property
    def complete(self) -> bool:
        """Whether an arbiter was heard."""
        return self._mode is not None

    # --- how things stand ---------------------------------------------------------------------------

    def snapshot(self, now_s: float) -> Snapshot:
        return Snapshot(
            domain=self.domain,
            namespace=self.namespace,
            mode=self._mode_seen(now_s),
            sources=tuple(self._source(name, topic, now_s) for name, topic in SOURCES),
            topics=tuple(self._stream(_short(topic), topic, hz, now_s) for topic, hz in self.wanted.items()),
            episode=self._episode_seen(now_s),
            recorder=self._recorder(now_s),
            policy=self._policy(now_s),
            alarms=self._alarms(now_s),
            nodes=tuple(sorted(self._nodes)),
            answer=self.answer,
            answer_good=self.answer_good,
            handed_back=self._handed_back,
        )

    def nodes_seen(self, now_s: float) -> tuple[NodeSeen, ...]:
        """Every node heard of in /diagnostics, with the lines of its latest message."""
        seen = []
        for node, heard_s in sorted(self._nodes.items()):
            lines = tuple(
                Line(name.partition(": ")[2], status.level, status.text, status.values)
                for name, status in self._statuses.items()
                if _node(name) == node and heard_s - status.heard_s < SAME_S
            )
            seen.append(NodeSeen(node, now_s - heard_s, now_s - heard_s <= NODE_SILENT_S, lines))
        return tuple(seen)

    def _mode_seen(self, now_s: float) -> ModeSeen:
        if self._mode is None:
            return ModeSeen()
        live = now_s - self._mode_heard_s <= MODE_SILENT_S
        return ModeSeen(*self._mode, max(0.0, now_s - self._mode_since_s), self._mode_begun, live)

    def _stream(self, name: str, topic: str, wanted_hz: float, now_s: float, note: str = "") -> Stream:
        meter = self.meters.get(topic, Meter())
        age = meter.age_s(now_s)
        live = age is not None and age <= SILENT_S
        return Stream(name, topic, meter.rate_hz(now_s), wanted_hz, age, live, note)

    def _source(self, name: str, topic: str, now_s: float) -> Stream:
        stream = self._stream(name, topic, 0.0, now_s)
        if name == "pedal" and stream.live:
            return self._stream(name, topic, 0.0, now_s, "pressed" if self._pressed else "up")
        if self._mode is not None and self._mode[1] == name:
            return self._stream(name, topic, 0.0, now_s, "commands")
        return stream

    def _episode_seen(self, now_s: float) -> EpisodeSeen:
        fields = self._episode
        if not fields:
            return EpisodeSeen()
        since = now_s - self._episode_said_s
        running, ended = fields["state"] == Phase.RUNNING, fields["state"] == Phase.ENDED
        counted = self._corrections
        going = 0.0 if counted.since_s is None else now_s - counted.since_s
        return EpisodeSeen(
            id=fields["id"],
            state=_called(Phase, fields["state"]),
            outcome=_called(Outcome, fields["outcome"]) if ended else "",
            reason=fields["reason"],
            task=fields["task"],
            seed=fields["seed"],
            elapsed_s=fields["elapsed_s"] + (since if running else 0.0),
            limit_s=fields["time_limit_s"],
            stage=fields.get("stage", ""),
            message=fields.get("message", ""),
            relabel_s=max(0.0, RELABEL_S - (now_s - self._ended_s)) if ended else 0.0,
            corrections=counted.count,
            corrected_s=counted.done_s + going,
            whole=counted.whole,
        )

    def _correcting(self, teleop: bool, now_s: float) -> None:
        """A correction is a stretch of TELEOP inside a running episode."""
        correcting = teleop and self._episode.get("state") == Phase.RUNNING
        counted = self._corrections
        if correcting and counted.since_s is None:
            counted.count, counted.since_s = counted.count + 1, now_s
        elif not correcting and counted.since_s is not None:
            counted.done_s, counted.since_s = counted.done_s + now_s - counted.since_s, None

    def _recorder(self, now_s: float) -> RecorderSeen | None:
        status = self._line("recorder", "bag", now_s)
        if status is None:
            return None
        values = status.values
        bag = values.get("bag", values.get("path", ""))
        return RecorderSeen(status.text, bag, _number(values, "dropped"), _number(values, "queued"))

    def _policy(self, now_s: float) -> PolicySeen | None:
        status = self._line("policy", "checkpoint", now_s)
        fresh = self._value is not None and now_s - self._value[1] <= NODE_SILENT_S
        value = self._value[0] if fresh and self._value else None
        if status is None:
            return None if value is None else PolicySeen(value=value)
        latency = float(status.values.get("latency_p50_ms", 0.0)) or None
        return PolicySeen(status.text, status.values.get("checkpoint", ""), latency, value)

    def _line(self, node: str, line: str, now_s: float) -> _Status | None:
        """The newest line of that name, unless it is old."""
        wanted = f"{self.namespace.strip('/')}/{node}".lstrip("/") + f": {line}"
        status = self._statuses.get(wanted)
        return status if status is not None and now_s - status.heard_s <= NODE_SILENT_S else None

    def _alarms(self, now_s: float) -> tuple[Alarm, ...]:
        alarms = []
        for name, status in self._statuses.items():
            # A line that its node's latest message left out is over.
            if status.level and self._nodes[_node(name)] - status.heard_s < SAME_S:
                alarms.append(Alarm("warn" if status.level == 1 else "error", name, status.text))
        silent = [node for node, heard_s in self._nodes.items() if now_s - heard_s > NODE_SILENT_S]
        alarms = [alarm for alarm in alarms if _node(alarm.name) not in silent]
        for node in silent:
            alarms.append(Alarm("error", node, f"silent for {now_s - self._nodes[node]:.0f} s"))
        return tuple(sorted(alarms, key=lambda alarm: (alarm.level != "error", alarm.name)))


def wanted_topics(control_hz: float, cameras: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The topics to watch besides SOURCES → rates [Hz]; cameras: (name, rate)."""
    wanted = {topics.JOINT_STATES: control_hz, topics.JOINT_COMMAND: control_hz}
    wanted.update({topics.image_topic(name): rate for name, rate in cameras})
    return wanted


def _short(topic: str) -> str:
    """A camera's topic by its camera's name."""
    return topic.removesuffix("/image_raw/compressed")


def _called(kind: type[IntEnum], number: int) -> str:
    """An enumeration's name for a number that came in a message, perhaps of a newer version."""
    return kind(number).name if number in list(kind) else f"{kind.__name__} {number}"


def _node(name: str) -> str:
    return name.partition(":")[0]


def _number(values: Mapping[str, str], name: str) -> int:
    try:
        return int(float(values.get(name, 0)))
    except ValueError:
        return 0
