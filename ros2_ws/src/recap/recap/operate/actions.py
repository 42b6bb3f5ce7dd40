"""Keys → what is asked of the cell: pure; the caller passes a steady clock's seconds and calls services."""

from __future__ import annotations

from dataclasses import dataclass

from recap_teleop.keys import ACTIONS, KEYS
from recap_teleop.modes import Mode
from recap_teleop.requests import Request
from recap_teleop.snapshot import Snapshot

# A terminal repeats a key that is held down, at first after as much as 0.66 s. A space bar that is held must
# not hand back what its press has taken.
REPEAT_S = 0.75
CONFIRM_S = 5.0
QUIT = "q"
CONFIRM = "y"


@dataclass(frozen=True)
class Told:
    """A line for the person instead of a call."""

    text: str
    good: bool = True


class Hands:
    """The keys of `recap_teleop.keys`, with a space bar that goes both ways, and two keys to release an
    emergency stop."""

    def __init__(self) -> None:
        self._space_s = -1e9
        self._asked_s = -1e9

    def press(self, key: str, now: Snapshot, now_s: float) -> Request | Told | None:
        """→ what to do about a key; None where it means nothing."""
        asked, self._asked_s = now_s - self._asked_s <= CONFIRM_S, -1e9
        if key == CONFIRM and asked:
            return Request("release_estop", "release the emergency stop")
        name = KEYS.get(key)
        if name is None:
            return None
        if name == "takeover":
            return self._space(now, now_s)
        if name == "resume" and now.mode.name == Mode.ESTOP.name:
            self._asked_s = now_s
            return Told(f"release the emergency stop? y within {CONFIRM_S:.0f} s does, into a stop")
        action = ACTIONS[name]
        return Request(action.service, action.text, action.outcome)

    def _space(self, now: Snapshot, now_s: float) -> Request | None:
        repeated = now_s - self._space_s <= REPEAT_S
        self._space_s = now_s
        if repeated:
            return None
        if now.person_wanted:
            return Request("hand_back", "hand back")
        return Request("take_over", "take over")


def legend(now: Snapshot) -> list[tuple[str, str]]:
    """Keys and what they do at this moment."""
    keys = [
        ("space", "hand back" if now.person_wanted else "take over"),
        ("s", "success"),
        ("f", "failure"),
        ("d", "discard"),
        ("n", "next attempt"),
        ("u", "undo"),
        ("x", "stop"),
        ("r", "release" if now.mode.name == Mode.ESTOP.name else "resume"),
        ("e", "EMERGENCY STOP"),
    ]
    return [*keys, (QUIT, "quit")]
