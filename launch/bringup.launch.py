"""Bring a cell up: station, policy, arbiter, pedal, episode control, recorder and learner.

    ros2 launch recap bringup.launch.py use_sim:=true checkpoint:=runs/demo/iteration_01/policy

The nodes and arguments are described in recap.bringup, which `./recap up` reads too.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from recap import bringup


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in bringup.ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list[Node]:
    values = {a.name: LaunchConfiguration(a.name).perform(context) for a in bringup.ARGUMENTS}
    planned = bringup.plan(values)
    bringup.hold_domain()
    return [_node(node) for node in planned]


def _node(node: bringup.PlannedNode) -> Node:
    layers = [dict(node.defaults), node.params_file, dict(node.given)]
    return Node(
        package=node.spec.package,
        executable=node.spec.executable,
        name=node.spec.name,
        namespace=node.namespace,
        parameters=[layer for layer in layers if layer],
        arguments=["--ros-args", "--log-level", node.log_level],
        additional_env=dict(node.spec.environment),
        output="screen",
        respawn=True,
        respawn_delay=bringup.RESPAWN_S,
        sigterm_timeout=str(bringup.STOP_S),
        sigkill_timeout="0.3",  # to nodes SIGTERM, which launch sends in between, says nothing new
    )
