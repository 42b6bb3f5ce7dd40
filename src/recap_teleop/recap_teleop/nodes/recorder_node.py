"""The recorder in the graph: a bag from RUNNING to ENDED of every episode, in a process of its own."""

from __future__ import annotations

import json
import queue
import threading
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.serialization import deserialize_message
from recap_interfaces.msg import Episode
from recap_interfaces.srv import EndEpisode

from recap_station import topics
from recap_station.bags import amend_metadata
from recap_station.cdr import definition
from recap_station.contract import ContractError, load_task
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, message_type, run
from recap_station.nodes.process import one_line
from recap_teleop.recorder import OUTCOMES, EpisodeRecorder


class RecorderNode(RecapNode):
    NAME = "recorder"
    PARAMETERS = (
        Param("bag_dir", "bags", "folder that gets one bag per attempt"),
        Param("source", "rollout", "what the attempts are: rollout, demonstration, evaluation"),
        Param("queue_size", 4000, "messages that may wait for the disk; more are dropped", "", 10, 10**6),
    )

    def configure(self) -> None:
        folder = Path(self.param("bag_dir")).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self.recorder = EpisodeRecorder(folder, self.station, self.get_namespace())
        self._queue: queue.Queue[tuple[str, int, bytes]] = queue.Queue(self.param("queue_size"))
        self._episode: Episode | None = None  # the one being recorded
        self._last: tuple[str, Path] | None = None  # id and bag of the one recorded last
        self._dropped: Counter[str] = Counter()
        self._dropped_before = 0
        self._written = 0
        self._trouble = ""
        self._writer: threading.Thread | None = None
        self._latched: list[Any] = []
        for kind in self.recorder.topics.values():
            definition(kind)  # the first bag opens as fast as the later ones
        for topic, kind in self.recorder.topics.items():
            if topic not in topics.LATCHED:
                self._listen(topic, kind)
        self._end = self.create_client(EndEpisode, "end_episode")
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED, raw=True)
        self.create_timer(0.2, self._look_after_trouble)

    def shutdown(self) -> None:
        self._finish("unknown", "recorder was stopped")

    # --- hearing --------------------------------------------------------------------------------------

    def _listen(self, topic: str, kind: str) -> Any:
        profile = qos.for_topic(topic, recording=True)
        return self.create_subscription(
            message_type(kind), topic, partial(self._put, topic), profile, raw=True
        )

    def _put(self, topic: str, cdr: bytes) -> None:
        if self._episode is None:
            return
        try:
            self._queue.put_nowait((topic, self.now_ns(), cdr))
        except queue.Full:
            self._dropped[topic] += 1

    def _on_episode(self, cdr: bytes) -> None:
        episode = deserialize_message(cdr, Episode)
        if self._episode is not None and episode.id != self._episode.id:
            self._finish("unknown", f"episode {episode.id} began before this one had ended")
        if episode.state == Episode.RUNNING and self._episode is None:
            self._begin(episode)
            self._put(topics.EPISODE, cdr)
        elif episode.state == Episode.ENDED and self._episode is not None:
            self._put(topics.EPISODE, cdr)
            self._episode = episode
            self._finish(OUTCOMES[episode.outcome], episode.reason)
        elif episode.state == Episode.ENDED and self._last is not None and self._last[0] == episode.id:
            changed = {"recap.outcome": OUTCOMES[episode.outcome], "recap.reason": episode.reason}
            amend_metadata(self._last[1], changed)
            self.get_logger().info(f"now {OUTCOMES[episode.outcome]} ({episode.reason}): {self._last[1]}")

    # --- writing --------------------------------------------------------------------------------------

    def _begin(self, episode: Episode) -> None:
        self._dropped_before += sum(self._dropped.values())
        self._dropped.clear()
        self._trouble = ""
        try:
            task = self.task if episode.task in ("", self.task.name) else load_task(episode.task)
            path = self.recorder.start(
                {
                    "recap.episode": episode.id,
                    "recap.task": json.dumps(task.to_dict()),
                    "recap.checkpoint": episode.checkpoint,
                    "recap.seed": str(episode.seed),
                    "recap.source": self.param("source"),
                }
            )
        except (OSError, ContractError) as error:
            self._trouble = _told(error)
            self._end_unrecorded()
            return
        self._episode = episode
        self._writer = threading.Thread(target=self._write, name="bag writer", daemon=True)
        self._writer.start()
        # A new transient-local subscription gets the latched message again: every bag stands alone.
        latched = {topic: kind for topic, kind in self.recorder.topics.items() if topic in topics.LATCHED}
        self._latched = [self._listen(*item) for item in latched.items() if item[0] != topics.EPISODE]
        self.get_logger().info(f"recording {path}")

    def _write(self) -> None:
        """The writer's thread: takes messages until an empty name says that it was the last."""
        while (item := self._queue.get())[0]:
            if self._trouble:
                self._dropped[item[0]] += 1
                continue
            try:
                self.recorder.write(*item)
                self._written += 1
            except Exception as error:  # of any kind: the thread must live to take the last message
                self._trouble = _told(error)

    def _finish(self, outcome: str, reason: str) -> None:
        episode, self._episode = self._episode, None
        if episode is None or self._writer is None:
            return
        for subscription in self._latched:
            self.destroy_subscription(subscription)
        self._latched.clear()
        self._queue.put(("", 0, b""))
        self._writer.join()
        self._writer = None
        dropped = dict(self._dropped)
        extra = {"recap.dropped": json.dumps(dropped)}
        if episode.checkpoint:
            extra["recap.checkpoint"] = episode.checkpoint
        if self._trouble:
            extra["recap.trouble"] = self._trouble
        path = self.recorder.stop(outcome, reason, extra)
        self._last = (episode.id, path)
        lost = f", {sum(dropped.values())} messages dropped" if dropped else ""
        self.get_logger().info(f"closed {path}: {outcome} ({reason}){lost}")

    def _look_after_trouble(self) -> None:
        if self._trouble and self._episode is not None:
            self._finish("discarded", f"recorder: {self._trouble}")
            self._end_unrecorded()

    def _end_unrecorded(self) -> None:
        """What cannot be recorded, say for a full disk, ends the episode as discarded: an attempt that nobody
        can learn from must not go on. The bag keeps what was written before."""
        self.complain("bag", self._trouble)
        reason = f"recorder: {self._trouble}"
        self._end.call_async(EndEpisode.Request(outcome=EndEpisode.Request.DISCARDED, reason=reason))

    def diagnose(self) -> Iterable[Status]:
        dropped = sum(self._dropped.values()) + self._dropped_before
        values = {"queued": self._queue.qsize(), "written": self._written, "dropped": dropped}
        if self._trouble:
            yield Status("bag", ERROR, self._trouble, values)
        else:
            text = f"recording {self._episode.id}" if self._episode else "waiting for an episode"
            yield Status("bag", WARN if dropped else OK, text, values)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return one_line(error)


def main() -> None:
    run(RecorderNode)


if __name__ == "__main__":
    main()
