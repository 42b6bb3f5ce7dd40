"""Bring a cell up: station, policy, arbiter, pedal, episode control, recorder and learner.

    ros2 launch recap bringup.launch.py use_sim:=true checkpoint:=runs/demo/iteration_01/policy

The nodes and arguments are described in recap.bringup, which `./recap up` reads too.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction
from launch.events import matches_action
from launch.events.process import ProcessExited, ShutdownProcess
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from recap import bringup

# Arguments of launch itself, for every launch file.
OF_LAUNCH = ("launch-prefix", "launch-prefix-filter", "emulate_tty", "log_cmd")


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=list(argument.spellings) or None,
        )
        for argument in bringup.ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list[Node]:
    if _named_on_command_line():
        words = [word for word in context.argv if word.partition(":=")[0] not in OF_LAUNCH]
        bringup.read_arguments(words)  # refuses a misspelt name, which launch would pass over
    values = {a.name: LaunchConfiguration(a.name).perform(context) for a in bringup.ARGUMENTS}
    planned = bringup.plan(values)
    bringup.hold_domain()
    return [_node(node) for node in planned]


def _named_on_command_line() -> bool:
    """Whether `ros2 launch` runs this very file, not one that includes it, with arguments of its own."""
    file = Path(__file__)
    by_path = any(Path(word).is_file() and file.samefile(word) for word in sys.argv)
    return by_path or ("recap", file.name) in pairwise(sys.argv)


def _node(node: bringup.PlannedNode) -> Node:
    layers = [dict(node.defaults), node.params_file, dict(node.given)]
    starts = bringup.Starts(time.monotonic())

    def ended(event: ProcessExited, context: LaunchContext) -> list[EmitEvent]:
        if context.is_shutdown or starts.again(time.monotonic(), event.returncode):
            return []
        get_logger("bringup").error(bringup.GIVEN_UP.format(name=node.spec.name))
        return [EmitEvent(event=ShutdownProcess(process_matcher=matches_action(action)))]  # no more respawns

    action = Node(
        package=node.spec.package,
        executable=node.spec.executable,
        name=node.spec.name,
        namespace=node.namespace,
        parameters=[layer for layer in layers if layer],
        ros_arguments=["--log-level", node.log_level],
        additional_env=dict(node.spec.environment),
        output="screen",
        respawn=True,
        respawn_delay=bringup.RESPAWN_S,
        on_exit=ended,
        # A SIGINT sent to launch alone (`kill -INT`) is not passed on: its nodes first hear the SIGTERM,
        # and need time after that as well.
        sigterm_timeout=str(bringup.STOP_S / 2),
        sigkill_timeout=str(bringup.STOP_S / 2),
    )
    return action
