"""`./recap up`: a cell's nodes, by ROS 2's launch where it is installed, else by our own supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from recap.output import Json


def up(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME:=VALUE]...", help="Launch arguments.")
    ] = None,
    show_args: Annotated[bool, typer.Option("--show-args", help="List the launch arguments.")] = False,
    manager: Annotated[
        str, typer.Option(help="launch: ros2 launch; supervisor: without it; auto: the first that is there.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Bring a cell up: station, policy, arbiter, pedal, episode control, recorder, learner. Ctrl-C ends it.

    Example: `./recap up use_sim:=true checkpoint:=runs/demo/iteration_01/policy operator:=scripted`
    """
    from recap import bringup
    from recap.doctor import has_launch

    if show_args:
        if as_json:
            print(json.dumps({"ok": True, "arguments": [asdict(a) for a in bringup.ARGUMENTS]}))
            return
        for argument in bringup.ARGUMENTS:
            choices = f" ({', '.join(argument.choices)})" if argument.choices else ""
            print(f"{argument.name}:={argument.default}\n    {argument.description}{choices}")
        return
    if manager not in ("auto", "launch", "supervisor"):
        raise bringup.UsageError(f"--manager: wanted auto, launch or supervisor, found {manager!r}")
    values = bringup.read_arguments(arguments or [])
    nodes = bringup.plan(values)
    lock = bringup.hold_domain()
    if manager == "launch" or (manager == "auto" and has_launch()):
        code = _launch(arguments or [], lock)
    else:
        from recap.processes import run

        domain = os.environ.get("ROS_DOMAIN_ID", "0")
        print(f"recap: {len(nodes)} nodes on ROS domain {domain}; Ctrl-C ends them", file=sys.stderr)
        code = run(nodes)
    if as_json:
        print(json.dumps({"ok": code == 0, "nodes": [node.spec.name for node in nodes]}))
    raise typer.Exit(code)


def _launch(arguments: list[str], lock: int) -> int:
    """Run `ros2 launch recap bringup.launch.py` → its exit code.

    launch ends its nodes on SIGINT alone: on SIGTERM and SIGHUP it would leave them running. It takes a
    SIGINT for a terminal's, which its nodes have had too, unless it is told that it has no terminal.
    """
    from recap import bringup
    from recap_station.parent import end_with_parent

    # By path: in the checkout's root, `ros2 launch recap ...` takes the script ./recap for a launch file.
    file = bringup.installed_path("share/recap/launch/bringup.launch.py")
    child: subprocess.Popen[bytes] | None = None
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        if child is not None:
            child.send_signal(signal.SIGINT)

    # Before launch is started: to it a signal that is handled here is at its default, so that it hears SIGINT
    # even where this process was started to ignore it (`./recap up &` in a script).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    child = subprocess.Popen(
        ["ros2", "launch", "--noninteractive", str(file), *arguments],
        stdin=subprocess.DEVNULL,
        env={**os.environ, bringup.HELD: str(os.getpid())},
        pass_fds=(lock,) if lock >= 0 else (),
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    if interrupted:
        child.send_signal(signal.SIGINT)
    return child.wait()
