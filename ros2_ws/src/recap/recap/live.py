"""Live attempts over real ROS 2 topics at 50 Hz: bring the whole graph up, run attempts, take it down."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from recap.stages import Report
from recap_station.parent import end_with_parent

POLL_S = 0.2


class LiveError(RuntimeError):
    """The graph did not come up or an attempt was never ended. Names the log to read."""


def run_live(
    station: str,
    task: str,
    checkpoint: Path,
    value_checkpoint: Path | None,
    bag_dir: Path,
    attempts: int,
    takeovers: int,
    seed: int,
    log_dir: Path,
    report: Report,
    operator: str = "scripted",
) -> dict[str, Any]:
    """Bring-up, `attempts` attempts from start states seed, seed + 1, …, shut-down → what was measured.

    A policy that needs little help gets up to as many attempts more, until a person has taken over
    `takeovers` times.

    Raises LiveError if anything of it fails; bags recorded until then stay in `bag_dir`.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    log, found = log_dir / "bringup.log", log_dir / "attempts.json"
    found.unlink(missing_ok=True)
    arguments = {
        "station": station,
        "task": task,
        "checkpoint": checkpoint.resolve(),
        "bag_dir": bag_dir.resolve(),
        "operator": operator,
        "use_sim": "true",
        "record": "true",
        "convert": "false",  # whoever asked for the attempts converts them
    }
    if value_checkpoint is not None:
        arguments["value_checkpoint"] = value_checkpoint.resolve()
    up = [sys.executable, "-m", "recap", "up", *(f"{k}:={v}" for k, v in arguments.items())]
    client = [
        *(sys.executable, "-m", "recap.nodes.attempts_node"),
        *("--attempts", str(attempts), "--takeovers", str(takeovers)),
        *("--seed", str(seed), "--out", str(found)),
    ]
    with log.open("w") as file:
        graph = subprocess.Popen(
            up,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # a killed demo leaves no cell behind
        )
        try:
            _follow(client, graph, attempts, report, log, log_dir / "attempts.log")
        finally:
            _stop(graph)
    result = json.loads(found.read_text())
    return {**result, "bags": sorted(p.name for p in bag_dir.iterdir() if p.is_dir())}


def _follow(
    client: list[str], graph: subprocess.Popen, attempts: int, report: Report, log: Path, out: Path
) -> None:
    """Run the attempts client to its end, passing its lines on as progress."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        client,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=end_with_parent,
    )
    assert process.stdout is not None
    lines: list[str] = []
    done = 0
    try:
        # Lines come seldom: between them the graph's end must be noticed too.
        while graph.poll() is None:
            if not select.select([process.stdout], [], [], POLL_S)[0]:
                continue
            line = process.stdout.readline()
            if not line:
                break
            lines.append(line)
            done += line.startswith("attempt ")
            report(min(done / attempts, 1.0), line.strip()[:60])
        else:
            raise LiveError(f"bring-up ended with exit code {graph.returncode}: {_last(log)}; read {log}")
        if process.wait() != 0:
            raise LiveError(f"attempts ended with exit code {process.returncode}: {_last(lines)}; read {log}")
    finally:
        out.write_text("".join(lines))
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last(said: Path | list[str]) -> str:
    """The last line said, or of a log."""
    lines = said if isinstance(said, list) else said.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _stop(graph: subprocess.Popen) -> None:
    """Ctrl-C to the graph; what is left after ten seconds is killed."""
    if graph.poll() is None:
        graph.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10.0
        while graph.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    if graph.poll() is None:
        os.killpg(graph.pid, signal.SIGKILL)
        graph.wait()
