"""Which of several browsers commands, and whether the one that has taken over is still there: pure.

One at a time holds control; the others watch. A free one goes to whoever asks or presses something first. A
held one is asked for: its holder gives or refuses it, and whoever does not answer in time, or is gone, gives.
Stop and emergency stop are nobody's: everybody may press them.

A browser answers each state that it is sent. While one that has taken over does, the console's node tells the
arbiter so; the arbiter stops the robot when it does not hear that any more, whatever has died.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

BEAT_S = 0.5  # a browser that has not answered for this long is not there
GONE_S = 3.0  # a holder that is gone for this long has given control up
ANSWER_S = 15.0  # a holder that does not answer who asks for control gives it
LET_GO_S = 1.0  # how long it is said that a takeover was let go
SETTLE_S = 0.7  # from a takeover's call until the mode must show it

FREE_FOR_ALL = frozenset({"stop", "estop"})


@dataclass(frozen=True)
class Holds:
    """What the node tells the arbiter: True until `until_s`, then nothing; False for a while from
    `let_go_s` on."""

    until_s: float = -math.inf
    let_go_s: float = -math.inf

    def say(self, now_s: float) -> bool | None:
        if now_s < self.until_s:
            return True
        return False if now_s - self.let_go_s < LET_GO_S else None


@dataclass
class _Person:
    name: str
    beat_s: float


@dataclass
class Control:
    """People are numbers, given by `join`."""

    beat_s: float = BEAT_S
    holder: int | None = None
    asker: int | None = None
    holds: Holds = field(default_factory=Holds)
    takeover: int | None = None  # who has taken over at the console
    lost: str = ""  # name of the one whose connection was lost in a takeover
    _people: dict[int, _Person] = field(default_factory=dict)
    _last: int = 0
    _asked_s: float = 0.0
    _took_s: float = 0.0

    def join(self, name: str, now_s: float) -> int:
        self._last += 1
        self._people[self._last] = _Person(name or f"operator {self._last}", now_s)
        return self._last

    def leave(self, who: int, now_s: float) -> None:
        """Its connection is closed. In a takeover nothing is said for it any more."""
        if who not in self._people:
            return
        if self.takeover == who:
            self._lose(self.name(who))
        del self._people[who]
        if self.asker == who:
            self.asker = None
        if self.holder == who:
            self.holder, self.asker = self.asker, None

    def rename(self, who: int, name: str) -> None:
        self._people[who].name = name

    def beat(self, who: int, now_s: float) -> None:
        """It has answered."""
        person = self._people[who]
        person.beat_s = now_s
        if self.takeover == who:
            self.holds = Holds(now_s + self.beat_s, self.holds.let_go_s)

    @property
    def count(self) -> int:
        return len(self._people)

    def name(self, who: int | None) -> str:
        return self._people[who].name if who in self._people else ""

    # --- who commands -------------------------------------------------------------------------------

    def ask(self, who: int, now_s: float) -> str:
        """Wants control → what came of it."""
        if self.holder in (None, who):
            self.holder, self.asker = who, None
            return "you are in control"
        if self.asker not in (None, who):
            return f"{self.name(self.asker)} has asked before you"
        if self.asker is None:
            self.asker, self._asked_s = who, now_s
        return f"{self.name(self.holder)} is asked; without an answer control is yours in {ANSWER_S:.0f} s"

    def answer(self, who: int, gives: bool) -> str:
        """The holder's answer to who asks; giving without being asked frees control."""
        if who != self.holder:
            return "you are not in control"
        asker, self.asker = self.asker, None
        if not gives:
            return f"{self.name(asker)} was refused"
        self.holder = asker
        return f"control was given to {self.name(asker) or 'whoever takes it'}"

    def refusal(self, who: int, action: str) -> str:
        """Why this one may not do that; "" where it may. Takes a control that is free."""
        if action in FREE_FOR_ALL:
            return ""
        if self.holder is None:
            self.holder = who
        return "" if self.holder == who else f"{self.name(self.holder)} is in control"

    # --- takeovers ----------------------------------------------------------------------------------

    def taking_over(self, who: int, now_s: float) -> None:
        """Before the arbiter is asked, so that it watches from the first moment."""
        self.takeover, self._took_s, self.lost = who, now_s, ""
        self.holds = Holds(now_s + self.beat_s)

    def acted(self) -> None:
        """Somebody has done something since a takeover was lost: it need not be said any more."""
        self.lost = ""

    def let_go(self, now_s: float) -> None:
        self.takeover, self.holds = None, Holds(let_go_s=now_s)

    def tick(self, now_s: float, person_wanted: bool) -> None:
        """person_wanted: whether the arbiter's mode says that a person has taken over."""
        if self.takeover is not None:
            if now_s >= self.holds.until_s:
                self._lose(self.name(self.takeover))
            elif not person_wanted and now_s - self._took_s > SETTLE_S:
                self.let_go(now_s)  # handed back elsewhere, stopped, or the attempt has ended
        holder = self._people.get(self.holder or 0)
        if holder is not None and now_s - holder.beat_s > GONE_S and self.asker is not None:
            self.holder, self.asker = self.asker, None
        # Whoever moves the arms keeps control, however long they do not answer.
        if self.asker is not None and now_s - self._asked_s > ANSWER_S and self.takeover is None:
            self.holder, self.asker = self.asker, None

    def _lose(self, name: str) -> None:
        self.takeover, self.holds, self.lost = None, Holds(), name

    def to_dict(self, now_s: float) -> dict[str, Any]:
        return {
            "holder": self.holder,
            "holder_name": self.name(self.holder),
            "holder_silent": self.holder in self._people
            and now_s - self._people[self.holder].beat_s > self.beat_s,
            "asker": self.asker,
            "asker_name": self.name(self.asker),
            "asked_left_s": max(0.0, ANSWER_S - (now_s - self._asked_s)) if self.asker else 0.0,
            "takeover": self.takeover,
            "lost": self.lost,
            "people": [{"id": who, "name": person.name} for who, person in self._people.items()],
        }
