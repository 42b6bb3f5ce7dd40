"""Episodes straight from the graph: the same collector and the same ticks as a bag's conversion.

Messages are kept for a moment while nothing runs, so that what arrives just before the event that begins an
attempt is not lost, and an attempt is finished a moment after its end, when all topics have been heard.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from recap_learner.data.attempts import command_span, cut, describe, to_episode
from recap_learner.data.collect import Collector
from recap_learner.data.episode_file import SUFFIX, EpisodeInfo, save_episode
from recap_station.contract import Station, Task
from recap_station.streams import Streams

BEFORE_S = 1.0  # what is kept while nothing runs
SETTLE_S = 1.0  # from the end of an attempt to its episode
RUNNING = 1  # recap_interfaces/msg/Episode


class Ingest:
    """Takes in messages and writes an episode file into `folder` at the end of each attempt.

    streams: resolved. Episodes have no bag: their `image_at` is −1. Not thread-safe.
    """

    def __init__(self, station: Station, streams: Streams, task: Task, folder: Path):
        self.station, self.streams, self.task, self.folder = station, streams, task, folder
        self._collector: Collector | None = None
        self._running = ""
        self._ended_s: float | None = None
        self._recent: deque[tuple[float, str, int, bytes]] = deque()

    def add(self, topic: str, received_ns: int, cdr: bytes, now_s: float) -> None:
        """One message; now_s on a steady clock."""
        if self._collector is None:
            self._recent.append((now_s, topic, received_ns, cdr))
            while self._recent and self._recent[0][0] < now_s - BEFORE_S:
                self._recent.popleft()
            if topic != self.streams.episode.topic:
                return
            collector = Collector(self.station, self.streams)
            for _, name, time_ns, data in self._recent:
                collector.add(name, time_ns, memoryview(data))
            event = collector.last_event()
            if event is None or event.state != RUNNING:
                return
            self._collector, self._running, self._ended_s = collector, event.id, None
            self._recent.clear()
            return
        self._collector.add(topic, received_ns, memoryview(cdr))
        if topic == self.streams.episode.topic and self._ended_s is None:
            event = self._collector.last_event()
            if event is not None and event.id == self._running and event.state != RUNNING:
                self._ended_s = now_s

    def step(self, now_s: float) -> Path | None:
        """Finish the attempt that has ended, if one has → its file. Raises ContractError or ConversionError
        where it gives no episode; the next one is taken in all the same."""
        if self._collector is None or self._ended_s is None or now_s < self._ended_s + SETTLE_S:
            return None
        collector, self._collector, self._ended_s = self._collector, None, None
        collected = collector.collected()
        attempts = cut(collected.events, *command_span(collected, self.station))
        attempt = attempts[-1]
        base = EpisodeInfo(
            id=self._running or "live",
            bag="",
            outcome="unknown",
            reason="",
            source="rollout",
            checkpoint="",
            seed=-1,
            task=self.task,
            station=self.station,
            damage="; ".join(collected.notes),
            streams=self.streams,
        )
        episode = to_episode(collected, attempt, self.station, describe(base, attempt, self.task, 0))
        path = self.folder / f"{base.id.replace('/', '_').lstrip('.') or 'live'}{SUFFIX}"
        save_episode(episode, path)
        return path
