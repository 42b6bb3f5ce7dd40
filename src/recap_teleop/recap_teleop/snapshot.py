"""How a cell stands at one moment, part by part, and the one thing a person should know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recap_teleop.episode import Phase
from recap_teleop.modes import Event, Mode


@dataclass(frozen=True)
class Stream:
    """One topic. `age_s` is None where it was never heard; `wanted_hz` 0 where nobody says."""

    name: str
    topic: str
    rate_hz: float
    wanted_hz: float
    age_s: float | None
    live: bool
    note: str = ""


@dataclass(frozen=True)
class ModeSeen:
    """`name` is "" before an arbiter was heard, and `live` False once it is silent. `for_s` is how long the
    mode has lasted, at least: `begun` says whether its begin was seen."""

    name: str = ""
    source: str = ""
    reason: str = ""
    for_s: float = 0.0
    begun: bool = False
    live: bool = False


@dataclass(frozen=True)
class EpisodeSeen:
    """`relabel_s`: how long the outcome can still be put right. `corrections` and `corrected_s` are of the
    whole attempt, unless it was joined in the middle (`whole` False)."""

    id: str = ""
    state: str = ""
    outcome: str = ""
    reason: str = ""
    task: str = ""
    seed: int = -1
    elapsed_s: float = 0.0
    limit_s: float = 0.0
    stage: str = ""
    message: str = ""  # what a person is to do now
    relabel_s: float = 0.0
    corrections: int = 0
    corrected_s: float = 0.0
    whole: bool = True


@dataclass(frozen=True)
class RecorderSeen:
    """`text` and the rest as the recorder's line in /diagnostics has them; "" where none was heard."""

    text: str = ""
    bag: str = ""
    dropped: int = 0
    queued: int = 0


@dataclass(frozen=True)
class PolicySeen:
    """`value` is None where none is published."""

    text: str = ""
    checkpoint: str = ""
    latency_ms: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Alarm:
    """A line of /diagnostics that is not all right, or a node that fell silent."""

    level: str  # "warn" or "error"
    name: str
    text: str


@dataclass(frozen=True)
class Line:
    """One line of a node in /diagnostics; level 0 all right, 1 warning, 2 error, 3 stale."""

    name: str
    level: int
    text: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class NodeSeen:
    """A node as /diagnostics tells of it; `age_s` since it last spoke."""

    name: str
    age_s: float
    live: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Snapshot:
    """Everything the view shows, at one moment."""

    domain: str
    namespace: str
    mode: ModeSeen = ModeSeen()
    sources: tuple[Stream, ...] = ()
    topics: tuple[Stream, ...] = ()
    episode: EpisodeSeen = EpisodeSeen()
    recorder: RecorderSeen | None = None
    policy: PolicySeen | None = None
    alarms: tuple[Alarm, ...] = ()
    nodes: tuple[str, ...] = ()  # heard of in /diagnostics
    answer: str = ""
    answer_good: bool | None = True  # None while it is waited for
    handed_back: bool = False  # asked for since the mode last changed

    @property
    def teleop_alive(self) -> bool:
        return any(source.live for source in self.sources if source.name == "teleop")

    @property
    def person_wanted(self) -> bool:
        """Whether a person has taken over, even if the robot holds because nothing of theirs is heard."""
        mode = self.mode
        if mode.name == Mode.HANDOVER.name:
            return mode.source == "teleop" or mode.reason == Event.TAKE_OVER.value
        lost = mode.name == Mode.HOLD.name and mode.reason == Event.HUMAN_LOST.value
        return mode.name == Mode.TELEOP.name or (lost and not self.handed_back)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one level of plain values for each part."""
        return {**asdict(self), "teleop_alive": self.teleop_alive, "advice": advice(self)}


def advice(now: Snapshot) -> str:
    """The one thing a person should know at this moment; "" where all is as it should be."""
    mode = now.mode
    if not mode.name:
        return "no arbiter was heard: nobody commands the robot"
    if not mode.live:
        return "the arbiter is silent: nobody commands the robot, and no key below does anything"
    if mode.name == Mode.ESTOP.name:
        return "emergency stop: r, then y releases it into a stop; r again goes on"
    if now.episode.message:
        return now.episode.message
    if not now.teleop_alive:
        if now.person_wanted:
            return "no teleop source is heard: the robot HOLDS until one is, or space hands back"
        return "no teleop source is heard: taking over would only HOLD the robot"
    if mode.name == Mode.HOLD.name and mode.reason == Event.STOP.value:
        return "stopped: r goes on, space takes over"
    if now.episode.state != Phase.RUNNING.name:
        return "no attempt is running: n starts one"
    return ""
