"""The operator's console in the graph: what is heard becomes pages, what is pressed becomes service calls.

The thread of ROS fetches messages, writes them into the feed and sends calls; the web server has a thread and
an event loop of its own (`recap_teleop.console`). Between the two are slots of the newest and a queue of
wishes. An ordinary process beside the cell's: it can end, hang or be closed at any moment without the robot
noticing, but for a takeover at the console, which the arbiter then ends in a stop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from recap_interfaces.msg import ActionChunk, ControlMode, Episode, LearnerState, ValueEstimate
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Bool

from recap_station import topics
from recap_station.cdr_scan import compressed_image
from recap_station.nodes import qos
from recap_station.nodes.base import OK, Param, RecapNode, Status, run
from recap_teleop.board import Board, wanted_topics
from recap_teleop.console.archive import Archive
from recap_teleop.console.control import BEAT_S, Holds
from recap_teleop.console.feed import Feed, Policy, Withheld
from recap_teleop.console.machine import Machine
from recap_teleop.console.security import Door
from recap_teleop.console.server import Console
from recap_teleop.console.serving import Serving
from recap_teleop.nodes.hearing import Calls, Hearing
from recap_teleop.nodes.training import Learner
from recap_teleop.requests import SERVICES, Request

FETCH_HZ = 60.0
SNAPSHOT_EVERY, HOLDS_EVERY, NODES_EVERY = 6, 3, 30  # fetches
NICE = 5  # the loop and the policy come first


class ConsoleNode(RecapNode):
    NAME = "console"
    REALTIME_PRIORITY = 0
    PARAMETERS = (
        Param("host", "127.0.0.1", "address to listen on; another than this machine's wants a token"),
        Param("port", 8090, "or the next free one; 0: any", "", 0, 65535),
        Param(
            "browser_timeout_s",
            BEAT_S,
            "silence after which a browser that has taken over is lost",
            "s",
            0.2,
            5,
        ),
        Param("bag_dir", "bags", "folder of the bags: for the disk's room, and the attempts"),
        Param("episode_dir", "episodes", "folder of converted episodes, for the attempts"),
        Param("runs_dir", "runs", "folder of learning runs, for their progress"),
    )

    feed: Feed
    about: dict[str, Any]

    def archive(self) -> Archive | None:
        """What is recorded; the top floor knows of it."""
        return None

    def configure(self) -> None:
        if not self.realtime:
            os.nice(max(0, NICE - os.nice(0)))
        station = self.station
        self.feed = Feed(len(station.cameras), station.dof, station.control_rate_hz)
        self.about = self._about()
        cameras = [(camera.name, camera.rate_hz) for camera in station.cameras]
        wanted = wanted_topics(station.control_rate_hz, cameras)
        self.board = Board(os.environ.get("ROS_DOMAIN_ID", "0"), self.get_namespace(), wanted)
        self._wishes: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._fetches = 0
        self._mode = -1
        self._hearing = Hearing(self, self.board)
        self._calls = Calls(self, SERVICES, "operator")
        self._learner = Learner(self, self._trained)
        self._holds = self.create_publisher(Bool, topics.CONSOLE_HOLDS, qos.EVENT)
        hear = self._hearing.hear
        hear(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        hear(JointState, topics.JOINT_STATES, self._on_state, qos.COMMAND)
        hear(JointState, topics.JOINT_COMMAND, self._on_command, qos.COMMAND)
        hear(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        hear(ValueEstimate, topics.VALUE, self._on_value, qos.EVENT)
        hear(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        hear(LearnerState, topics.LEARNER_STATE, self._on_learner, qos.LATCHED)
        for topic in (topics.POLICY_COMMAND, topics.TELEOP_COMMAND):
            self._hearing.watch(topic, topics.JOINT_STATE_TYPE)
        for index, camera in enumerate(station.camera_names):
            self._hear_camera(index, topics.image_topic(camera))
        door = Door.for_host(self.param("host"))
        machine = Machine(Path(self.param("bag_dir")).expanduser())
        self.console = Console(self, door, machine, self.archive(), self.param("browser_timeout_s"))
        self.serving: Serving | None = None

    def activate(self) -> None:
        self.create_ticker(FETCH_HZ, self._tick)
        self.serving = Serving(self.console, self.param("host"), self.param("port"))
        self.serving.start()
        print(f"recap console: {self.console.door.address(self.serving.port)}", flush=True)

    def deactivate(self) -> None:
        serving, self.serving = self.serving, None
        if serving is not None:
            serving.stop()

    def shutdown(self) -> None:
        self.deactivate()
        self._learner.destroy()

    def ask(self, request: Request) -> Future[tuple[str, bool]]:
        """From the web thread: call a service."""
        return self._wish(partial(self._call, request))

    def train(self, run: str, bags: Sequence[str]) -> Future[tuple[str, bool]]:
        """From the web thread: the learner's next iteration."""
        return self._wish(partial(self._learner.start, run, bags))

    def cancel_training(self) -> Future[tuple[str, bool]]:
        return self._wish(self._learner.cancel)

    def decide(self, checkpoint: str, accept: bool, who: str) -> Future[tuple[str, bool]]:
        return self._wish(partial(self._learner.decide, checkpoint, accept, who))

    def training_steps(self) -> Future[dict[str, int]]:
        return self._wish(self._learner.steps)

    def _wish(self, act: Callable[[Callable[..., None]], None]) -> Future[Any]:
        """Have the thread of ROS do something; it gives the answer to the callable that it is handed."""
        future: Future[Any] = Future()
        self._wishes.put(partial(act, partial(_answer, future)))
        return future

    def _call(self, request: Request, done: Callable[[str, bool], None]) -> None:
        self.board.asked(request.service)
        self._calls.ask(request, done)

    def _trained(self, text: str, good: bool) -> None:
        self.console.tell("learner", "train", text, good)

    def _about(self) -> dict[str, Any]:
        station, task = self.station, self.task
        return {
            "station": station.name,
            "joints": [
                {"name": j.name, "lower": j.lower, "upper": j.upper, "gripper": j.is_gripper}
                for j in station.joints
            ],
            "cameras": [{"name": c.name, "width": c.width, "height": c.height} for c in station.cameras],
            "rate_hz": station.control_rate_hz,
            "task": task.name,
            "prompt": task.prompt,
            "stages": list(task.stages),
            "max_episode_s": task.max_episode_s,
            "domain": os.environ.get("ROS_DOMAIN_ID", "0"),
            "namespace": self.get_namespace(),
            "sim": self.param("use_sim"),
        }

    # --- one fetch ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._hearing.fetch()
        self._take_wishes()
        self._calls.serve()
        self._fetches += 1
        now = time.monotonic()
        if self._fetches % HOLDS_EVERY == 0:
            holds: Holds = self.console.control.holds
            if (said := holds.say(now)) is not None:
                self._holds.publish(Bool(data=said))
        if self._fetches % SNAPSHOT_EVERY == 0:
            self.feed.snapshot = self.board.snapshot(now)
        if self._fetches % NODES_EVERY == 0:
            self.feed.nodes = self.board.nodes_seen(now)
        self.console.wake()

    def _take_wishes(self) -> None:
        while True:
            try:
                self._wishes.get_nowait()()
            except Empty:
                return

    # --- what comes in ------------------------------------------------------------------------------

    def _on_mode(self, message: ControlMode, at_s: float) -> None:
        self._mode = message.mode

    def _on_state(self, message: JointState, at_s: float) -> None:
        self.board.heard(topics.JOINT_STATES, at_s)
        self.feed.state(self.station.vector(message.name, message.position))

    def _on_command(self, message: JointState, at_s: float) -> None:
        self.board.heard(topics.JOINT_COMMAND, at_s)
        self.feed.command(self.station.vector(message.name, message.position), self._mode, at_s)

    def _on_chunk(self, message: ActionChunk, at_s: float) -> None:
        self.feed.policy = Policy(
            message.subtask, message.indicator, message.checkpoint, message.inference_s, at_s
        )

    def _on_value(self, message: ValueEstimate, at_s: float) -> None:
        self.feed.value(message.value, at_s)

    def _on_learner(self, message: LearnerState, at_s: float) -> None:
        self.feed.withheld = Withheld(message.withheld, tuple(message.reasons))

    def _on_episode(self, message: Episode, at_s: float) -> None:
        self.feed.began(message.id)

    def _hear_camera(self, index: int, topic: str) -> None:
        def heard(message: bytes, at_s: float) -> None:
            self.board.heard(topic, at_s)
            picture = compressed_image(memoryview(message))
            self.feed.camera(index, message[picture.offset : picture.offset + picture.size], at_s)

        self._hearing.hear(CompressedImage, topic, heard, qos.WATCH, raw=True)

    def diagnose(self) -> Iterable[Status]:
        control = self.console.control
        text = f"{control.count} pages open"
        if name := control.name(control.holder):
            text += f", {name} in control"
        yield Status("pages", OK, text, {"port": self.serving.port if self.serving else 0})


def _answer(future: Future[Any], *said: Any) -> None:
    if not future.cancelled():  # the page that asked may be closed
        future.set_result(said if len(said) > 1 else said[0])


def main() -> None:
    run(ConsoleNode)


if __name__ == "__main__":
    main()
