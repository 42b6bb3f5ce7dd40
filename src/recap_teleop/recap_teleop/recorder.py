"""One bag per attempt, with everything in it that a learner needs to know later.

Used by the recorder node with what it hears, and by headless attempts with what they compute.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recap_station import topics
from recap_station.bags import BagReader, BagWriter
from recap_station.contract import ContractError, Station

OUTCOMES = ("unknown", "success", "failure", "discarded")  # in the order of Episode.msg


class Numbers:
    """Which of a topic's messages never came, by the numbers that publishers give theirs, from 1 on.

    A message does not say whose it is: it is taken for that of the publisher whose last number is the nearest
    lower one, and what lies between is missing. One lower than all is a new publisher's, and what that said
    before it was heard is missing too; of the very first publisher nobody can tell. A second publisher that
    has spoken for long may so be taken for a loss, once.
    """

    KEPT = 4  # publishers of one topic, dead ones among them

    def __init__(self) -> None:
        self._heads: list[int] = []  # last number of each publisher, the one heard last at the end

    def missing_before(self, number: int) -> int:
        lower = [head for head in self._heads if head < number]
        missing = number - max(lower, default=0) - 1 if self._heads else 0
        if lower:
            self._heads.remove(max(lower))
        self._heads = [*(head for head in self._heads if head != number), number][-self.KEPT :]
        return missing


class Tail:
    """What was said before an episode ended and is read after that: on a busy machine the end, on a topic of
    few messages, is heard before streams that are read seconds late.

    Asked again and again whether it is in. Askings are counted instead of time, since between two of them
    every stream has its turn, also where the process did not run for a while.
    """

    QUIET = 4  # askings without a message from before the end; the arbiter's last word comes just after it
    PATIENCE_S = 10.0

    def __init__(self, ended_ns: int, now_s: float):
        self._ended_ns, self._give_up_s = ended_ns, now_s + self.PATIENCE_S
        self._quiet = 0

    def heard(self, sent_ns: int) -> None:
        """A message came that was sent at `sent_ns`, on the clock of the end."""
        if sent_ns <= self._ended_ns:
            self._quiet = 0

    def is_in(self, now_s: float) -> bool:
        self._quiet += 1
        return self._quiet >= self.QUIET or now_s >= self._give_up_s


class EpisodeRecorder:
    """Writes one bag after the other into `folder`, each named for its episode.

    start() → write() … → stop(). Raises ContractError on calls out of order, OSError on a full disk: call
    stop() then, it keeps what was written before. `split_s`, `split_mb`: a bag's file that is longer is
    followed by another in the same bag; 0: never.
    """

    def __init__(
        self,
        folder: Path | str,
        station: Station,
        namespace: str = "",
        split_s: float = 0.0,
        split_mb: float = 0.0,
    ):
        self.folder = Path(folder)
        self.station = station
        self.namespace = namespace
        self.topics = topics.recorded_topics(station)
        self.split_s, self.split_bytes = split_s, round(split_mb * 1e6)
        self.dropped: Counter[str] = Counter()  # in the parts of the open bag that others wrote
        self._bag: BagWriter | None = None

    @property
    def path(self) -> Path | None:
        """The bag being written."""
        return self._bag.path if self._bag else None

    def start(self, metadata: Mapping[str, str]) -> Path:
        """Open a bag. `metadata` holds at least recap.episode; station, version, outcome are filled in.

        An episode whose bag has no outcome yet (its recorder ended too early and came back) goes on in the
        next file of that bag, so that an attempt is one bag, with a gap. Any other folder of its name is left
        alone: the bag is `<episode>_part2` then. → the bag's folder.
        """
        if self._bag:
            raise ContractError(f"bag {self._bag.path} is still open")
        name = metadata["recap.episode"]
        path, part = self.folder / name, 1
        while path.exists() and not (before := _unfinished(path, name)):
            part += 1
            path = self.folder / f"{name}_part{part}"
        resume = path.exists()
        self._bag = BagWriter(
            path,
            self.topics,
            topics.LATCHED,
            self.namespace,
            split_s=self.split_s,
            split_bytes=self.split_bytes,
            resume=resume,
        )
        self.dropped = Counter()
        if resume:
            self.dropped.update(json.loads(before.get("recap.dropped", "{}")))
            times = int(before.get("recap.resumed", "0")) + 1
            metadata = {**metadata, "recap.resumed": str(times)}
        self._bag.set_metadata(
            {
                "recap.station": json.dumps(self.station.to_dict()),
                "recap.version": software_version(),
                "recap.outcome": "unknown",
                "recap.reason": "",
                **metadata,
            }
        )
        return path

    def note(self, metadata: Mapping[str, str]) -> None:
        """Put metadata into the bag now: it is there even if nobody comes to close it."""
        if self._bag is None:
            raise ContractError("no bag is open")
        self._bag.set_metadata(metadata)

    def write(self, topic: str, time_ns: int, cdr: bytes) -> None:
        """Append one message (CDR), received at `time_ns`."""
        if self._bag is None:
            raise ContractError("no bag is open")
        self._bag.write(topic, time_ns, cdr)

    def stop(self, outcome: str, reason: str, metadata: Mapping[str, str] | None = None) -> Path:
        """Close the bag with its outcome: success, failure, discarded or unknown. → the bag's folder."""
        if outcome not in OUTCOMES:
            raise ContractError(f"outcome is {outcome!r}, wanted one of {', '.join(OUTCOMES)}")
        if self._bag is None:
            raise ContractError("no bag is open")
        bag, self._bag = self._bag, None
        with contextlib.suppress(OSError):  # a full disk: metadata.yaml still gets it
            bag.set_metadata({**(metadata or {}), "recap.outcome": outcome, "recap.reason": reason})
        bag.close()
        return bag.path


def _unfinished(path: Path, episode: str) -> dict[str, str]:
    """Metadata of a bag of this episode that has no outcome; empty where it is none."""
    try:
        about = BagReader(path).metadata
    except ContractError:
        return {}
    mine = about.get("recap.episode") == episode and about.get("recap.outcome") == "unknown"
    return about if mine else {}


def software_version() -> str:
    """Version of this software, as every bag carries it."""
    try:
        return version("recap_station")
    except PackageNotFoundError:  # run from source, without an installation
        return "source"
