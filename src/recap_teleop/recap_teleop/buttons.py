"""From the switches of a pedal, gamepad or joystick to what a person asks for; pure and clockless.

One literal map says which switch asks for what::

    takeover,success,failure           button 0, 1 and 2
    b5=takeover,a2<-0.5=success        button 5; axis 2 beyond -0.5, as a trigger is when pulled
    success,,b7=estop                  button 0 and button 7; nothing for button 1

The rules, so that no accident counts as a wish:

- an action is asked for once, on the way down, and never on the way up;
- down counts only if the switch was seen up before: not at the first message, and not after a silence,
  since nobody knows what happened in between;
- an opening shorter than `debounce_s` is a bouncing contact, and what follows is still the same press;
- takeover is a level, not an event: passed on at once while it is heard, and nothing at all otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from recap_station.contract import ContractError
from recap_teleop.keys import check_action

TAKEOVER = "takeover"
HYSTERESIS = 0.05  # an axis must come back so far below its threshold to be up
_NAMED = re.compile(r"(?P<kind>[ab])(?P<index>\d{1,3})(?:(?P<side>[<>])(?P<threshold>[-+]?\d*\.?\d+))?")


@dataclass(frozen=True)
class Switch:
    """Button `index`, or an axis taken as one: down above (`side` 1) or below (-1) its threshold."""

    index: int
    action: str
    side: int = 0  # 0: a button
    threshold: float = 0.0

    @property
    def place(self) -> str:
        return f"axis {self.index}" if self.side else f"button {self.index}"

    def is_down(self, buttons: Sequence[int], axes: Sequence[float], before: bool) -> bool:
        """Raises ContractError where the message has no such switch, or its axis is no number."""
        values: Sequence[float] = axes if self.side else buttons
        if self.index >= len(values):
            kind = "axes" if self.side else "buttons"
            raise ContractError(f"joy has {len(values)} {kind}, wanted {self.place} ({self.action})")
        if not self.side:
            return bool(values[self.index])
        value = float(values[self.index])
        if not math.isfinite(value):
            raise ContractError(f"joy has {value} on {self.place} ({self.action})")
        return self.side * (value - self.threshold) > (-HYSTERESIS if before else 0.0)


def read_map(text: str) -> tuple[Switch, ...]:
    """The map's text, see the module's, → its switches. Raises ContractError, naming the entry."""
    switches: list[Switch] = []
    for place, entry in enumerate(text.split(",")):
        where, separator, action = entry.strip().rpartition("=")
        if not action:
            if separator:
                raise ContractError(f"actions: {entry.strip()!r} names no action")
            continue
        check_action(action)
        if not separator:
            switches.append(Switch(place, action))
            continue
        named = _NAMED.fullmatch(where)
        if named is None or (named["kind"] == "a") != (named["side"] is not None):
            raise ContractError(f"actions: {where!r}, wanted a button such as b3 or an axis such as a2>0.5")
        side = {None: 0, ">": 1, "<": -1}[named["side"]]
        switches.append(Switch(int(named["index"]), action, side, float(named["threshold"] or 0.0)))
    places = [(switch.index, switch.side) for switch in switches]
    for switch in switches:
        if places.count((switch.index, switch.side)) > 1:
            raise ContractError(f"actions: {switch.place} is given two actions")
    return tuple(switches)


@dataclass
class _Contact:
    down: bool | None = None  # None: not known
    opened_s: float = -math.inf  # since when it is up


class Buttons:
    """See the module's text. Times are seconds of one steady clock."""

    def __init__(self, switches: Sequence[Switch], debounce_s: float = 0.02, gap_s: float = 0.25):
        self.switches = tuple(switches)
        self.debounce_s, self.gap_s = debounce_s, gap_s
        self.heard_s = -math.inf
        self._contacts = [_Contact() for _ in self.switches]

    @property
    def has_takeover(self) -> bool:
        return any(switch.action == TAKEOVER for switch in self.switches)

    @property
    def takeover(self) -> bool:
        """Whether a takeover switch is down, as last heard."""
        return TAKEOVER in self.down

    @property
    def down(self) -> list[str]:
        """Actions whose switches are down, as last heard."""
        return [s.action for s, c in zip(self.switches, self._contacts, strict=True) if c.down]

    def silent_s(self, now_s: float) -> float:
        return now_s - self.heard_s

    def lost(self) -> None:
        """The device is gone: whatever its switches did since is not known, and asks for nothing."""
        for contact in self._contacts:
            contact.down, contact.opened_s = None, -math.inf

    def hear(self, now_s: float, buttons: Sequence[int], axes: Sequence[float] = ()) -> list[str]:
        """The state of all switches. → actions asked for by this message, in the map's order.

        Raises ContractError where a switch of the map is not in the message; nothing has changed then.
        """
        contacts = zip(self.switches, self._contacts, strict=True)
        now_down = [switch.is_down(buttons, axes, bool(contact.down)) for switch, contact in contacts]
        if now_s - self.heard_s > self.gap_s:
            self.lost()
        self.heard_s = now_s
        asked = []
        for switch, contact, down in zip(self.switches, self._contacts, now_down, strict=True):
            if contact.down is False and down and now_s - contact.opened_s >= self.debounce_s:
                asked.append(switch.action)
            if not down and contact.down:
                contact.opened_s = now_s
            contact.down = down
        return [action for action in asked if action != TAKEOVER]
