"""The recorder in the graph: a bag from RUNNING to ENDED of every episode, in a process of its own."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.serialization import deserialize_message
from rclpy.task import Future
from recap_interfaces.msg import Episode
from recap_interfaces.srv import EndEpisode

from recap_station import topics
from recap_station.bags import amend_metadata
from recap_station.cdr import definition
from recap_station.contract import ContractError, load_task
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, STEADY, WARN, Param, RecapNode, Status, message_type, run
from recap_station.nodes.process import one_line
from recap_teleop.recorder import OUTCOMES, EpisodeRecorder, Numbers, Tail

KEPT = 10  # messages of a latched topic from before an attempt: who commanded when it began
LOOK_S = 0.1
NOTE_S = 1.0  # between notes of dropped messages in a bag that is being written
ASK_S = 2.0


class RecorderNode(RecapNode):
    NAME = "recorder"
    PARAMETERS = (
        Param("bag_dir", "bags", "folder that gets one bag per attempt"),
        Param("source", "rollout", "what the attempts are: rollout, demonstration, evaluation"),
        Param("queue_size", 4000, "messages that may wait for the disk; more are dropped", "", 10, 10**6),
        Param("split_s", 0.0, "a bag's file gets a successor after so long; 0: never", "s", 0.0, 86400.0),
        Param("split_mb", 0.0, "and after so many megabytes; 0: never", "MB", 0.0, 1e6),
    )

    def configure(self) -> None:
        folder = Path(self.param("bag_dir")).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self.recorder = EpisodeRecorder(
            folder, self.station, self.get_namespace(), self.param("split_s"), self.param("split_mb")
        )
        self._queue: queue.Queue[tuple[str, int, bytes]] = queue.Queue(self.param("queue_size"))
        self._episode: Episode | None = None  # the one being recorded
        self._refused = ""  # id of one that could not be
        self._last: tuple[str, Path] | None = None  # id and bag of the one recorded last
        self._dropped: Counter[str] = Counter()
        self._numbers: dict[str, Numbers] = {}  # by topic
        self._dropped_before = 0
        self._written = 0
        self._trouble = ""
        self._writer: threading.Thread | None = None
        self._latched: dict[str, deque[bytes]] = {topics.CONTROL_MODE: deque(maxlen=KEPT)}
        self._tail: Tail | None = None  # of the recorded episode, once it has ended
        self._unended = ""  # reason for which the running episode must be ended
        self._ending: Future | None = None
        self._ask_at_s = 0.0
        for kind in self.recorder.topics.values():
            definition(kind)  # the first bag opens as fast as the later ones
        for topic, kind in self.recorder.topics.items():
            if topic != topics.EPISODE:
                self._listen(topic, kind)
        self._end = self.create_client(EndEpisode, "end_episode")
        profile = qos.for_topic(topics.EPISODE, recording=True)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, profile, raw=True)
        self.create_timer(LOOK_S, self._look_after, clock=STEADY)

    def shutdown(self) -> None:
        if self._tail:
            self._close()
        else:
            self._finish("unknown", "recorder was stopped")

    # --- hearing --------------------------------------------------------------------------------------

    def _listen(self, topic: str, kind: str) -> Any:
        profile = qos.for_topic(topic, recording=True)
        return self.create_subscription(
            message_type(kind), topic, partial(self._on_message, topic), profile, raw=True
        )

    def _on_message(self, topic: str, cdr: bytes, info: dict[str, Any]) -> None:
        """Where this process did not run for a while, publisher and middleware keep a few messages only. They
        do not say of all that they let go of; the publisher's numbers do."""
        number = info["publication_sequence_number"]
        missing = self._numbers.setdefault(topic, Numbers()).missing_before(number) if number else 0
        if missing and self._episode is not None:
            self._dropped[topic] += missing
        if self._tail:
            self._tail.heard(info["source_timestamp"])
        self._put(topic, cdr)

    def _put(self, topic: str, cdr: bytes) -> None:
        if topic in self._latched:
            self._latched[topic].append(cdr)
        if self._episode is not None:
            self._put_only(topic, cdr)

    def _put_only(self, topic: str, cdr: bytes) -> None:
        try:
            self._queue.put_nowait((topic, self.now_ns(), cdr))
        except queue.Full:
            self._dropped[topic] += 1

    def _on_episode(self, cdr: bytes, info: dict[str, Any]) -> None:
        episode = deserialize_message(cdr, Episode)
        if self._episode is not None and episode.id != self._episode.id:
            if self._tail:
                self._close()
            else:
                self._finish("unknown", f"episode {episode.id} began before this one had ended")
        if episode.state == Episode.RUNNING:
            if self._episode is None and episode.id != self._refused:
                self._begin(episode)
            self._put(topics.EPISODE, cdr)
        elif episode.state == Episode.ENDED and self._episode is not None:
            self._put(topics.EPISODE, cdr)
            self._episode = episode
            self._tail = self._tail or Tail(info["source_timestamp"], time.monotonic())
        elif episode.state == Episode.ENDED and self._last is not None and self._last[0] == episode.id:
            changed = {"recap.outcome": OUTCOMES[episode.outcome], "recap.reason": episode.reason}
            amend_metadata(self._last[1], changed)
            self.get_logger().info(f"now {OUTCOMES[episode.outcome]} ({episode.reason}): {self._last[1]}")
        if episode.state != Episode.RUNNING:
            self._unended = ""

    def _close(self) -> None:
        """Close the bag of an episode that has ended, with the outcome that it has by now."""
        if self._episode is not None:
            self._finish(OUTCOMES[self._episode.outcome], self._episode.reason)

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
            self._refused = episode.id  # it is said again and again that it runs
            self._trouble = _told(error)
            self._end_unrecorded()
            return
        self._refused = ""
        self._episode, self._tail = episode, None
        self._dropped.update(self.recorder.dropped)
        for topic, kept in self._latched.items():  # every bag stands alone
            for cdr in list(kept):
                self._put_only(topic, cdr)
        self._writer = threading.Thread(target=self._write, name="bag writer", daemon=True)
        self._writer.start()
        self.get_logger().info(f"recording {path}")

    def _write(self) -> None:
        """The writer's thread: takes messages until an empty name says that it was the last."""
        noted, due_s = sum(self._dropped.values()), time.monotonic() + NOTE_S
        while (item := self._queue.get())[0]:
            if self._trouble:
                self._dropped[item[0]] += 1
                continue
            try:
                self.recorder.write(*item)
                self._written += 1
                if (lost := sum(self._dropped.values())) != noted and time.monotonic() >= due_s:
                    noted, due_s = lost, time.monotonic() + NOTE_S
                    self.recorder.note({"recap.dropped": json.dumps(dict(self._dropped))})
            except Exception as error:  # of any kind: the thread must live to take the last message
                self._trouble = _told(error)

    def _finish(self, outcome: str, reason: str) -> None:
        episode, self._episode = self._episode, None
        if episode is None or self._writer is None:
            return
        self._tail = None
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

    def _look_after(self) -> None:
        if self._trouble and self._episode is not None:
            running = self._tail is None
            self._finish("discarded", f"recorder: {self._trouble}")
            if running:
                self._end_unrecorded()
        elif self._tail and self._tail.is_in(time.monotonic()):
            self._close()
        self._ask_for_the_end()

    def _end_unrecorded(self) -> None:
        """What cannot be recorded, say for a full disk, ends the episode as discarded: an attempt that nobody
        can learn from must not go on. The bag keeps what was written before."""
        self.complain("bag", self._trouble)
        self._unended, self._ending, self._ask_at_s = f"recorder: {self._trouble}", None, 0.0
        self._ask_for_the_end()

    def _ask_for_the_end(self) -> None:
        """Ask episode control until it answers, or until the episode is heard to have ended."""
        if self._ending is not None and self._ending.done():
            self._unended, self._ending = "", None
        now = time.monotonic()
        if self._unended and now >= self._ask_at_s and self._end.service_is_ready():
            self._ask_at_s = now + ASK_S
            request = EndEpisode.Request(outcome=EndEpisode.Request.DISCARDED, reason=self._unended)
            self._ending = self._end.call_async(request)

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
