"""Writes the tables of docs/ros2.md: what each node says, hears, offers and takes, read from the nodes.

    python -m recap.nodes.reference docs/ros2.md            # puts them in place
    python -m recap.nodes.reference docs/ros2.md --check    # 1 where they differ from the nodes

Every node of the bring-up is made and configured once, in this process, and asked.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rclpy.action import get_action_server_names_and_types_by_node
from rclpy.context import Context
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from recap.bringup import ARGUMENTS, NODES, NodeSpec
from recap_station.nodes.base import REALTIME_TEXT, RecapNode
from recap_station.nodes.params import COMMON

BEGIN, END = "<!-- python -m recap.nodes.reference docs/ros2.md -->", "<!-- end -->"
OF_ROS = ("/parameter_events", "/rosout")
COMMON_NAMES = {row.name for row in COMMON} | {"use_sim_time", "start_type_description_service"}
REALTIME = "realtime_priority"


def tables(domain: int = 89) -> str:
    """All tables as Markdown. The nodes are made in a ROS domain of their own and destroyed again."""
    parts = [_launch_arguments(), _common_parameters()]
    context = Context()
    rclpy.init(args=["--ros-args", "--log-level", "error"], context=context, domain_id=domain)
    try:
        for spec in NODES:
            with _configured(spec, context) as node:
                parts.append(_about(spec, node))
    finally:
        context.shutdown()
    return "\n\n".join(parts)


@contextmanager
def _configured(spec: NodeSpec, context: Context) -> Iterator[RecapNode]:
    module = importlib.import_module(f"{spec.package}.nodes.{spec.executable}")
    [kind] = [one for one in vars(module).values() if _is_node(one) and one.__module__ == module.__name__]
    node = kind(context=context)
    try:
        node._configure()
        yield node
    finally:
        node.cleanup()
        node.destroy_node()


def _is_node(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, RecapNode)


def _launch_arguments() -> str:
    rows = [
        (f"`{a.name}`", f"`{a.default}`" if a.default else "", ", ".join(a.choices), a.description)
        for a in ARGUMENTS
    ]
    return "### Launch arguments\n\n" + _table(("argument", "default", "choices", "meaning"), rows)


def _common_parameters() -> str:
    rows = [(f"`{row.name}`", f"`{_text(row.default)}`", row.description) for row in COMMON]
    rows.append(("`use_sim_time`", "`false`", "take time from /clock"))
    rows.append((f"`{REALTIME}`", "`-1`", REALTIME_TEXT))
    return "### Parameters of every node\n\n" + _table(("parameter", "default", "meaning"), rows)


def _about(spec: NodeSpec, node: RecapNode) -> str:
    actions = get_action_server_names_and_types_by_node(node, node.get_name(), node.get_namespace())
    own = f"{node.get_name()}/"  # services that every lifecycle node has
    rows = [
        *_endpoints("publishes", ((p.topic, p.msg_type, _qos(p.qos_profile)) for p in node.publishers)),
        *_endpoints("hears", ((s.topic_name, s.msg_type, _qos(s.qos_profile)) for s in node.subscriptions)),
        *_endpoints("service", ((s.srv_name, s.srv_type, "") for s in node.services), own),
        *_endpoints("calls", ((c.srv_name, c.srv_type, "") for c in node.clients)),
        *(("action", f"`{name.removeprefix('/')}`", ", ".join(kinds), "") for name, kinds in actions),
    ]
    text = f"### {spec.name}\n\n`ros2 run {spec.package} {spec.executable}`"
    if spec.only_if:
        text += f", when `{spec.only_if[0]}:={spec.only_if[1]}`"
    text += "\n\n" + _table(("", "name", "type", "quality of service"), rows)
    parameters = list(_parameters(node))
    if parameters:
        head = ("parameter", "default", "range", "changed while running", "meaning")
        text += "\n\n" + _table(head, parameters)
    return text


def _endpoints(
    what: str, found: Iterable[tuple[str, Any, str]], but: str | None = None
) -> Iterator[tuple[str, ...]]:
    """Rows by name for (name, class, quality), without those of every ROS node and those `but` begins."""
    for name, kind, quality in sorted(found, key=lambda row: row[0]):
        relative = name if name == "/diagnostics" else name.removeprefix("/")
        if name not in OF_ROS and not (but and relative.startswith(but)):
            package, group, *_ = kind.__module__.split(".")
            yield what, f"`{relative}`", f"{package}/{group}/{kind.__name__}", quality


def _qos(profile: QoSProfile) -> str:
    reliable = profile.reliability is ReliabilityPolicy.RELIABLE
    latched = profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
    kept = "latched, " if latched else ""
    return f"{'reliable' if reliable else 'best effort'}, {kept}last {profile.depth}"


def _parameters(node: RecapNode) -> Iterator[tuple[str, ...]]:
    names = sorted(node._parameters)
    for name, described in zip(names, node.describe_parameters(names), strict=True):
        value = node.get_parameter(name).value
        if name in COMMON_NAMES or (name, value) == (REALTIME, -1):
            continue
        span = next(iter([*described.floating_point_range, *described.integer_range]), None)
        limits = f"{_text(span.from_value)} … {_text(span.to_value)}" if span else ""
        changed = "no" if described.read_only else "yes"
        yield f"`{name}`", f"`{_text(value)}`", limits, changed, described.description


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if value in ("", [""]) else str(value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("document", type=Path)
    parser.add_argument("--check", action="store_true", help="say what differs instead of writing it")
    options = parser.parse_args()
    old = options.document.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{options.document}: wanted a line {BEGIN} and, below it, {END}")
    new = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"
    if not options.check:
        options.document.write_text(new)
    elif new != old:
        sys.exit("\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "document", "nodes", "")))


if __name__ == "__main__":
    main()
