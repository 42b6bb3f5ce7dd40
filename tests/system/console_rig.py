"""A live simulated cell with the console in front of it, for its tests, its benchmark and its pictures.

Station, arbiter, episode control and recorder are the real nodes; policy and leader arms are stand-ins from
`faults.py`. What a button did is read back from ROS.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import faults
import yaml
from action_msgs.msg import GoalStatusArray
from graph import Graph
from rclpy.context import Context
from rclpy.node import Node
from recap_interfaces.msg import ControlMode, Episode
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from recap_station import topics
from recap_station.contract import read_config
from recap_station.nodes import qos

LIMIT_S = 60.0
BUSY = {f"{name}_timeout_s": 1.0 for name in ("policy", "teleop", "pedal", "state")}
TASK = {"time_limit_s": 120.0, "max_episode_s": 120.0, "judge": "person"}
RUBRIC = {"criteria": {"inserted": "Is the peg in the socket?", "released": "Are both hands off the peg?"}}


class Watch(Node):
    """Hears what the buttons do."""

    def __init__(self, context: Context):
        super().__init__("watch", context=context)
        self.mode = ControlMode()
        self.modes: list[tuple[int, str]] = []
        self.episode = Episode()
        self.commands = 0
        self.faults = self.create_publisher(String, faults.FAULTS, qos.EVENT)
        self.create_subscription(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.trainings: list[int] = []  # how the goals of the learner's action stand
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.COMMAND)
        self.create_subscription(GoalStatusArray, "train/_action/status", self._on_training, qos.LATCHED)

    def _on_mode(self, message: ControlMode) -> None:
        self.mode = message
        self.modes.append((message.mode, message.reason))

    def _on_episode(self, message: Episode) -> None:
        self.episode = message

    def _on_training(self, message: GoalStatusArray) -> None:
        self.trainings = [goal.status for goal in message.status_list]

    def _on_command(self, message: JointState) -> None:
        self.commands += 1


class ConsoleRig:
    """Context manager."""

    def __init__(
        self,
        folder: Path,
        console: str = "recap.nodes.console_node",
        leader: bool = True,
        learner: bool = False,
    ):
        self.folder = folder
        self.graph = Graph(folder, Watch)
        self.watch: Watch = self.graph.world
        task = {**read_config("tasks", "handover_insert")[0], **TASK, "rubric": RUBRIC}
        (folder / "console.yaml").write_text(yaml.safe_dump(task))
        cell = {"task": folder / "console.yaml"}
        self._parts: dict[str, tuple[str, dict[str, Any]]] = {
            "station": ("recap_station.nodes.station_node", cell),
            "arbiter": ("recap_teleop.nodes.arbiter_node", {**cell, **BUSY, "console_timeout_s": 2.0}),
            "episode": ("recap_teleop.nodes.episode_node", {**cell, "state_dir": folder / "state"}),
            "recorder": ("recap_teleop.nodes.recorder_node", {**cell, "bag_dir": folder / "bags"}),
            "policy": ("faults", {"role": "policy"}),
            "leader": ("faults", {"role": "leader"}),
            "value": ("console_value", {}),
            "learner": ("recap_learner.nodes.learner_node", {**cell, "value_steps": 40}),
            "console": (
                console,
                {
                    **cell, "port": 0, "browser_timeout_s": 2.0,
                    "bag_dir": folder / "bags", "episode_dir": folder / "episodes",
                    "runs_dir": folder / "runs",
                },
            ),
        }  # fmt: skip
        try:
            for part in self._parts:
                if {"leader": leader, "learner": learner}.get(part, True):
                    self.start(part)
            self.url = self.wait_for_url()
            self.graph.wait(lambda: self.watch.commands > 10, LIMIT_S, "joint_command")
        except BaseException:
            self.graph.__exit__()
            raise

    def start(self, part: str) -> None:
        module, given = self._parts[part]
        self.graph.start(part, module, **given)

    def wait_for_url(self) -> str:
        """The link that the start prints, the last one in the log."""
        found: list[str] = []

        def printed() -> bool:
            found[:] = re.findall(r"recap console: (\S+)", self.graph.log("console"))
            return bool(found)

        self.graph.wait(printed, LIMIT_S, "the console's link")
        return found[-1]

    def wait_for_mode(self, mode: int, reason: str = "", limit_s: float = LIMIT_S) -> float:
        def there() -> bool:
            return self.watch.mode.mode == mode and reason in self.watch.mode.reason

        return self.graph.wait(there, limit_s, f"mode {mode} {reason}, found {self.watch.mode}")

    def wait_for_episode(self, state: int, outcome: int | None = None) -> float:
        def there() -> bool:
            episode = self.watch.episode
            return episode.state == state and outcome in (None, episode.outcome)

        return self.graph.wait(there, LIMIT_S, f"episode in state {state} with outcome {outcome}")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.loads(answer.read())

    def __enter__(self) -> ConsoleRig:
        return self

    def __exit__(self, *_: object) -> None:
        self.graph.__exit__()
