"""The learner's action `train`, asked for from another node: started, and whatever runs of it cancelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.action import ActionClient
from rclpy.node import Node
from recap_interfaces.action import Train
from recap_interfaces.srv import DecideCheckpoint

ABSENT = "no learner is there"
STEPS = ("value_steps", "policy_steps")  # parameters of the learner
Done = Callable[[str, bool], None]


class Learner:
    """Called in the thread of ROS. `done` gets an answer's text and whether it was granted, once."""

    def __init__(self, node: Node, told: Done) -> None:
        """told: how a training that was started here has ended."""
        self._node, self._told = node, told
        self._train = ActionClient(node, Train, "train")
        # Also one that somebody else has started, or a console that is gone.
        self._cancel = node.create_client(CancelGoal, "train/_action/cancel_goal")
        self._decide = node.create_client(DecideCheckpoint, "decide_checkpoint")
        self._parameters = node.create_client(GetParameters, "learner/get_parameters")

    def destroy(self) -> None:
        self._train.destroy()

    def start(self, run: str, bags: Sequence[str], done: Done) -> None:
        def answered(future: Any) -> None:
            goal = future.result()
            if not goal.accepted:
                done("the learner refused: training is already under way", False)
                return
            done("training started", True)
            goal.get_result_async().add_done_callback(ended)

        def ended(future: Any) -> None:
            answer = future.result()
            cancelled = answer.status == GoalStatus.STATUS_CANCELED
            text = (
                "training was cancelled" if cancelled else answer.result.checkpoint or answer.result.message
            )
            self._told(text, answer.result.success or cancelled)

        if not self._train.server_is_ready():
            done(ABSENT, False)
            return
        self._train.send_goal_async(Train.Goal(run=run, bags=list(bags))).add_done_callback(answered)

    def cancel(self, done: Done) -> None:
        def answered(future: Any) -> None:
            found = len(future.result().goals_canceling)
            done("training is being cancelled" if found else "no training that can be cancelled", bool(found))

        if not self._cancel.service_is_ready():
            done(ABSENT, False)
            return
        self._cancel.call_async(CancelGoal.Request()).add_done_callback(answered)  # no goal named: all

    def decide(self, checkpoint: str, accept: bool, who: str, done: Done) -> None:
        """A person's word on a checkpoint that is withheld."""

        def answered(future: Any) -> None:
            done(future.result().message, future.result().success)

        if not self._decide.service_is_ready():
            done(ABSENT, False)
            return
        word = DecideCheckpoint.Request(checkpoint=checkpoint, accept=accept, who=who, why="at the console")
        self._decide.call_async(word).add_done_callback(answered)

    def steps(self, done: Callable[[dict[str, int]], None]) -> None:
        """Optimiser steps that the learner was told, by parameter; what it does not have is left out."""

        def answered(future: Any) -> None:
            values = future.result().values
            whole = ParameterType.PARAMETER_INTEGER
            done({n: v.integer_value for n, v in zip(STEPS, values, strict=False) if v.type == whole})

        if not self._parameters.service_is_ready():
            done({})
            return
        self._parameters.call_async(GetParameters.Request(names=list(STEPS))).add_done_callback(answered)
