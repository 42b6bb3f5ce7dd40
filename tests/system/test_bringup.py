"""Bring-up: one description, started by ros2 launch or by supervisor; nothing is left running."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import logging
import os
import pty
import runpy
import signal
import subprocess
import sys
import termios
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from recap import bringup, processes
from recap.bringup import ContractError, NodeSpec, PlannedNode, UsageError
from recap.doctor import has_launch
from recap_station.bags import BagReader

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILE = ROOT / "launch/bringup.launch.py"


def planned(*words: str) -> list[PlannedNode]:
    return bringup.plan(bringup.read_arguments(list(words)))


# --- the description ------------------------------------------------------------------------------


def test_default_plan_is_the_whole_cell() -> None:
    names = [node.spec.name for node in planned()]
    cell = ["arbiter", "console", "episode", "learner", "pedal", "policy", "recorder", "station"]
    assert sorted(names) == sorted([*cell, "lifecycle_manager"])


@pytest.mark.parametrize(
    ("word", "without", "having"),
    [
        ("operator:=scripted", "pedal", "operator"),
        ("record:=false", "recorder", "arbiter"),
        ("console:=false", "console", "arbiter"),
        ("use_sim:=False", "station", "arbiter"),
        ("teleop:=leader", "twist", "leader"),
        ("teleop:=twist", "leader", "twist"),
    ],
)
def test_arguments_choose_nodes(word: str, without: str, having: str) -> None:
    names = [node.spec.name for node in planned(word)]
    assert without not in names
    assert having in names


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("taks:=x", UsageError, "'task'"),
        ("task", UsageError, "name:=value"),
        ("use_sim:=maybe", UsageError, "true or false"),
        ("task:=handover_inser", ContractError, "'handover_insert'"),
        ("station:=alhoa", ContractError, "'aloha'"),
        ("checkpoint:=no/such/folder", ContractError, "no/such/folder"),
        ("params_file:=none.yaml", ContractError, "none.yaml"),
        ("pedal:=keyboard", UsageError, "no terminal"),
        ("actions:=sucess", ContractError, "did you mean 'success'"),
        ("leader:=exampel", ContractError, "did you mean 'example'"),
        ("concurrent:=true", UsageError, "run:=FOLDER"),
        ("train_after:=5", UsageError, "run:=FOLDER"),
        ("run:=no/run", ContractError, "no/run"),
        ("console_port:=http", UsageError, "whole number, found 'http'"),
        ("teleop:=leeder", UsageError, "none or leader or twist"),
    ],
)
def test_wrong_argument_is_refused_before_anything_starts(word: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        planned(word)


def test_scripted_operator_and_leader_arms_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="wanted teleop:=none"):
        planned("operator:=scripted", "teleop:=leader")


def test_checkpoint_of_another_robot_is_refused_before_anything_starts(tmp_path: Path) -> None:
    station = bringup.load_station("aloha")
    other = replace(station, joints=(replace(station.joints[0], name="left_base"), *station.joints[1:]))
    about = {"format": 1, "identity": "0", "tower": "0", "prompts": [], "lineage": {}}
    folders = (("ours", "policy", station), ("value", "value", station), ("theirs", "policy", other))
    for name, kind, robot in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(
            json.dumps({**about, "kind": kind, "station": robot.to_dict()})
        )
        (tmp_path / name / "weights.safetensors").touch()
    assert planned(f"checkpoint:={tmp_path / 'ours'}")
    with pytest.raises(ContractError, match="another robot: found joint 'left_base', wanted 'left_waist'"):
        planned(f"checkpoint:={tmp_path / 'theirs'}")
    with pytest.raises(ContractError, match="checkpoint of a value, wanted a policy"):
        planned(f"checkpoint:={tmp_path / 'value'}")
    with pytest.raises(ContractError, match="no checkpoint there"):
        planned(f"checkpoint:={tmp_path}")


@pytest.mark.parametrize("word", ["use_sim_time:=True", "use_sim_time:=true"])
def test_truth_values_may_be_spelt_as_python_does(word: str) -> None:
    assert all(node.given == {"use_sim_time": True} for node in planned(word))


def test_arguments_given_win_over_parameter_file_and_that_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{}")
    node = next(n for n in planned(f"params_file:={file}", "prompt:=go on") if n.spec.name == "policy")
    words = processes.command(node, tmp_path) if _installed() else []
    assert node.given == {"prompt": "go on"}
    assert node.defaults["use_sim_time"] is False
    files = [Path(words[i + 1]) for i, word in enumerate(words) if word == "--params-file"]
    if files:
        assert files[1] == file
        assert yaml.safe_load(files[2].read_text()) == {"/**": {"ros__parameters": {"prompt": "go on"}}}


def _installed() -> bool:
    try:
        bringup.installed_path("lib/recap_policy/policy_node")
    except ContractError:
        return False
    return True


def test_nodes_are_installed_by_their_packages() -> None:
    """What the description starts is a console script of the package it names."""
    for spec in bringup.NODES:
        folder = ROOT / "ros2_ws/src" / spec.package
        scripts = ast.literal_eval(_keyword(folder / "setup.py", "entry_points"))["console_scripts"]
        assert f"{spec.executable} = {spec.package}.nodes.{spec.executable}:main" in scripts


def _keyword(setup: Path, name: str) -> ast.expr:
    for node in ast.walk(ast.parse(setup.read_text())):
        if isinstance(node, ast.keyword) and node.arg == name:
            return node.value
    raise AssertionError(f"{setup} has no {name}")


# --- the launch file is the same description -------------------------------------------------------


class Recorded:
    """Stands for a class of launch or launch_ros and keeps what it was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class Configuration(Recorded):
    def perform(self, values: dict[str, str]) -> str:
        return values[self.args[0]]


@pytest.fixture
def recording_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        "launch": {"LaunchContext": dict, "LaunchDescription": Recorded},
        "launch.actions": {
            "DeclareLaunchArgument": type("DeclareLaunchArgument", (Recorded,), {}),
            "OpaqueFunction": type("OpaqueFunction", (Recorded,), {}),
            "EmitEvent": Recorded,
        },
        "launch.events": {"matches_action": lambda action: action},
        "launch.events.process": {"ProcessExited": object, "ShutdownProcess": Recorded},
        "launch.logging": {"get_logger": logging.getLogger},
        "launch.substitutions": {"LaunchConfiguration": Configuration},
        "launch_ros": {},
        "launch_ros.actions": {"Node": Recorded},
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("words", [(), ("operator:=scripted", "record:=false", "namespace:=cell_1")])
def test_launch_file_and_up_start_the_same(
    recording_launch: None, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(bringup, "hold_domain", lambda: -1)
    description = runpy.run_path(str(LAUNCH_FILE))["generate_launch_description"]()
    *declared, start = description.args[0]
    assert {d.args[0]: d.kwargs["default_value"] for d in declared} == bringup.read_arguments([])

    nodes = start.kwargs["function"](bringup.read_arguments(list(words)))
    expected = planned(*words)
    assert [(n.kwargs["package"], n.kwargs["executable"], n.kwargs["name"]) for n in nodes] == [
        (n.spec.package, n.spec.executable, n.spec.name) for n in expected
    ]
    for made, node in zip(nodes, expected, strict=True):
        merged = {key: value for layer in made.kwargs["parameters"] for key, value in layer.items()}
        assert merged == {**node.defaults, **node.given}
        assert made.kwargs["namespace"] == node.namespace


def test_launch_gives_a_node_up_that_never_starts_as_supervisor_does(
    recording_launch: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bringup, "hold_domain", lambda: -1)
    start = runpy.run_path(str(LAUNCH_FILE))["generate_launch_description"]().args[0][-1]
    arbiter = next(
        node for node in start.kwargs["function"](bringup.read_arguments([]))
        if node.kwargs["name"] == "arbiter"
    )  # fmt: skip
    on_exit = arbiter.kwargs["on_exit"]
    context = types.SimpleNamespace(is_shutdown=False)
    refused = types.SimpleNamespace(returncode=1)
    assert [on_exit(refused, context) for _ in range(3)] == [[], [], []]
    [emitted] = on_exit(refused, context)
    assert emitted.kwargs["event"].kwargs["process_matcher"] is arbiter
    assert "arbiter did not start 4 times in a row; given up" in caplog.text
    assert on_exit(refused, types.SimpleNamespace(is_shutdown=True)) == []


def test_a_node_that_has_lived_counts_as_started() -> None:
    starts = bringup.Starts(0.0)
    now = 0.0
    for _ in range(50):
        now += bringup.STARTED_S + 1.5
        assert starts.again(now, -9)
    for _ in range(bringup.RETRIES):
        now += 2.0
        assert starts.again(now, -9)
    assert not starts.again(now + 2.0, -9)


def test_a_node_that_refuses_is_given_up_on_a_busy_machine_too() -> None:
    starts = bringup.Starts(0.0)
    assert [starts.again(50.0 * n, 1) for n in range(1, 5)] == [True, True, True, False]


# --- under supervisor -------------------------------------------------------------------------------

RUNNER = """
import sys
from recap.bringup import NodeSpec, PlannedNode
from recap.processes import run
sys.exit(run([PlannedNode(NodeSpec("toys", name, name), "") for name in sys.argv[1:]]))
"""
TOYS = {
    "steady": "import time\nprint('at work', flush=True)\ntime.sleep(600)",
    "fragile": "import sys, time\nprint('up', flush=True)\ntime.sleep(3.5)\nsys.exit(3)",
    "hesitant": "import sys, time\nprint('thinking', flush=True)\ntime.sleep(3.5)\nsys.exit(1)",
    "broken": "import sys\nsys.exit('wanted a camera, found none')",
    # Ignores every polite request, and so does the process it has started.
    "deaf": "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print('deaf', flush=True)\ntime.sleep(600)",
}


class Stack:
    """Toy nodes under recap.processes in a process of their own."""

    def __init__(self, prefix: Path, *names: str) -> None:
        folder = prefix / "lib" / "toys"
        folder.mkdir(parents=True)
        for name in names:
            file = folder / name
            file.write_text(f"#!{sys.executable}\n{TOYS[name]}\n")
            file.chmod(0o755)
        environment = {**os.environ, "AMENT_PREFIX_PATH": str(prefix)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, *names],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.lines: list[str] = []

    def read_until(self, *wanted: str) -> None:
        """Read lines until each of `wanted` has been seen in one, in any order."""
        assert self.process.stdout is not None
        missing = set(wanted)
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            missing -= {text for text in missing if text in line}
            if not missing:
                return
        raise AssertionError(f"ended without {missing}: {self.lines}")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> tuple[int, float, list[psutil.Process]]:
        """Ctrl-C → exit code, seconds until the end, processes left."""
        family = self.family()
        begin = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        took = time.monotonic() - begin
        return code, took, [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Any]:
    started: list[Stack] = []

    def start(*names: str) -> Stack:
        started.append(Stack(tmp_path / "prefix", *names))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            for process in one.family():
                process.kill()
            one.process.kill()
            one.process.wait()


@pytest.mark.timeout(60)
def test_crashed_node_is_started_again_and_the_others_stay(stack: Any) -> None:
    graph = stack("steady", "fragile")
    graph.read_until("steady  | at work", "fragile | up")
    steady = [p.pid for p in graph.family() if any("steady" in word for word in p.cmdline())]
    graph.read_until("fragile | ended with exit code 3")
    graph.read_until("fragile | up")
    assert steady == [p.pid for p in graph.family() if any("steady" in word for word in p.cmdline())]
    code, _, left = graph.interrupt()
    assert (code, left) == (0, [])


@pytest.mark.timeout(60)
def test_interrupt_ends_even_deaf_nodes_and_their_children(stack: Any) -> None:
    graph = stack("steady", "deaf")
    graph.read_until("at work", "deaf   | deaf")
    assert len(graph.family()) == 3
    code, took, left = graph.interrupt()
    assert (code, left) == (0, [])
    assert took < 10.0  # after STOP_S, unless the machine has much else to do


@pytest.mark.timeout(60)
def test_node_that_never_starts_is_given_up_with_its_reason(stack: Any) -> None:
    graph = stack("broken")
    graph.read_until("broken | wanted a camera, found none", "trying again")
    graph.read_until("given up")
    assert graph.process.wait(30) == 1


@pytest.mark.timeout(90)
def test_node_that_takes_its_time_to_refuse_is_given_up_as_well(stack: Any) -> None:
    graph = stack("hesitant")
    graph.read_until("hesitant | ended with exit code 1; starting it again")
    graph.read_until("given up")
    assert sum("thinking" in line for line in graph.lines) == bringup.RETRIES + 1
    assert graph.process.wait(30) == 1


def test_missing_executable_is_one_line() -> None:
    node = PlannedNode(NodeSpec("toys", "nothing", "nothing"), "")
    with pytest.raises(ContractError, match="nothing"):
        processes.run([node])


# --- one stack for each domain -----------------------------------------------------------------------


def test_domain_in_use_is_refused_until_its_holder_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "77")
    code = (
        "import sys, pathlib; from recap.bringup import hold_domain\n"
        "hold_domain(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        said = rf"domain 77 .*process {holder.pid}\).*ROS_DOMAIN_ID"
        with pytest.raises(bringup.DomainBusyError, match=said):
            bringup.hold_domain(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    os.close(bringup.hold_domain(tmp_path))


# --- the real nodes, under ROS 2's own launch where it is and under supervisor everywhere -------------

needs_launch = pytest.mark.skipif(not has_launch(), reason="needs ROS 2's launch")

# Waits until the cell is commanded, starts an attempt and returns when it is being recorded.
CLIENT = """
import sys, time
import rclpy
from recap_interfaces.msg import Episode
from recap_interfaces.srv import StartEpisode
from recap_station.nodes import qos
from sensor_msgs.msg import JointState

def wait(condition, what, seconds=100.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"no {what} within {seconds} s; nodes: {sorted(node.get_node_names())}")
        rclpy.spin_once(node, timeout_sec=0.1)

rclpy.init()
node = rclpy.create_node("test")
commands, episodes = [], []
node.create_subscription(JointState, "joint_command", commands.append, qos.COMMAND)
node.create_subscription(Episode, "episode", episodes.append, qos.LATCHED)
wanted = set(sys.argv[1:])
wait(lambda: wanted <= set(node.get_node_names()), f"nodes {wanted}")
wait(lambda: len(commands) > 50, "joint_command")
start = node.create_client(StartEpisode, "start_episode")
wait(start.service_is_ready, "start_episode service")
answer = start.call_async(StartEpisode.Request(seed=3))
wait(answer.done, "answer of start_episode")
assert answer.result().success, answer.result().message
wait(lambda: episodes and episodes[-1].state == Episode.RUNNING, "running episode")
begin = len(commands)
wait(lambda: len(commands) > begin + 50, "joint_command during the attempt")
"""


class Terminal:
    """A program on a terminal of its own, as a person starts it."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / "terminal.log"
        self._master, terminal = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever the tests were started with

        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                words, stdin=terminal, stdout=file, stderr=subprocess.STDOUT,
                cwd=folder, env=environment, start_new_session=True, preexec_fn=take_terminal,
            )  # fmt: skip
        os.close(terminal)
        self._family: list[psutil.Process] = []

    def ctrl_c(self) -> tuple[int, float, list[psutil.Process]]:
        """→ exit code, seconds until the end, processes left."""
        self._family = psutil.Process(self.process.pid).children(recursive=True)
        begin = time.monotonic()
        os.write(self._master, b"\x03")
        code = self.process.wait(30)
        took = time.monotonic() - begin
        return code, took, [p for p in self._family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def close(self) -> None:
        if self.process.poll() is None:
            self._family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        os.close(self._master)


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "-m", "recap", "up", "--manager", "supervisor"], id="supervisor"),
        pytest.param([sys.executable, "-m", "recap", "up"], id="up-by-launch", marks=needs_launch),
        pytest.param(["ros2", "launch", "recap", "bringup.launch.py"], id="ros2-launch", marks=needs_launch),
    ],
)
def test_whole_cell_comes_up_and_ctrl_c_ends_it_with_the_bag_closed(
    command: list[str], tmp_path: Path
) -> None:
    environment = {**os.environ, "ROS_DOMAIN_ID": str(60 + os.getpid() % 40)}
    arguments = ["operator:=scripted", "bag_dir:=bags"]
    terminal = Terminal([*command, *arguments], tmp_path, environment)
    try:
        names = [node.spec.name for node in planned(*arguments)]
        client = subprocess.run(
            [sys.executable, "-c", CLIENT, *names], capture_output=True, text=True, env=environment
        )
        assert client.returncode == 0, client.stderr + terminal.log.read_text()
        code, took, left = terminal.ctrl_c()
        said = terminal.log.read_text()
        assert (code, left) == (0, []), said
        assert took < 15.0, said  # one or two seconds, unless the machine has much else to do
        if "launch" in command:
            assert said.count("process has finished cleanly") == len(names)
        [bag] = (tmp_path / "bags").iterdir()
        assert BagReader(bag).closed_cleanly
    finally:
        terminal.close()


ROS2 = """#!{python}
# Stands for ros2: says how it was called and waits for Ctrl-C.
import os, sys, time
try:
    print("called with", *sys.argv[1:], "terminal" if os.isatty(0) else "no terminal", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_up_is_a_ctrl_c_to_launch(number: int, tmp_path: Path) -> None:
    """launch hands a SIGINT on when it has no terminal; `./recap up &` in a script begins with it ignored."""
    ros2 = tmp_path / "ros2"
    ros2.write_text(ROS2.format(python=sys.executable))
    ros2.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ROS_DOMAIN_ID": "78"}
    process = subprocess.Popen(
        [sys.executable, "-m", "recap", "up", "--manager", "launch", "record:=false"],
        stdout=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        called = process.stdout.readline()
        assert called.startswith("called with launch --noninteractive ")
        assert called.endswith("/bringup.launch.py record:=false no terminal\n")
        process.send_signal(number)
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def ros2_launch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ros2", "launch", *words], capture_output=True, text=True, timeout=60, cwd=cwd)


@needs_launch
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("taks:=x", "no launch argument 'taks', did you mean 'task'?"),
        ("task:=handover_inser", "did you mean 'handover_insert'?"),
        ("use_sim:=maybe", "are: ['true', 'false', 'True', 'False']"),
    ],
)
def test_ros2_launch_refuses_a_wrong_argument(word: str, said: str, tmp_path: Path) -> None:
    for named in (["recap", LAUNCH_FILE.name], [str(LAUNCH_FILE)]):
        done = ros2_launch(*named, word, cwd=tmp_path)
        assert done.returncode == 1
        assert said in done.stderr + done.stdout


@needs_launch
def test_launch_file_can_be_included_by_one_with_arguments_of_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.launch.yaml"
    mine.write_text(
        "launch:\n"
        "  - arg: {name: taks, default: handover_insert}\n"
        f"  - include: {{file: {LAUNCH_FILE}, arg: [{{name: task, value: $(var taks)}}]}}\n"
    )
    done = ros2_launch(str(mine), "taks:=handover_inser", cwd=tmp_path)
    assert "no task 'handover_inser'" in done.stderr + done.stdout  # got through to it; nothing is started


@needs_launch
def test_launch_file_is_found_by_its_path_in_the_checkout() -> None:
    """There `ros2 launch recap ...` takes the script ./recap for a launch file."""
    assert ros2_launch("launch/bringup.launch.py", "--show-args", cwd=ROOT).returncode == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_however_bring_up_ends_no_node_goes_on(number: int, tmp_path: Path) -> None:
    """Killed, its terminal closed, or told to end: nothing may command a robot that nobody looks after."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(60 + os.getpid() % 40)}
    log = tmp_path / "up.log"
    with log.open("w") as file:
        graph = subprocess.Popen(
            [sys.executable, "-m", "recap", "up", "--manager", "supervisor", "record:=false"],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment,
        )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 60.0
        while "no checkpoint" not in log.read_text():  # the policy node is up
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        family = psutil.Process(graph.pid).children(recursive=True)
        assert len(family) >= 6
        graph.send_signal(number)
        graph.wait(20)
        _, left = psutil.wait_procs(family, timeout=20.0)
        assert left == []
    finally:
        graph.kill()
        graph.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@needs_launch
def test_ros2_launch_shows_every_argument(tmp_path: Path) -> None:
    done = ros2_launch("recap", "bringup.launch.py", "--show-args", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for argument in bringup.ARGUMENTS:
        assert f"'{argument.name}'" in done.stdout
