"""What runs on a robot cell, described once: launch arguments and nodes.

`launch/bringup.launch.py` turns the plan made here into launch_ros nodes, `recap.processes` into child
processes where ROS 2's launch is not installed. Neither knows a node of its own.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from recap_policy.description import check
from recap_policy.interface import LAYOUT, check_place, is_remote
from recap_policy.layout import load_layout
from recap_station.contract import ContractError, Station, load_station, load_task
from recap_station.parent import STARTER
from recap_teleop.buttons import read_map
from recap_teleop.kinematics import load_chains
from recap_teleop.leader import load_rows

STOP_S = 4.0  # a node has this long after SIGINT, for instance to close a bag, before it is killed
RESPAWN_S = 1.0  # pause before a node that ended by itself is started again
STARTED_S = 3  # a node that has lived this long has started
REFUSED_S = 60  # but one that ends with exit code 1, as those do that refuse to start, after so long: a busy
# machine takes its time to get there, and once a node runs no error of its own ends it
RETRIES = 3  # further tries to start, in a row, before a node is given up

GIVEN_UP = f"{{name}} did not start {RETRIES + 1} times in a row; given up"

Value = bool | int | str | list[str]


@dataclass(frozen=True)
class Argument:
    """One launch argument `name:=value`. Values are text, as ROS 2 launch has them."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()
    whole: bool = False  # a whole number

    @property
    def spellings(self) -> tuple[str, ...]:
        """What may be written for the choices: truth values also as Python spells them."""
        return (*self.choices, "True", "False") if self.choices == BOOLEAN else self.choices


@dataclass(frozen=True)
class NodeSpec:
    """One node. `arguments` become ROS parameters of the same name, or of another: "parameter=argument";
    `only_if` is (argument, value). `needs` are nodes that a lifecycle manager brings up before it."""

    package: str
    executable: str
    name: str
    arguments: tuple[str, ...] = ()
    only_if: tuple[str, str] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedNode:
    """A node as it is to be started. Parameters: `defaults`, then `params_file`, then `given`; later wins."""

    spec: NodeSpec
    namespace: str
    defaults: Mapping[str, Value] = field(default_factory=dict)
    params_file: str = ""
    given: Mapping[str, Value] = field(default_factory=dict)
    log_level: str = "info"


@dataclass
class Starts:
    """Counts the starts of one node that failed in a row. ROS 2's launch alone would go on forever, or count
    those of a node that lived for days too. Times are seconds of a steady clock."""

    started_s: float
    failed: int = 0

    def again(self, now_s: float, code: int) -> bool:
        """Its process ended with this exit code → whether it is to be started again, RESPAWN_S from now."""
        enough_s = REFUSED_S if code == 1 else STARTED_S
        self.failed = 0 if now_s - self.started_s >= enough_s else self.failed + 1
        self.started_s = now_s + RESPAWN_S
        return self.failed <= RETRIES


BOOLEAN = ("true", "false")
MANAGER = "lifecycle_manager"  # argument and node

HELD = "RECAP_DOMAIN_HELD_BY"  # process that holds the domain's lock for its children

# Like ROS's domains, seen by all users of a machine.
LOCKS = Path("/run/lock" if os.access("/run/lock", os.W_OK) else tempfile.gettempdir())

ARGUMENTS = (
    Argument("namespace", "", "namespace of all nodes and topics"),
    Argument("use_sim_time", "false", "take time from /clock", BOOLEAN),
    Argument("params_file", "", "YAML with ROS parameters: overrides defaults, not arguments given here"),
    Argument("autostart", "true", "nodes configure and activate themselves; false: a manager does", BOOLEAN),
    Argument("lifecycle_manager", "true", "watch the nodes, and bring up those that wait", BOOLEAN),
    Argument("log_level", "info", "of all nodes", ("debug", "info", "warn", "error", "fatal")),
    Argument("use_sim", "true", "start the simulated cell; false: the robot's own drivers run", BOOLEAN),
    Argument("station", "aloha", "robot cell: a name in config/stations, or a path to a YAML"),
    Argument("task", "handover_insert", "task: a name in config/tasks, or a path to a YAML"),
    Argument("checkpoint", "", "folder of the policy, or ws://host:port of one; empty: wait for load_policy"),
    Argument("layout", LAYOUT, "names a policy server is spoken to in: of config/layouts, or a path"),
    Argument("value_checkpoint", "", "folder of the value function; empty: no value is published"),
    Argument("prompt", "", "what the policy is told; empty: the task's prompt"),
    Argument("record", "true", "write a bag of every attempt", BOOLEAN),
    Argument("bag_dir", "bags", "folder for the bags"),
    Argument("pedal", "", "a device in /dev/input/by-id; empty: joy comes from another node"),
    Argument("pedal_keys", "", "its keys, such as KEY_A,KEY_B: button 0, 1, ...; empty: all it has"),
    Argument("actions", "", "what each button asks for; empty: takeover,success,failure"),
    Argument("joy_input", "joy", "without a pedal: topic of a gamepad's joy; another than joy is passed on"),
    Argument("teleop", "none", "what a person moves the arms with", ("none", "leader", "twist")),
    Argument("leader", "", "leader arms: a name in config/leaders, or a path; empty: the station's joints"),
    Argument("leader_drive", "false", "drive the leader to the follower's pose under the policy", BOOLEAN),
    Argument("twist_arms", "", "arms that twists drive, such as left; empty: all"),
    Argument("console", "true", "the operator's console, in a browser; the start prints its link", BOOLEAN),
    Argument("console_host", "127.0.0.1", "address it listens on; another than this machine's wants a token"),
    Argument("console_port", "8090", "its port, or the next free one", whole=True),
    Argument("episode_dir", "episodes", "folder of converted episodes, for the console's attempts"),
    Argument("runs_dir", "runs", "folder of learning runs, for the console's progress"),
    Argument("run", "", "learning run that the learner goes on with; empty: it trains on request alone"),
    Argument("convert", "true", "make episodes of finished attempts, in the run or episode_dir", BOOLEAN),
    Argument("train_after", "0", "new attempts after which the learner trains; 0: on request", whole=True),
    Argument("concurrent", "false", "the learner trains all the time, while the robot collects", BOOLEAN),
    Argument(
        "evaluations", "40", "simulated attempts of each policy before one is offered; 0: none", whole=True
    ),
    Argument("operator", "none", "who takes over: a person (none) or the scripted one", ("none", "scripted")),
)

_BY_NAME = {argument.name: argument for argument in ARGUMENTS}

# Light nodes get no thread pools: the second core belongs to inference.
_LIGHT = (("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"))
_POLICY = ("checkpoint", "layout", "value_checkpoint", "prompt")
_PEDAL = ("device=pedal", "keys=pedal_keys", "actions", "input=joy_input")
_LEADER = ("leader", "drive=leader_drive")
_CONSOLE = ("host=console_host", "port=console_port", "bag_dir", "episode_dir", "runs_dir")
_LEARNER = (
    "run", "convert", "train_after", "concurrent", "evaluations", "bag_dir", "episode_dir", "checkpoint",
)  # fmt: skip
_CELL = ("use_sim_time", "autostart", "use_sim", "station", "task")

NODES = (
    NodeSpec("recap_station", "station_node", "station", _CELL, ("use_sim", "true"), _LIGHT),
    NodeSpec("recap_teleop", "arbiter_node", "arbiter", _CELL, environment=_LIGHT, needs=("station",)),
    NodeSpec("recap_teleop", "pedal_node", "pedal", (*_CELL, *_PEDAL), ("operator", "none"), _LIGHT),
    NodeSpec("recap_teleop", "leader_node", "leader", (*_CELL, *_LEADER), ("teleop", "leader"), _LIGHT),
    NodeSpec("recap_teleop", "twist_node", "twist", (*_CELL, "arms=twist_arms"), ("teleop", "twist"), _LIGHT),
    NodeSpec("recap_teleop", "operator_node", "operator", _CELL, ("operator", "scripted"), _LIGHT),
    NodeSpec("recap_teleop", "episode_node", "episode", _CELL, environment=_LIGHT, needs=("arbiter",)),
    NodeSpec("recap_teleop", "recorder_node", "recorder", (*_CELL, "bag_dir"), ("record", "true"), _LIGHT),
    NodeSpec("recap_policy", "policy_node", "policy", (*_CELL, *_POLICY), needs=("arbiter",)),
    NodeSpec("recap_learner", "learner_node", "learner", (*_CELL, *_LEARNER)),
    NodeSpec("recap", "console_node", "console", (*_CELL, *_CONSOLE), ("console", "true"), _LIGHT),
    NodeSpec("recap", f"{MANAGER}_node", MANAGER, ("use_sim_time",), (MANAGER, "true"), _LIGHT),
)


class UsageError(ValueError):
    """An argument that does not exist or has a value it cannot have. One readable line."""


def read_arguments(words: list[str]) -> dict[str, str]:
    """`name:=value` words → values of all arguments. Raises UsageError, with the nearest name."""
    values = {argument.name: argument.default for argument in ARGUMENTS}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator:
            raise UsageError(f"wanted name:=value, found {word!r}")
        if name not in values:
            close = difflib.get_close_matches(name, values, n=1, cutoff=0.5)
            hint = f", did you mean {close[0]!r}?" if close else f" (there are: {', '.join(values)})"
            raise UsageError(f"no launch argument {name!r}{hint}")
        values[name] = value
    return values


def plan(values: Mapping[str, str]) -> list[PlannedNode]:
    """Values of all arguments → the nodes to start.

    Raises UsageError on a value that an argument cannot have, ContractError when the station, task,
    checkpoint or parameter file named cannot be used: before anything has been started.
    """
    values = {argument.name: _checked(argument, values[argument.name]) for argument in ARGUMENTS}
    station = load_station(values["station"])
    load_task(values["task"])
    folders = {"checkpoint": "policy", "value_checkpoint": "value"}
    if is_remote(values["checkpoint"]):
        check_place(values["checkpoint"], values["value_checkpoint"])
        load_layout(values["layout"])
        del folders["checkpoint"]
    for name, kind in folders.items():
        if values[name] and not Path(values[name]).is_dir():
            raise ContractError(f"{name} {values[name]!r}: wanted the folder of a checkpoint, found none")
        if values[name]:
            check(values[name], kind, station)
    if values["params_file"] and not Path(values["params_file"]).is_file():
        raise ContractError(f"params_file {values['params_file']!r}: no such file")
    if values["run"] and not Path(values["run"]).is_dir():
        raise ContractError(f"run {values['run']!r}: wanted the folder of a learning run, found none")
    if not values["run"] and (values["concurrent"] == "true" or int(values["train_after"])):
        raise UsageError("to train by itself the learner wants a run: run:=FOLDER")
    if values["pedal"] == "keyboard":
        raise UsageError(
            "pedal:=keyboard: the nodes of a bring-up have no terminal; run in one: "
            "python -m recap_teleop.nodes.pedal_node --ros-args -p device:=keyboard"
        )
    _check_devices(values, station)
    namespace = "/" + values["namespace"].strip("/") if values["namespace"].strip("/") else ""
    nodes = []
    chosen = _chosen(values)
    for spec in chosen:
        defaults: dict[str, Value] = {}
        given: dict[str, Value] = {}
        for word in spec.arguments:
            parameter, _, name = word.rpartition("=")
            argument, value = _BY_NAME[name], values[name]
            typed: Value = value == "true" if argument.choices == BOOLEAN else value
            typed = int(value) if argument.whole else typed
            (defaults if value == argument.default else given)[parameter or name] = typed
        if spec.name == MANAGER:
            defaults["nodes"] = managed(chosen)
        # Nodes end with the process that planned them: supervisor's or launch's.
        tied = replace(spec, environment=(*spec.environment, (STARTER, str(os.getpid()))))
        nodes.append(
            PlannedNode(tied, namespace, defaults, values["params_file"], given, values["log_level"])
        )
    return nodes


def _check_devices(values: Mapping[str, str], station: Station) -> None:
    """What a person takes over with, before anything has been started. Raises as `plan` does."""
    read_map(values["actions"])
    if values["teleop"] != "none" and values["operator"] == "scripted":
        raise UsageError("operator:=scripted moves the arms itself: wanted teleop:=none")
    if values["leader"]:
        load_rows(values["leader"], station)
    if values["teleop"] == "twist":
        load_chains(values["station"])


def managed(nodes: Iterable[NodeSpec]) -> list[str]:
    """The lifecycle manager's parameter `nodes`: names in order, with what each needs of those there are."""
    words: dict[str, str] = {}
    for spec in nodes:
        needs = ",".join(name for name in spec.needs if name in words)
        words[spec.name] = f"{spec.name}:{needs}" if needs else spec.name
    return [word for name, word in words.items() if name != MANAGER]


def managed_by_default() -> list[str]:
    """The same for a bring-up without arguments."""
    return managed(_chosen({argument.name: argument.default for argument in ARGUMENTS}))


def _chosen(values: Mapping[str, str]) -> list[NodeSpec]:
    return [spec for spec in NODES if spec.only_if is None or values[spec.only_if[0]] == spec.only_if[1]]


def _checked(argument: Argument, value: str) -> str:
    if argument.choices and value not in argument.spellings:
        raise UsageError(f"{argument.name}: wanted {' or '.join(argument.choices)}, found {value!r}")
    if argument.whole and not value.isdecimal():
        raise UsageError(f"{argument.name}: wanted a whole number, found {value!r}")
    return value.lower() if argument.choices == BOOLEAN else value


def installed_path(name: str) -> Path:
    """Where an installed file lies, by its path below the prefix: lib/<package>/<executable>.

    Raises ContractError when the workspace is not built or not sourced.
    """
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        path = Path(prefix) / name
        if prefix and path.is_file():
            return path
    raise ContractError(f"no {name} in AMENT_PREFIX_PATH; build ros2_ws with colcon and source it")


class DomainBusyError(ContractError):
    """Another stack runs on this ROS domain: two would drive one robot."""


def hold_domain(folder: Path = LOCKS) -> int:
    """Take this machine's ROS domain for one stack, until this process ends; → file descriptor.

    The lock is the kernel's (flock), so that a crash frees it; the file only tells who holds it. → -1
    where the process that started this one holds it. Raises DomainBusyError with the holder and a way out.
    """
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    path = folder / f"recap-domain-{domain}.lock"
    try:
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.fchmod(handle, 0o666)  # whatever the umask: the next holder may be someone else
    except OSError as error:
        raise ContractError(f"{path}, lock of ROS domain {domain}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 100, 0).decode(errors="replace").strip()
        os.close(handle)
        if holder and holder == os.environ.get(HELD):
            return -1
        raise DomainBusyError(
            f"ROS domain {domain} is in use by another stack (process {holder or 'unknown'}); "
            "stop it, or set ROS_DOMAIN_ID to another number from 1 to 101"
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle
