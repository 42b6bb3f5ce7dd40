"""A node's parameters, declared from one table with unit, range and text."""

from __future__ import annotations

from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from recap_station.contract import ContractError


@dataclass(frozen=True)
class Param:
    """One row of a node's parameter table. Ranges are inclusive and apply to numbers only."""

    name: str
    default: bool | int | float | str | list[str] | list[int] | list[float]
    description: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    read_only: bool = True


COMMON = (
    Param("station", "aloha", "robot cell: a name in config/stations, or a path to a YAML"),
    Param("task", "handover_insert", "task: a name in config/tasks, or a path to a YAML"),
    Param("autostart", True, "configure and activate without a lifecycle manager"),
    Param("use_sim", True, "the robot cell is the simulated one"),
)


def declare(node: Node, row: Param) -> None:
    """Declare one parameter. Raises ContractError, in one line, on a value of the wrong type or range."""
    text = f"{row.description} [{row.unit}]" if row.unit else row.description
    descriptor = ParameterDescriptor(name=row.name, description=text, read_only=row.read_only)
    if row.low is not None or row.high is not None:
        low = -1e300 if row.low is None else row.low
        high = 1e300 if row.high is None else row.high
        if isinstance(row.default, float):
            floats = FloatingPointRange(from_value=float(low), to_value=float(high))
            descriptor.floating_point_range = [floats]
        else:
            bound = 2**63 - 1
            integers = IntegerRange(from_value=int(max(low, -bound)), to_value=int(min(high, bound)))
            descriptor.integer_range = [integers]
    given = node._parameter_overrides.get(row.name)
    if isinstance(row.default, float) and given is not None and isinstance(given.value, int):
        # `rate_hz:=50` on a command line is an integer to ROS; a person means 50.0.
        node._parameter_overrides[row.name] = RosParameter(row.name, value=float(given.value))
    try:
        node.declare_parameter(row.name, row.default, descriptor)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        wanted = type(row.default).__name__
        if row.low is not None or row.high is not None:
            wanted += f" in {row.low} .. {row.high}"
        found = given.value if given is not None else row.default
        raise ContractError(f"parameter {row.name}: wanted {wanted}, found {found!r}") from error
