"""The learner in the graph: attempts come in, policies are trained of them, good ones are offered.

What it does stands in `recap_learner.learner`, whose processes keep all work out of this one; this node
passes requests in, state and curves out, and asks the policy node by `load_policy`, which that carries out
between episodes. A checkpoint that fails a gate, or is worse than the one in use, waits for the service
`decide_checkpoint`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from recap_interfaces.action import Train
from recap_interfaces.msg import Episode, LearnerState, TrainingCurve
from recap_interfaces.srv import DecideCheckpoint, LoadPolicy, StartTraining

from recap_learner.data.ingest import Ingest
from recap_learner.learner import EPISODES, Learner, Settings
from recap_learner.lesson import STARTS
from recap_learner.nodes.learner_messages import curve_message, state_message, statuses
from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import STEADY, Param, RecapNode, Status, message_type, run
from recap_station.streams import load_streams

OFFER_AGAIN_S = 2.0  # to a policy node that did not answer


class LearnerNode(RecapNode):
    NAME = "learner"
    PARAMETERS = (
        Param("run", "", "learning run to go on with; empty: trains only what start_training names"),
        Param("bag_dir", "", "folder of bags to watch; empty: none"),
        Param("convert", True, "make episodes of finished attempts as they come"),
        Param("episode_dir", "", "store for them where there is no run; empty: `episodes` beside bag_dir"),
        Param("settle_s", 30.0, "until a bag that its recorder left open is taken", "s", 0.1, 3600.0),
        Param("checkpoint", "", "folder of the policy that the robot begins with, to compare with"),
        Param("train_after", 0, "new attempts after which training begins; 0: on request", "", 0, 10**6),
        Param("concurrent", False, "train all the time, as soon as there is a new attempt"),
        Param("start", "", "models to go on from: pretrained, last; empty: last if concurrent"),
        Param("fresh_share", -1.0, "of a batch from new attempts; -1: 0.5 if concurrent, else as they are"),
        Param("value_steps", 0, "optimiser steps of the value function; 0: the default", low=0, high=10**7),
        Param("policy_steps", 0, "optimiser steps of the policy; 0: the default", low=0, high=10**7),
        Param("evaluations", 0, "simulated attempts of each policy before an offer; 0: none", "", 0, 10**5),
        Param("evaluator", "recap", "Python module whose verb eval makes them"),
        Param("cores", 1, "that intake, training and evaluation may use; 0: all", "", 0, 1024),
        Param("offer", True, "ask the policy node to load good checkpoints", read_only=False),
        Param("ingest", "", "folder for episodes made from the topics as they are heard; empty: none"),
    )

    def configure(self) -> None:
        self.learner = Learner(self._settings())
        self.goal: Any = None
        self.ended: Future | None = None
        self._asked_s = -1e9
        self._told: LearnerState | None = None
        self._said: set[str] = set()
        self.states = self.create_publisher(LearnerState, topics.LEARNER_STATE, qos.LATCHED)
        self.curves = self.create_publisher(TrainingCurve, topics.LEARNER_CURVES, qos.EVENT)
        self.create_subscription(Episode, topics.EPISODE, self.on_episode, qos.LATCHED)
        self.loader = self.create_client(LoadPolicy, "load_policy")
        self.create_service(StartTraining, "start_training", self.on_start)
        self.create_service(DecideCheckpoint, "decide_checkpoint", self.on_decide)
        self.actions = ActionServer(
            self,
            Train,
            "train",
            execute_callback=self.execute,
            goal_callback=lambda goal: GoalResponse.REJECT if self.learner.work else GoalResponse.ACCEPT,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self.create_timer(0.2, self.watch, clock=STEADY)
        if self.param("ingest"):
            self._hear(Path(self.param("ingest")).expanduser())

    def shutdown(self) -> None:
        self.learner.close()
        self.actions.destroy()
        if self.param("ingest"):
            try:
                self._finish_episode(float("inf"))  # one that has ended is not lost
            except ValueError as error:
                self.get_logger().error(f"an attempt gave no episode: {error}")

    # --- requests -----------------------------------------------------------------------------------

    def on_start(self, request: StartTraining.Request, response: StartTraining.Response) -> Any:
        """Start training without an action client (Foxglove cannot call actions)."""
        response.message = self._ask(request.run, request.bags)
        response.success = True
        return response

    async def execute(self, goal: Any) -> Train.Result:
        try:
            self._ask(goal.request.run, goal.request.bags)
        except ContractError as error:
            goal.abort()
            return Train.Result(success=False, message=str(error))
        self.goal, self.ended = goal, Future(executor=self.executor)
        await self.ended
        checkpoint, message = self.ended.result()
        self.goal = self.ended = None
        if goal.is_cancel_requested:
            goal.canceled()
        elif checkpoint:
            goal.succeed()
        else:
            goal.abort()
        return Train.Result(success=bool(checkpoint), checkpoint=checkpoint, message=message)

    def on_decide(self, request: DecideCheckpoint.Request, response: DecideCheckpoint.Response) -> Any:
        try:
            word = request.checkpoint, request.accept, request.who, request.why
            response.message = self.learner.decide(*word)
        except ValueError as error:
            raise ContractError(str(error)) from None
        self.get_logger().warning(response.message)
        response.success = True
        return response

    def on_episode(self, message: Episode) -> None:
        self.learner.in_use = message.checkpoint or self.learner.in_use

    def _ask(self, run_folder: str, bags: Iterable[str]) -> str:
        try:
            return self.learner.ask(run_folder, list(bags))
        except ValueError as error:
            raise ContractError(str(error)) from None

    # --- five times a second ------------------------------------------------------------------------

    def watch(self) -> None:
        """Progress, cancellation, ends, offers."""
        learner = self.learner
        if self.goal is not None and self.goal.is_cancel_requested:
            learner.cancel()
        before = learner.standing
        learner.step(time.monotonic())
        now = learner.standing
        if now.withheld and (now.withheld, now.reasons) != (before.withheld, before.reasons):
            self.get_logger().warning(f"{now.withheld} is not offered: {'; '.join(now.reasons)}")
        if now.error and now.error != before.error:
            self.complain("training", now.error)
        for line in learner.data.problems:
            if line not in self._said:
                self.get_logger().warning(line)
        self._said = set(learner.data.problems)
        if now.to_offer and self.param("offer") and time.monotonic() - self._asked_s >= OFFER_AGAIN_S:
            self._offer(now.to_offer)
        self._follow_goal()
        self._publish()

    def _follow_goal(self) -> None:
        """Feedback while a goal's training and its judging go on, then its result."""
        learner, now = self.learner, self.learner.standing
        if self.goal is None or self.ended is None or self.ended.done():
            return
        if learner.work is not None:
            feedback = Train.Feedback(stage=learner.work.note, progress=float(learner.work.progress))
            self.goal.publish_feedback(feedback)
        elif now.asked is None and not now.to_judge:
            verdict = "; ".join(now.reasons) or "done"
            self.ended.set_result(("" if now.error else now.made, now.error or verdict))

    def _offer(self, checkpoint: str) -> None:
        self._asked_s = time.monotonic()
        if not self.loader.service_is_ready():
            return  # it is offered when there is a policy node

        def answered(future: Future) -> None:
            answer = future.result()
            say = self.get_logger().info if answer.success else self.get_logger().error
            say(f"policy node, asked for {checkpoint}: {answer.message}")
            self.learner.answered(checkpoint, answer.success, answer.message)

        self.learner.offered(checkpoint)
        self.loader.call_async(LoadPolicy.Request(path=checkpoint)).add_done_callback(answered)

    # --- what it tells ------------------------------------------------------------------------------

    def _publish(self) -> None:
        stamp = self.get_clock().now().to_msg()
        for model, point in self.learner.curves():
            self.curves.publish(curve_message(model, point, stamp))
        state = state_message(self.learner)
        if state != self._told:
            self._told = copy.deepcopy(state)
            state.header.stamp = stamp
            self.states.publish(state)

    def diagnose(self) -> Iterable[Status]:
        waits_for = "a policy node" if self.param("offer") else "the parameter offer"
        return statuses(self.learner, waits_for)

    # --- episodes from the topics -------------------------------------------------------------------

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

    def _settings(self) -> Settings:
        """Raises ContractError on what cannot be meant."""
        names = ("bag_dir", "episode_dir", "run", "checkpoint")
        bags, store, run_folder, checkpoint = (
            Path(given).expanduser().absolute() if (given := self.param(name)) else None for name in names
        )
        concurrent, start, share = (self.param(name) for name in ("concurrent", "start", "fresh_share"))
        start = start or ("last" if concurrent else "pretrained")
        if start not in STARTS:
            raise ContractError(f"start is {start!r}, wanted {' or '.join(STARTS)}")
        if run_folder is None and (concurrent or self.param("train_after")):
            raise ContractError("to train by itself the learner wants a run, found none: run:=FOLDER")
        if run_folder is not None:
            store = run_folder / EPISODES
        elif store is None and bags is not None:
            store = bags.parent / EPISODES
        same = ("settle_s", "train_after", "value_steps", "policy_steps", "evaluator", "cores")
        return Settings(
            **{name: self.param(name) for name in same},
            run=run_folder,
            bags=bags if self.param("convert") else None,
            store=store,
            checkpoint=checkpoint if checkpoint and checkpoint.is_dir() else None,  # not a server's
            station=self.param("station"),
            task=self.param("task"),
            task_name=self.task.name,
            rate_hz=self.station.control_rate_hz,
            concurrent=concurrent,
            start=start,
            fresh_share=share if share >= 0 else 0.5 * concurrent,
            evaluations=self.param("evaluations") if self.param("use_sim") else 0,
        )


def main() -> None:
    run(LearnerNode)


if __name__ == "__main__":
    main()
