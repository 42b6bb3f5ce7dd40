"""One bag per attempt, with everything in it that a learner needs to know later.

Used by the recorder node with what it hears, and by headless attempts with what they compute.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.contract import ContractError, Station

OUTCOMES = ("unknown", "success", "failure", "discarded")  # in the order of Episode.msg


class EpisodeRecorder:
    """Writes one bag after the other into `folder`, each named for its episode.

    start() → write() … → stop(). Raises ContractError on calls out of order, OSError on a full disk: call
    stop() then, it keeps what was written before.
    """

    def __init__(self, folder: Path | str, station: Station, namespace: str = ""):
        self.folder = Path(folder)
        self.station = station
        self.namespace = namespace
        self.topics = topics.recorded_topics(station)
        self._bag: BagWriter | None = None

    @property
    def path(self) -> Path | None:
        """The bag being written."""
        return self._bag.path if self._bag else None

    def start(self, metadata: Mapping[str, str]) -> Path:
        """Open a bag. `metadata` holds at least recap.episode; station, version, outcome are filled in.

        An episode that has a bag already (its recorder was killed and came back) gets a second one beside
        it, `<episode>_part2`. → the bag's folder.
        """
        if self._bag:
            raise ContractError(f"bag {self._bag.path} is still open")
        name = metadata["recap.episode"]
        path, part = self.folder / name, 1
        while path.exists():
            part += 1
            path = self.folder / f"{name}_part{part}"
        self._bag = BagWriter(path, self.topics, topics.LATCHED, self.namespace)
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


def software_version() -> str:
    """Version of this software, as every bag carries it."""
    try:
        return version("recap_station")
    except PackageNotFoundError:  # run from source, without an installation
        return "source"
