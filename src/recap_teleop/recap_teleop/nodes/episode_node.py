"""Episode control in the graph: starts an attempt from a reset cell and ends it with an outcome."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from recap_interfaces.msg import ActionChunk, SimTruth
from recap_interfaces.msg import Episode as EpisodeMessage
from recap_interfaces.srv import EndEpisode, MarkStage, ResetCell, StartEpisode
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from recap_station import topics
from recap_station.contract import ContractError, load_task
from recap_station.nodes import qos
from recap_station.nodes.base import OK, STEADY, Param, RecapNode, Status, run, to_ns
from recap_teleop.episode import EpisodeControl, EpisodeError, Outcome, Phase, episode_id
from recap_teleop.running import Running, boot_id, load_running, save_running, state_file

STILL = 0.004  # rad between two joint states: slower is standing still
STILL_MESSAGES = 5
REPEAT_S = 0.5  # of a running episode: its silence tells the arbiter that nobody would end it
RECOVER_S = 5.0  # for discovery to find the arbiter of a predecessor's episode
RESETS = ("auto", "service", "person", "none")


class EpisodeNode(RecapNode):
    NAME = "episode"
    PARAMETERS = (
        Param("reset_timeout_s", 15.0, "longest wait for the cell's reset", "s", 0.1, 600.0),
        Param("settle_timeout_s", 5.0, "longest wait for the arms to stand still after it", "s", 0.1, 60.0),
        Param(
            "reset", "auto",
            "who resets the cell: the station's service, a person (then reset_done), none, or auto: the "
            "service in the simulator, a person else",
        ),
        Param("state_dir", "", "folder where a running episode is noted for a restart; empty: ~/.ros/recap"),
    )  # fmt: skip

    def configure(self) -> None:
        if self.param("reset") not in RESETS:
            raise ContractError(f"reset is {self.param('reset')!r}, wanted one of {', '.join(RESETS)}")
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
        self.create_service(Trigger, "reset_done", self._reset_done, callback_group=group)
        self.create_service(EndEpisode, "end_episode", self._end_by_request)
        self.create_service(Trigger, "undo_label", self._undo)
        self.create_service(MarkStage, "mark_stage", self._mark)
        self._file = state_file(self.param("state_dir"), self.get_namespace())
        self._mode_topic = self.resolve_topic_name(topics.CONTROL_MODE)
        self._repeat_at_s = math.inf
        self._before = load_running(self._file)  # a predecessor's, to be taken up if its arbiter lives
        self._recover_by_s = time.monotonic() + RECOVER_S
        if self._before is None:
            self._publish()

    def activate(self) -> None:
        self.create_ticker(20.0, self._tick)

    def shutdown(self) -> None:
        if self.control.episode.phase is Phase.RUNNING:
            self.control.end(time.monotonic(), Outcome.DISCARDED, "episode control was stopped")
            self._publish()

    # --- services -------------------------------------------------------------------------------------

    def _resets(self) -> str:
        if self.param("reset") != "auto":
            return self.param("reset")
        return "service" if self.param("use_sim") else "person"

    async def _start(self, request: StartEpisode.Request, response: StartEpisode.Response) -> Any:
        task = load_task(request.task) if request.task else self.control.task
        self._number += 1
        identity = episode_id(time.time_ns(), self._number)
        by_person = self._resets() == "person"
        message = f"put the cell back for {task.prompt!r}, then call reset_done" if by_person else ""
        try:
            if self._before is not None:
                raise EpisodeError(f"episode {self._before.episode.id} is being looked for; try again")
            self.control.prepare(identity, request.seed, message)
        except EpisodeError as error:
            response.success, response.message = False, str(error)
            return response
        self.control.task = task
        self._publish()  # RESETTING with the new id: the arbiter lets go of the last attempt's pose
        if by_person:
            self.get_logger().info(f"episode {identity}: {message}")
            response.success, response.message, response.id = True, message, identity
            return response
        return await self._go(response, request.seed)

    async def _reset_done(self, request: Trigger.Request, response: Trigger.Response) -> Any:
        episode = self.control.episode
        if episode.phase is not Phase.RESETTING or not episode.message:
            response.success, response.message = False, "no episode waits for a person's reset"
            return response
        return await self._go(response, episode.seed)

    async def _go(self, response: Any, seed: int) -> Any:
        """From RESETTING to RUNNING; answers for it."""
        identity = self.control.episode.id
        try:
            if self._resets() == "service":
                seed = await self._reset_cell(self.control.task.name, seed)
            await self._stand_still()
            if self.control.episode.id != identity or self.control.episode.phase is not Phase.RESETTING:
                raise EpisodeError(f"episode {identity} was given up meanwhile")
        except Exception as error:
            if self.control.episode.message and isinstance(error, EpisodeError):
                response.success, response.message = False, str(error)  # the person may try again
                return response
            if self.control.episode.phase is not Phase.RESETTING:
                response.success, response.message = False, str(error)
                return response
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
        response.success, response.message = True, f"episode {identity} runs"
        if hasattr(response, "id"):
            response.id = identity
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

    def _undo(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            episode = self.control.undo(time.monotonic())
        except EpisodeError as error:
            response.success, response.message = False, str(error)
            return response
        self._ended()
        response.success, response.message = True, f"episode {episode.id}: {episode.outcome.name.lower()}"
        return response

    def _mark(self, request: MarkStage.Request, response: MarkStage.Response) -> MarkStage.Response:
        try:
            episode = self.control.mark(request.stage)
        except EpisodeError as error:
            response.success, response.message = False, str(error)
            return response
        self._publish()
        response.success, response.stage = True, episode.stage
        response.message = f"episode {episode.id}: {episode.stage}"
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
        if self._before is not None:
            self._recover(self._before)
        if self.control.judge(time.monotonic()):
            self._ended()
        elif time.monotonic() >= self._repeat_at_s:
            self._publish()

    # --- a predecessor's episode --------------------------------------------------------------------

    def _recover(self, before: Running) -> None:
        """Take it up where the arbiter still is the one it runs with; else say that it has ended."""
        now, arbiters = time.monotonic(), self._arbiters()
        same = before.arbiter in arbiters
        if not same and not arbiters and now < self._recover_by_s:
            return
        self._before = None
        task = self.task if before.task == self.task.name else load_task(before.task)
        self.control.task, self._checkpoint = task, before.checkpoint
        self.control.recover(before.episode)
        self._running_ns = self.now_ns()
        if same and before.episode.elapsed_s(now) < task.time_limit_s:
            self.get_logger().info(f"episode {before.episode.id} goes on")
            self._publish()
        else:
            gone = "its time passed" if same else "the arbiter was restarted too"
            self.control.end(now, Outcome.DISCARDED, f"episode control was restarted, {gone}")
            self._ended()

    def _arbiters(self) -> list[str]:
        """Ids of the publishers of control_mode."""
        found = self.get_publishers_info_by_topic(self._mode_topic)
        return [bytes(one.endpoint_gid).hex() for one in found]

    def _remember(self) -> None:
        episode = self.control.episode
        running = None
        if episode.phase is Phase.RUNNING:
            arbiter = next(iter(self._arbiters()), "")
            running = Running(episode, self.control.task.name, self._checkpoint, arbiter, boot_id())
        try:
            save_running(self._file, running)
        except OSError as error:
            self.complain("state_dir", f"a restart will end the episode: {error.strerror}: {self._file}")

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
            stage=episode.stage,
            message=episode.message,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._episodes.publish(message)
        self._repeat_at_s = time.monotonic() + REPEAT_S if episode.phase is Phase.RUNNING else math.inf
        self._remember()

    def diagnose(self) -> Iterable[Status]:
        episode = self.control.episode
        values = {
            "id": episode.id,
            "elapsed_s": episode.elapsed_s(time.monotonic()),
            "reason": episode.reason,
        }
        text = f"{episode.phase.name} {episode.id}".strip()
        yield Status("episode", OK, f"{text}: {episode.message}" if episode.message else text, values)


def main() -> None:
    run(EpisodeNode)


if __name__ == "__main__":
    main()
