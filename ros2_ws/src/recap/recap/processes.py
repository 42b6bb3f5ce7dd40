"""The planned nodes as child processes, for machines without ROS 2's launch.

supervisor (supervisord's own classes, in this process) starts, restarts and stops them; this module
writes its configuration from the plan, prefixes every line with the node's name, and says what ended.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from supervisor import events
from supervisor.medusa.asyncore_25 import ExitNow
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from recap.bringup import GIVEN_UP, RETRIES, STARTED_S, STOP_S, PlannedNode, Starts, installed_path

POLL_S = 0.1  # how soon a signal or an exit is noticed; supervisor alone would take a second


def command(node: PlannedNode, folder: Path) -> list[str]:
    """Command line of one node, ROS parameters written to files in `folder` as ros2 launch does."""
    words = [str(installed_path(f"lib/{node.spec.package}/{node.spec.executable}")), "--ros-args"]
    words += ["-r", f"__node:={node.spec.name}"]
    if node.namespace:
        words += ["-r", f"__ns:={node.namespace}"]
    layers = {"defaults": node.defaults, "given": node.given}
    for layer, parameters in layers.items():
        if parameters:
            file = folder / f"{node.spec.name}.{layer}.yaml"
            file.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(parameters)}}))
            words += ["--params-file", str(file)]
        if layer == "defaults" and node.params_file:
            words += ["--params-file", node.params_file]
    return [*words, "--log-level", node.log_level]


def configuration(nodes: Sequence[PlannedNode], folder: Path) -> str:
    """supervisord's configuration. All nodes are one group: they are told to stop at the same time."""
    names = ",".join(node.spec.name for node in nodes)
    lines = [
        *("[supervisord]", "nodaemon=true", "silent=true", "logfile=/dev/null", "logfile_maxbytes=0"),
        *(f"pidfile={folder}/supervisord.pid", f"childlogdir={folder}"),
        *("[group:stack]", f"programs={names}"),
    ]
    for node in nodes:
        text = " ".join(quote(word) for word in command(node, folder)).replace("%", "%%")
        lines += [
            *(f"[program:{node.spec.name}]", f"command={text}"),
            *("autorestart=true", f"startsecs={STARTED_S}", f"startretries={RETRIES}"),
            *("stopsignal=INT", f"stopwaitsecs={STOP_S:.0f}", "killasgroup=true"),
            *("redirect_stderr=true", "stdout_logfile=NONE", "stdout_events_enabled=true"),
        ]
        variables = ",".join(f'{name}="{value}"' for name, value in node.spec.environment)
        if variables:
            lines.append(f"environment={variables}")
    return "\n".join(lines) + "\n"


class _Stack(Supervisor):
    """supervisord that writes its children's lines, prefixed, to stdout, and knows which it gave up."""

    def __init__(self, options: ServerOptions, names: Sequence[str]) -> None:
        super().__init__(options)
        self.names = names
        self.given_up: set[str] = set()
        self._width = max(map(len, names))
        self._pending: dict[str, bytes] = {}
        self._starts = {name: Starts(time.monotonic()) for name in names}

    def runforever(self) -> None:
        events.subscribe(events.ProcessLogEvent, self._on_output)
        events.subscribe(events.ProcessStateExitedEvent, self._on_exit)
        events.subscribe(events.ProcessStateBackoffEvent, self._on_failed_start)
        events.subscribe(events.ProcessStateFatalEvent, self._on_fatal)
        poller = self.options.poller
        poll = poller.poll
        poller.poll = lambda timeout: poll(min(timeout, POLL_S))
        super().runforever()

    def _on_output(self, event: Any) -> None:
        name = event.process.config.name
        data = event.data if isinstance(event.data, bytes) else event.data.encode()
        *lines, rest = (self._pending.get(name, b"") + data).split(b"\n")
        self._pending[name] = rest
        for line in lines:
            self._print(name, line.decode(errors="replace"))

    def _on_exit(self, event: Any) -> None:
        if self.options.mood <= 0:
            return  # everything is being stopped
        name, status = event.process.config.name, event.process.exitstatus
        how = "was killed" if status == -1 else f"ended with exit code {status}"
        if self._starts[name].again(time.monotonic(), status):
            self._print(name, f"{how}; starting it again")
        else:
            self._print(name, how)
            event.process.config.autorestart = False
            self._give_up(name)

    def _on_failed_start(self, event: Any) -> None:
        name = event.process.config.name
        self._starts[name].again(time.monotonic(), -1)  # supervisor itself gives up after too many of these
        self._print(name, f"ended within {STARTED_S} s of its start; trying again")

    def _on_fatal(self, event: Any) -> None:
        self._give_up(event.process.config.name)

    def _give_up(self, name: str) -> None:
        self.given_up.add(name)
        self._print(name, GIVEN_UP.format(name="it"))
        if self.given_up.issuperset(self.names):
            self.options.mood = -1  # supervisor's word for: shut down

    def _print(self, name: str, text: str) -> None:
        try:
            print(f"{name:<{self._width}} | {text}", flush=True)
        except OSError:  # whoever read this, or the terminal, is gone; the nodes are looked after still
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115


def run(nodes: Sequence[PlannedNode]) -> int:
    """Keep the nodes running until SIGINT, SIGTERM or SIGHUP → 0, or 1 when one was given up on the way."""
    with tempfile.TemporaryDirectory(prefix="recap-up-") as name:
        folder = Path(name)
        file = folder / "supervisord.conf"
        file.write_text(configuration(nodes, folder))
        options = ServerOptions()
        options.realize(["-c", str(file)], doc="")
        options.first, options.test = True, False  # set by supervisord's main, which is not used here
        stack = _Stack(options, [node.spec.name for node in nodes])
        with contextlib.suppress(ExitNow):  # supervisor's way to say that all have ended
            stack.main()
    return 1 if stack.given_up else 0
