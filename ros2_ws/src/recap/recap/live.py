"""Live attempts over real ROS 2 topics at 50 Hz: bring the whole graph up, run attempts, take it down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from recap.stages import Report


class LiveError(RuntimeError):
    """The graph did not come up or an attempt was never ended. Names the log to read."""


def run_live(
    station: str,
    task: str,
    checkpoint: Path,
    value_checkpoint: Path | None,
    bag_dir: Path,
    attempts: int,
    seed: int,
    log_dir: Path,
    report: Report,
    operator: str = "scripted",
) -> dict[str, Any]:
    """Bring-up, `attempts` attempts from start states seed, seed + 1, …, shut-down → what was measured.

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
    }
    if value_checkpoint is not None:
        arguments["value_checkpoint"] = value_checkpoint.resolve()
    up = [sys.executable, "-m", "recap", "up", *(f"{k}:={v}" for k, v in arguments.items())]
    client = [
        *(sys.executable, "-m", "recap.nodes.attempts_node"),
        *("--attempts", str(attempts), "--seed", str(seed), "--out", str(found)),
    ]
    with log.open("w") as file:
        graph = subprocess.Popen(up, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
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
        client, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout is not None
    lines, done = [], 0
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("attempt "):
                done += 1
            report(min(done / attempts, 1.0), line.strip()[:60])
            if graph.poll() is not None:
                raise LiveError(f"bring-up ended with exit code {graph.returncode}; read {log}")
        if process.wait() != 0:
            last = lines[-1].strip() if lines else "it said nothing"
            raise LiveError(f"attempts ended with exit code {process.returncode}: {last}; read {log}")
    finally:
        out.write_text("".join(lines))
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=10)


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
