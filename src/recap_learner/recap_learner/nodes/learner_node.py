"""The learner in the graph: on request turns bags into a better policy and offers it to the policy node.

Training runs in a process of its own (`recap_learner.improve`), so that nothing of it disturbs the
graph; this node starts it, passes its progress on and offers the checkpoint through `load_policy`, which
the policy node carries out between episodes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from recap_interfaces.action import Train
from recap_interfaces.srv import LoadPolicy, StartTraining

from recap_learner.data.ingest import Ingest
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, STEADY, Param, RecapNode, Status, message_type, run
from recap_station.streams import load_streams

STOP_S = 1.5  # less than a launcher waits before it kills


class Training:
    """One training process: its output lines come through a queue, read by a thread."""

    def __init__(self, run: str, bags: list[str], extra: list[str]) -> None:
        command = [sys.executable, "-m", "recap_learner.improve", "--run", run, *extra]
        if bags:
            command += ["--bags", *bags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_be_nice
        )
        self.lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.progress, self.note, self.checkpoint, self.error = 0.0, "starting", "", ""

    def poll(self) -> bool:
        """Take in what it said → whether it has ended."""
        ended = self.process.poll() is not None
        try:
            while True:
                said = json.loads(self.lines.get_nowait())
                self.progress = said.get("progress", self.progress)
                self.note = said.get("note", self.note)
                self.checkpoint = said.get("checkpoint", self.checkpoint)
                self.error = said.get("error", self.error)
        except (Empty, json.JSONDecodeError):
            pass
        if ended and not self.checkpoint and not self.error:
            self.error = f"training ended with exit code {self.process.returncode}"
        return ended

    def stop(self) -> None:
        """End it and whatever it started; what it had saved lets it go on later."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.put(line)


class LearnerNode(RecapNode):
    NAME = "learner"
    PARAMETERS = (
        Param("offer", True, "ask the policy node to load each new checkpoint", read_only=False),
        Param("value_steps", 0, "optimiser steps of the value function; 0: the default", low=0, high=10**7),
        Param("policy_steps", 0, "optimiser steps of the policy; 0: the default", low=0, high=10**7),
        Param("ingest", "", "folder for episodes made from the topics as they are heard; empty: none"),
    )

    def configure(self) -> None:
        self.training: Training | None = None
        self.goal: Any = None
        self.ended: Future | None = None
        self.loader = self.create_client(LoadPolicy, "load_policy")
        self.create_service(StartTraining, "start_training", self.on_start)
        self.actions = ActionServer(
            self,
            Train,
            "train",
            execute_callback=self.execute,
            goal_callback=self.on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self.create_timer(0.2, self.watch, clock=STEADY)
        if self.param("ingest"):
            self._hear(Path(self.param("ingest")).expanduser())

    def cleanup(self) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        if self.training:
            self.training.stop()
        self.actions.destroy()
        if self.param("ingest"):
            try:
                self._finish_episode(float("inf"))  # one that has ended is not lost
            except ValueError as error:
                self.get_logger().error(f"an attempt gave no episode: {error}")

    def on_start(self, request: StartTraining.Request, response: StartTraining.Response) -> Any:
        """Start training without an action client (Foxglove cannot call actions)."""
        if self._busy():
            response.success, response.message = False, "training is already under way"
            return response
        self._begin(request.run, list(request.bags))
        response.success, response.message = True, "training started; see /diagnostics"
        return response

    def on_goal(self, request: Train.Goal) -> GoalResponse:
        return GoalResponse.REJECT if self._busy() else GoalResponse.ACCEPT

    async def execute(self, goal: Any) -> Train.Result:
        self.goal, self.ended = goal, Future(executor=self.executor)
        training = self._begin(goal.request.run, list(goal.request.bags))
        await self.ended
        result = Train.Result(success=bool(training.checkpoint), checkpoint=training.checkpoint)
        result.message = training.error or "done"
        self.goal = None
        if goal.is_cancel_requested:
            goal.canceled()
        elif training.checkpoint:
            goal.succeed()
        else:
            goal.abort()
        return result

    def watch(self) -> None:
        """Five times a second: progress, cancellation, end."""
        training = self.training
        if training is None:
            return
        if self.goal is not None and self.goal.is_cancel_requested:
            training.stop()
        if not training.poll():
            if self.goal is not None:
                feedback = Train.Feedback(stage=training.note, progress=float(training.progress))
                self.goal.publish_feedback(feedback)
            return
        self.training, self.last = None, training
        if training.checkpoint:
            self.get_logger().info(f"new policy: {training.checkpoint}")
            if self.param("offer"):
                self._offer(training.checkpoint)
        else:
            self.complain("training", training.error)
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(True)

    def _hear(self, folder: Path) -> None:
        """Take in the cell's topics, raw, and write an episode at the end of each attempt."""
        streams = load_streams(self.param("station"), self.station).resolved({})
        self.ingest = Ingest(self.station, streams, self.task, folder)
        for stream in streams:
            profile = qos.for_topic(stream.topic, recording=True)
            kind = message_type(stream.type)
            take_in = partial(self._take_in, stream.topic)
            self.create_subscription(kind, stream.topic, take_in, profile, raw=True)
        self.create_timer(0.2, lambda: self._finish_episode(time.monotonic()), clock=STEADY)

    def _take_in(self, topic: str, cdr: bytes) -> None:
        self.ingest.add(topic, self.now_ns(), cdr, time.monotonic())

    def _finish_episode(self, now_s: float) -> None:
        made = self.ingest.step(now_s)
        if made is not None:
            self.get_logger().info(f"episode {made}")

    def diagnose(self) -> Iterable[Status]:
        if self.training is not None:
            values = {"progress": self.training.progress}
            yield Status("training", OK, f"{self.training.progress:.0%} {self.training.note}", values)
            return
        last = getattr(self, "last", None)
        if last is None:
            yield Status("training", OK, "idle")
        elif last.error:
            yield Status("training", ERROR, last.error)
        else:
            yield Status("training", OK, f"last: {last.checkpoint}")

    def _busy(self) -> bool:
        return self.training is not None

    def _begin(self, run_folder: str, bags: list[str]) -> Training:
        extra = []
        for name in ("value_steps", "policy_steps"):
            if self.param(name):
                extra += [f"--{name.replace('_', '-')}", str(self.param(name))]
        self.training = Training(run_folder, bags, extra)
        return self.training

    def _offer(self, checkpoint: str) -> None:
        if not self.loader.service_is_ready():
            self.get_logger().warning("no policy node to offer the checkpoint to")
            return

        def answered(future: Future) -> None:
            answer = future.result()
            say = self.get_logger().info if answer.success else self.get_logger().error
            say(f"policy node: {answer.message}")

        self.loader.call_async(LoadPolicy.Request(path=checkpoint)).add_done_callback(answered)


def _be_nice() -> None:
    os.nice(10)  # the 50 Hz loops go first


def main() -> None:
    run(LearnerNode)


if __name__ == "__main__":
    main()
