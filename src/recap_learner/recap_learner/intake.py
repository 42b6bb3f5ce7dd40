"""Finished attempts become episodes as they come: watch a folder of bags, in a process beside the robot.

    python -m recap_learner.intake --bags bags --store episodes

Prints the state of the data as a line of JSON, at first and whenever it changes. A bag that is being written
is left until it is closed; one that cannot be used is told once and does not stop the others.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recap_learner.background import say
from recap_learner.data.episodes import ConversionError, convert_bags, find_bags
from recap_learner.data.reading import bag_sources
from recap_learner.data.store import Store
from recap_learner.lesson import counted, trained
from recap_learner.watching import SETTLE_S, DataState, Seen, data_state, to_convert
from recap_station import storage

AT_ONCE = 4  # bags between two reports


@dataclass
class Intake:
    """bags: folder; store: of episodes; run: whose trainings tell what is new, or None; task: whose attempts
    count, "" all."""

    bags: Path
    store: Store
    run: Path | None = None
    task: str = ""
    rate_hz: float = 50.0
    settle_s: float = SETTLE_S
    done: dict[Path, str] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)

    def step(self) -> int:
        """Convert the next few bags → how many."""
        found = look(self.bags)
        for bag in self.problems.keys() - found.keys():
            del self.problems[bag]
        now = dict(list(to_convert(found, self.done, self.settle_s).items())[:AT_ONCE])
        for bag, version in now.items():
            self.problems.pop(bag, None)
            lines = convert_bags([bag], self.store.folder, unknown=True)[1]
            self.done[bag] = version
            if lines:
                self.problems[bag] = lines[0]
        return len(now)

    def state(self) -> DataState:
        attempts, lines = counted(self.store, self.task, self.rate_hz)
        return data_state(attempts, trained(self.run) if self.run else (), [*lines, *self.problems.values()])


def look(folder: Path) -> dict[Path, Seen]:
    """The bags in a folder; none where there is no folder yet."""
    try:
        bags = find_bags([folder])
    except ConversionError:
        return {}
    return {bag: seen(bag) for bag in bags}


def seen(bag: Path) -> Seen:
    """How a bag stands. Its recorder writes metadata.yaml last."""
    sources = bag_sources(bag)
    changed = max((s.stat().st_mtime for s in sources if s.is_file()), default=0.0)
    closed = bag.is_file() or (bag / "metadata.yaml").is_file()
    return Seen(storage.version(sources), closed, time.time() - changed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bags", type=Path, required=True, help="folder to watch")
    parser.add_argument("--store", type=Path, required=True, help="folder for the episodes")
    parser.add_argument("--run", type=Path, help="learning run whose trainings tell what is new")
    parser.add_argument("--task", default="", help="name of the task whose attempts count; none: all")
    parser.add_argument("--rate-hz", type=float, default=50.0, help="of the station's ticks")
    parser.add_argument("--every-s", type=float, default=2.0, help="between two looks")
    parser.add_argument("--settle-s", type=float, default=SETTLE_S, help="until a bag left open is taken")
    given = parser.parse_args(argv)
    given.store.mkdir(parents=True, exist_ok=True)
    intake = Intake(given.bags, Store(given.store), given.run, given.task, given.rate_hz, given.settle_s)
    last: object = None
    while True:
        try:
            taken = intake.step()
            now = intake.state().to_dict()
        except OSError as error:  # a full disk, a folder that is gone for a while
            taken, now = 0, {"error": f"{given.store}: {error}"}
        if now != last:
            say(now if "error" in now else {"data": now})
            last = now
        if not taken:
            time.sleep(given.every_s)


if __name__ == "__main__":
    sys.exit(main())
