"""Episode control in the graph: starts an attempt from a reset cell and ends it with an outcome."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from recap_interfaces.msg import ActionChunk, SimTruth
from recap_interfaces.msg import Episode as EpisodeMessage
from recap_interfaces.srv import EndEpisode, ResetCell, StartEpisode
from sensor_msgs.msg import JointState

from recap_station import topics
from recap_station.contract import load_task
from recap_station.nodes import qos
from recap_station.nodes.base import OK, STEADY, Param, RecapNode, Status, run, to_ns
from recap_teleop.episode import EpisodeControl, EpisodeError, Outcome, Phase, episode_id

STILL = 0.004  # rad between two joint states: slower is standing still
STILL_MESSAGES = 5


class EpisodeNode(RecapNode):
    NAME = "episode"
    PARAMETERS = (
        Param("reset_timeout_s", 15.0, "longest wait for the cell's reset", "s", 0.1, 600.0),
        Param("settle_timeout_s", 5.0, "longest wait for the arms to stand still after it", "s", 0.1, 60.0),
    )

    def configure(self) -> None:
        self.control = EpisodeControl(self.task)
        self._number = 0
        self._checkpoint = ""
        self._running_ns = 0
        self._last_state: np.ndarray | None = None
        self._still = 0
        self._waiting: Future | None = None
        self._episodes = self.create_publisher(EpisodeMessage, topics.EPISODE, qos.LATCHED)
        self._reset = self.create_client(ResetCell, "reset")
        self.create_subscription(SimTruth, topics.SIM_TRUTH, self._on_truth, qos.EVENT)
        self.create_subscription(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        self.create_subscription(JointState, topics.JOINT_STATES, self._on_state, qos.COMMAND)
        # A group of its own: while it waits for the cell, everything else of this node must go on.
        group = ReentrantCallbackGroup()
        self.create_service(StartEpisode, "start_episode", self._start, callback_group=group)
        self.create_service(EndEpisode, "end_episode", self._end_by_request)
        self._publish()

    def activate(self) -> None:
        self.create_ticker(20.0, self._tick)

    def shutdown(self) -> None:
        if self.control.episode.phase is Phase.RUNNING:
            self.control.end(time.monotonic(), Outcome.DISCARDED, "episode control was stopped")
            self._publish()

    # --- services -------------------------------------------------------------------------------------

    async def _start(self, request: StartEpisode.Request, response: StartEpisode.Response) -> Any:
        task = load_task(request.task) if request.task else self.control.task
        self._number += 1
        identity = episode_id(time.time_ns(), self._number)
        try:
            self.control.prepare(identity, request.seed)
        except EpisodeError as error:
            response.success, response.message = False, str(error)
            return response
        self.control.task = task
        self._publish()  # IDLE with the new id: the arbiter lets go of the last attempt's pose
        try:
            seed = request.seed
            if self.param("use_sim"):
                seed = await self._reset_cell(task.name, request.seed)
            await self._stand_still()
        except Exception as error:
            self.control.abandon(str(error))
            self._publish()
            if not isinstance(error, EpisodeError):
                raise  # the base class answers with it
            response.success, response.message = False, str(error)
            return response
        self.control.run(time.monotonic(), seed)
        self._running_ns = self.now_ns()
        self._publish()
        self.get_logger().info(f"episode {identity} runs, seed {seed}")
        response.success, response.message, response.id = True, f"episode {identity} runs", identity
        return response

    async def _reset_cell(self, task: str, seed: int) -> int:
        limit = self.param("reset_timeout_s")
        deadline = time.monotonic() + limit
        while not self._reset.service_is_ready():
            if time.monotonic() > deadline:
                raise EpisodeError(f"no service {self._reset.srv_name}: is the station running?")
            await self._until(Future(), 0.1)
        future = self._reset.call_async(ResetCell.Request(task=task, seed=seed))
        await self._until(future, limit)
        if not future.done():
            raise EpisodeError(f"the cell did not answer its reset within {limit:g} s")
        result = future.result()
        if not result.success:
            raise EpisodeError(f"the cell refused its reset: {result.message}")
        return result.seed

    async def _stand_still(self) -> None:
        self._still, self._last_state = 0, None
        self._waiting = Future()
        limit = self.param("settle_timeout_s")
        await self._until(self._waiting, limit)
        if self._still < STILL_MESSAGES:
            heard = (
                "the arms do not stand still" if self._last_state is not None else "no joint_states arrive"
            )
            raise EpisodeError(f"{heard} {limit:g} s after the reset")

    async def _until(self, future: Future, limit_s: float) -> None:
        """Wait for the future, at most so long."""
        either: Future = Future()

        def done(_: Any = None) -> None:
            if not either.done():
                either.set_result(None)

        timer = self.create_timer(limit_s, done, clock=STEADY)
        future.add_done_callback(done)
        await either
        self.destroy_timer(timer)

    def _end_by_request(self, request: EndEpisode.Request, response: EndEpisode.Response) -> Any:
        try:
            episode = self.control.end(time.monotonic(), request.outcome, request.reason)
        except EpisodeError as error:
            response.success, response.message = False, str(error)
            return response
        self._ended()
        response.success = True
        response.message = f"episode {episode.id}: {episode.outcome.name.lower()}"
        return response

    # --- what the cell says -----------------------------------------------------------------------------

    def _on_truth(self, message: SimTruth) -> None:
        if to_ns(message.header.stamp) < self._running_ns:
            return  # of the attempt before
        if self.control.judge(time.monotonic(), message.success, message.failure):
            self._ended()

    def _on_chunk(self, message: ActionChunk) -> None:
        self._checkpoint = message.checkpoint

    def _on_state(self, message: JointState) -> None:
        state = np.asarray(message.position)
        if self._last_state is not None and state.shape == self._last_state.shape:
            still = bool(np.all(np.abs(state - self._last_state) < STILL))
            self._still = self._still + 1 if still else 0
        self._last_state = state
        if self._waiting is not None and self._still >= STILL_MESSAGES and not self._waiting.done():
            self._waiting.set_result(None)

    def _tick(self) -> None:
        if self.control.judge(time.monotonic()):
            self._ended()

    def _ended(self) -> None:
        self._publish()
        episode = self.control.episode
        elapsed = episode.elapsed_s(time.monotonic())
        text = f"{episode.outcome.name.lower()} ({episode.reason}) after {elapsed:.1f} s"
        self.get_logger().info(f"episode {episode.id} ended: {text}")

    def _publish(self) -> None:
        episode, task = self.control.episode, self.control.task
        message = EpisodeMessage(
            id=episode.id,
            state=int(episode.phase),
            outcome=int(episode.outcome),
            task=task.name,
            prompt=task.prompt,
            checkpoint=self._checkpoint,
            seed=episode.seed,
            reason=episode.reason,
            elapsed_s=episode.elapsed_s(time.monotonic()),
            time_limit_s=task.time_limit_s,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._episodes.publish(message)

    def diagnose(self) -> Iterable[Status]:
        episode = self.control.episode
        values = {
            "id": episode.id,
            "elapsed_s": episode.elapsed_s(time.monotonic()),
            "reason": episode.reason,
        }
        yield Status("episode", OK, f"{episode.phase.name} {episode.id}".strip(), values)


def main() -> None:
    run(EpisodeNode)


if __name__ == "__main__":
    main()
