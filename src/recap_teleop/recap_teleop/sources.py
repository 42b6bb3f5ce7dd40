"""Who may command, and what keeps them from it: one literal table of sources, and locks.

A source or lock never heard counts as silent. Times are seconds of one steady clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recap_station import topics
from recap_station.contract import ContractError
from recap_teleop.modes import Event


@dataclass(frozen=True)
class SourceRow:
    """`timeout` names the setting that holds it. The higher `priority` goes first where both claim the robot;
    a lock blocks the sources up to its own. `lost` and `back` are the events of its silence and return."""

    name: str
    topic: str
    timeout: str
    priority: int
    lost: Event
    back: Event


TELEOP, POLICY = "teleop", "policy"
SOURCES: tuple[SourceRow, ...] = (  # the highest priority first
    SourceRow(TELEOP, topics.TELEOP_COMMAND, "teleop_timeout_s", 20, Event.HUMAN_LOST, Event.TAKE_OVER),
    SourceRow(POLICY, topics.POLICY_COMMAND, "policy_timeout_s", 10, Event.POLICY_LOST, Event.POLICY_BACK),
)
PRIORITY = {row.name: row.priority for row in SOURCES}


class Source:
    """Last valid command of one source, and when it was received."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.positions: np.ndarray | None = None
        self.received_s = -np.inf
        self.rejected: Counter[str] = Counter()

    def hear(self, now_s: float, positions: np.ndarray, dof: int) -> bool:
        """→ False, counted by reason, where it is not `dof` finite numbers: such a command does not keep its
        source alive."""
        positions = np.array(positions, dtype=np.float64)
        if positions.shape != (dof,):
            self.rejected[f"shape {positions.shape}, wanted ({dof},)"] += 1
            return False
        if not np.isfinite(positions).all():
            self.rejected["not finite"] += 1
            return False
        self.positions, self.received_s = positions, now_s
        return True

    def live(self, now_s: float) -> bool:
        return now_s - self.received_s <= self.timeout_s

    def age_s(self, now_s: float) -> float:
        return now_s - self.received_s


LOCK_KINDS = ("std_msgs/msg/Bool", "sensor_msgs/msg/Joy")


@dataclass(frozen=True)
class LockRow:
    """One lock. Bool: true engages. Joy: any button that is down engages. Silence engages both.

    It blocks the sources with a priority up to its own: all of them by default, 10 the policy alone. With
    `latch` the robot stays stopped when the lock opens, until `resume`.
    """

    topic: str
    kind: str = LOCK_KINDS[0]
    timeout_s: float = 0.5
    priority: int = 255
    latch: bool = False


class Lock:
    """A lock as it was last heard."""

    def __init__(self, row: LockRow):
        self.row = row
        self.said_engaged = True
        self.received_s = -np.inf

    def hear(self, now_s: float, engaged: bool) -> None:
        self.said_engaged, self.received_s = engaged, now_s

    def silent(self, now_s: float) -> bool:
        return now_s - self.received_s > self.row.timeout_s

    def engaged(self, now_s: float) -> bool:
        return self.said_engaged or self.silent(now_s)

    def blocks(self, source: str, now_s: float) -> bool:
        return PRIORITY[source] <= self.row.priority and self.engaged(now_s)

    def why(self, now_s: float) -> str:
        return f"{self.row.topic} {'silent' if self.silent(now_s) else 'engaged'}"


def read_locks(words: Sequence[str]) -> tuple[LockRow, ...]:
    """Locks as a parameter gives them, each `topic [type=Bool|Joy] [timeout_s=0.5] [priority=255]
    [latch=true|false]`. Empty words are none. Raises ContractError, with the word, on any other."""
    rows: list[LockRow] = []
    for word in words:
        topic, *settings = word.split() or [""]
        if not topic:
            continue
        given: dict[str, object] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            try:
                match key:
                    case "type":
                        given["kind"] = next(kind for kind in LOCK_KINDS if kind.endswith(f"/{value}"))
                    case "timeout_s":
                        given[key] = float(value)
                        if not 0.0 < float(value) <= 60.0:
                            raise ValueError
                    case "priority":
                        given[key] = int(value)
                    case "latch":
                        given[key] = {"true": True, "false": False}[value.lower()]
                    case _:
                        raise ValueError
            except (ValueError, KeyError, StopIteration):
                raise ContractError(
                    f"lock {word!r}: found {setting!r}, wanted type=Bool or Joy, timeout_s=0..60, "
                    "priority=a whole number, or latch=true or false"
                ) from None
        if topic in [row.topic for row in rows]:
            raise ContractError(f"lock {topic!r} stands twice")
        rows.append(LockRow(topic, **given))  # type: ignore[arg-type]
    return tuple(rows)
