"""Play a bag into the graph, with a learner that makes its episodes from the topics.

    ros2 launch recap replay.launch.py bag:=bags/one episodes:=live_episodes

Without ROS 2's launch, in two terminals:

    python -m recap_learner.nodes.learner_node --ros-args -p ingest:=live_episodes
    python -m recap_station.nodes.replay_node --ros-args -p bag:=bags/one
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

ARGUMENTS = {
    "bag": (None, "bag to play: a folder or a file"),
    "rate": ("1.0", "pace, in times real time"),
    "episodes": ("live_episodes", "folder for the episodes made from the topics"),
    "namespace": ("", "namespace of all nodes and topics"),
    "station": ("aloha", "robot cell: a name in config/stations, or a path to a YAML"),
    "task": ("handover_insert", "task: a name in config/tasks, or a path to a YAML"),
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    cell = {"station": value["station"], "task": value["task"]}
    learner = Node(
        package="recap_learner",
        executable="learner_node",
        name="learner",
        namespace=value["namespace"],
        parameters=[{**cell, "ingest": value["episodes"]}],
        output="screen",
    )
    replay = Node(
        package="recap_station",
        executable="replay_node",
        name="replay",
        namespace=value["namespace"],
        parameters=[{**cell, "bag": value["bag"], "rate": value["rate"]}],
        output="screen",
        on_exit=Shutdown(),
    )
    return LaunchDescription([*declared, learner, replay])
