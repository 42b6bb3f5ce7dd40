"""Who imports whom: the rooms' rules, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "recap_station": ROOT / "src/recap_station/recap_station",
    "recap_policy": ROOT / "src/recap_policy/recap_policy",
    "recap_teleop": ROOT / "src/recap_teleop/recap_teleop",
    "recap_learner": ROOT / "src/recap_learner/recap_learner",
    "recap": ROOT / "ros2_ws/src/recap/recap",
}
MAY_IMPORT = {
    "recap_station": set(),
    "recap_policy": {"recap_station"},
    "recap_teleop": {"recap_station"},
    "recap_learner": {"recap_station", "recap_policy"},
    "recap": {"recap_station", "recap_policy", "recap_teleop", "recap_learner"},
}
WITHOUT_TORCH = ("recap_station", "recap_teleop")
ROS = ("rclpy", "rosbag2_py", "launch", "launch_ros")
ROS_ENDINGS = ("_msgs", "_srvs", "_interfaces")
MODULES = sorted((room, path) for room, folder in ROOMS.items() for path in folder.rglob("*.py"))


def imported(source: str, package: str) -> set[str]:
    """Full names of everything a module imports, wherever in it; `from a import b` gives a and a.b.

    `package` is the dotted package that the module is in, for relative imports.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def breaches(room: str, source: str, package: str) -> list[str]:
    """What a module of `room` imports and must not."""
    in_nodes = "nodes" in package.split(".")
    found = []
    for name in sorted(imported(source, package)):
        top, *rest = name.split(".")
        if top in MAY_IMPORT and top != room and top not in MAY_IMPORT[room]:
            found.append(f"{name}: {room} may not import {top}")
        if top in MAY_IMPORT and "nodes" in rest and not in_nodes:
            found.append(f"{name}: only nodes import nodes")
        if top == "torch" and room in WITHOUT_TORCH:
            found.append(f"{name}: {room} must do without torch")
        if (top in ROS or top.endswith(ROS_ENDINGS)) and not in_nodes:
            found.append(f"{name}: ROS only under nodes/")
    return found


@pytest.mark.parametrize(("room", "path"), MODULES, ids=[str(path.relative_to(ROOT)) for _, path in MODULES])
def test_module_keeps_to_its_room(room: str, path: Path) -> None:
    package = ".".join((room, *path.relative_to(ROOMS[room]).parent.parts))
    assert breaches(room, path.read_text(), package) == []


@pytest.mark.parametrize(
    ("room", "package", "source"),
    [
        ("recap_station", "recap_station", "import recap_policy.runtime"),
        ("recap_station", "recap_station.sim", "def late():\n    import torch"),
        ("recap_teleop", "recap_teleop", "from recap_learner import labels"),
        ("recap_policy", "recap_policy", "from recap_teleop.modes import Mode"),
        ("recap_learner", "recap_learner", "from recap import demo"),
        ("recap_policy", "recap_policy", "import rclpy.node"),
        ("recap_teleop", "recap_teleop", "from sensor_msgs.msg import Joy"),
        ("recap", "recap", "from recap_station.nodes import base"),
        ("recap_station", "recap_station", "from .nodes.base import run"),
        ("recap_station", "recap_station", "from . import nodes"),
    ],
)
def test_breach_is_seen(room: str, package: str, source: str) -> None:
    assert breaches(room, source, package)


def test_every_room_is_looked_at() -> None:
    assert {room for room, _ in MODULES} == set(ROOMS)


def test_allowed_imports_pass() -> None:
    source = "import torch\nfrom recap_station.contract import Station\nfrom recap_policy import runtime"
    assert breaches("recap_learner", source, "recap_learner") == []
    source = "import rclpy\nfrom recap_station.nodes import base"
    assert breaches("recap_teleop", source, "recap_teleop.nodes") == []
