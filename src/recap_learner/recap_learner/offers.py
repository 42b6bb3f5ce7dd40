"""What became of a run's checkpoints, in `<run>/learner.jsonl`: a line an event, on disk before it counts.

    {"event": "asked", "bags": [...]}                          a training was begun
    {"event": "ended", "checkpoint": "...", "error": ""}       it has ended
    {"event": "judged", "checkpoint": "...", "reasons": []}    gates and evaluation; good without reasons
    {"event": "decided", "checkpoint": "...", "accept": true, "who": "...", "why": "..."}
    {"event": "offered", "checkpoint": "..."}                  the policy node was asked to load it
    {"event": "answered", "checkpoint": "...", "loaded": true, "message": "..."}

Every line has `when`. A learner that is started again reads them and goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG = "learner.jsonl"


@dataclass(frozen=True)
class Standing:
    """How things stand after some events. asked: the training under way, None where there is none; made: the
    last checkpoint that was trained; to_judge: one that was not judged yet; to_offer: judged good or
    accepted, and not yet offered; withheld, reasons: what waits for a person; offered, loaded: the last;
    before: loaded before that one."""

    asked: Mapping[str, Any] | None = None
    made: str = ""
    to_judge: str = ""
    to_offer: str = ""
    withheld: str = ""
    reasons: tuple[str, ...] = ()
    offered: str = ""
    loaded: str = ""
    before: str = ""
    error: str = ""
    judged: frozenset[str] = field(default_factory=frozenset)


def after(event: Mapping[str, Any], now: Standing) -> Standing:
    """The standing after one more event. Pure; an unknown event changes nothing."""
    checkpoint = str(event.get("checkpoint", ""))
    match event.get("event"):
        case "asked":
            return replace(now, asked=event, error="")
        case "ended":
            ended = replace(now, asked=None, to_judge=checkpoint, error=str(event.get("error", "")))
            return replace(ended, made=checkpoint or now.made)
        case "judged":
            reasons = tuple(event.get("reasons", ()))
            judged = replace(now, to_judge="", judged=now.judged | {checkpoint}, reasons=())
            if reasons:
                return replace(_not(checkpoint, judged), withheld=checkpoint, reasons=reasons)
            return replace(judged, withheld="", to_offer=checkpoint)
        case "decided":
            without = _not(checkpoint, now)
            return replace(without, to_offer=checkpoint) if event.get("accept") else without
        case "offered":
            return replace(now, to_offer="", offered=checkpoint)
        case "answered" if event.get("loaded") and checkpoint != now.loaded:
            return replace(now, loaded=checkpoint, before=now.loaded)
        case _:
            return now


def _not(checkpoint: str, now: Standing) -> Standing:
    """The checkpoint is neither to be offered nor withheld."""
    if now.to_offer == checkpoint:
        now = replace(now, to_offer="")
    return replace(now, withheld="", reasons=()) if now.withheld == checkpoint else now


def standing(events: Iterable[Mapping[str, Any]]) -> Standing:
    now = Standing()
    for event in events:
        now = after(event, now)
    return now


class Offers:
    """The log of one run. One process writes it."""

    def __init__(self, run: Path) -> None:
        self.path = run / LOG
        _mend(self.path)
        self.now = standing(read_events(self.path))

    def add(self, event: str, **about: Any) -> None:
        """Put an event on disk, and into the standing. Raises OSError where it cannot be written."""
        line = {"event": event, "when": datetime.now(UTC).isoformat(timespec="seconds"), **about}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.now = after(line, self.now)

    def decide(self, checkpoint: str, accept: bool, who: str, why: str) -> str:
        """A person's word → the checkpoint it is on. checkpoint: empty: the one that is withheld.

        Raises ValueError without a name or a reason, and on a checkpoint that was never judged.
        """
        if not who.strip() or not why.strip():
            raise ValueError(f"wanted who decides and why, found who {who!r}, why {why!r}")
        checkpoint = checkpoint or self.now.withheld
        if not checkpoint:
            raise ValueError("no checkpoint is withheld, and none was named")
        if checkpoint not in self.now.judged:
            known = ", ".join(sorted(self.now.judged)) or "none"
            raise ValueError(f"checkpoint {checkpoint!r}: wanted one that this run has judged ({known})")
        self.add("decided", checkpoint=checkpoint, accept=accept, who=who.strip(), why=why.strip())
        return checkpoint


def read_events(path: Path) -> list[dict[str, Any]]:
    """The log's events, without a last line that is being written. Raises ValueError on one that cannot be
    read."""
    if not path.is_file():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            events.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}: line {number} cannot be read; delete it") from None
    return events


def _mend(path: Path) -> None:
    """Take away a last line that a crash cut off."""
    if path.is_file():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)
