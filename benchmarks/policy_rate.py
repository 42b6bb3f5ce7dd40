"""Does `policy/joint_command` keep 50 Hz while inference takes all it can? Prints one JSON line.

    python benchmarks/policy_rate.py [--seconds 600] [--load] [--checkpoint FOLDER]

Starts the simulated cell and the policy node as they run in the demo, the policy inferring without a pause,
with a `tiny` policy that knows its sub-task's text and nothing else unless a checkpoint is given; --load adds
one process per core that only computes, at the inference's own niceness. Rate and periods are what a
subscriber in this process receives. A tick counts as missed where the node says so. Exit 0 when the mean is
50.0 ± 0.1 Hz, the period's p99 at most 22 ms and no tick missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

GOAL_HZ, GOAL_TOLERANCE_HZ, GOAL_P99_MS = 50.0, 0.1, 22.0
WARM_UP_S = 3.0


@contextmanager
def programs(*commands: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that run for as long as the block does."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command))
        yield started
    finally:
        for program in started:
            program.terminate()
        for program in started:
            try:
                program.wait(5.0)
            except subprocess.TimeoutExpired:
                program.kill()


def untrained_policy(folder: Path) -> Path:
    """A checkpoint of a `tiny` policy that can write its sub-task, as a real one can, and nothing else."""
    import torch

    from recap_policy.checkpoint import save_policy
    from recap_policy.sizes import vla_config
    from recap_policy.text import TinyTokenizer
    from recap_policy.vla import VLA, Batch
    from recap_station.contract import load_station

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = vla_config("tiny")
    model = VLA(config, TinyTokenizer.fit(["insert the peg", "reach"], 128))
    rows, dof = 32, config.prefix.dof
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        batch = Batch(
            image_features=torch.randn(
                rows, config.prefix.cameras, config.vision.tokens, config.vision.width
            ),
            state=torch.rand(rows, dof) - 0.5,
            prompt=["insert the peg"] * rows,
            subtask=["reach"] * rows,
            indicator=torch.ones(rows),
            actions=torch.zeros(rows, config.horizon, dof),
        )
        optimizer.zero_grad()
        model.loss(batch, draws=1)["loss"].backward()
        optimizer.step()
    save_policy(model, folder, {}, station=load_station("aloha"))
    return folder


def listen(seconds: float, nodes: list[subprocess.Popen[bytes]]) -> dict[str, float]:
    """Receive commands for `seconds` after the first and a warm-up; periods [ms], rate, chunks, misses."""
    import gc

    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import SingleThreadedExecutor
    from recap_interfaces.msg import ActionChunk
    from sensor_msgs.msg import JointState

    from recap_station import topics
    from recap_station.nodes import qos
    from recap_station.nodes.base import claim_realtime

    rclpy.init()
    node = rclpy.create_node("policy_rate")
    received: list[int] = []
    latencies: list[float] = []
    missed: list[int] = []

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("policy: loop"):
                missed.extend(int(float(v.value)) for v in status.values if v.key == "missed")

    node.create_subscription(
        JointState, topics.POLICY_COMMAND, lambda _: received.append(time.monotonic_ns()), qos.COMMAND
    )
    node.create_subscription(
        ActionChunk, topics.POLICY_CHUNK, lambda m: latencies.append(m.inference_s), qos.EVENT
    )
    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, qos.EVENT)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin(until: float, what: str = "") -> None:
        while time.monotonic() < until and not (what and received):
            executor.spin_once(timeout_sec=0.1)
            for program in nodes:
                if program.poll() is not None:
                    raise SystemExit(f"policy_rate: {program.args} ended with code {program.returncode}")
        if what and not received:
            raise SystemExit(f"policy_rate: {what}")

    spin(time.monotonic() + 120.0, "no command within 120 s")
    spin(time.monotonic() + WARM_UP_S)
    gc.collect()
    gc.freeze()
    claim_realtime(10)  # as the arbiter, who listens in earnest
    before = missed[-1] if missed else 0
    received.clear()
    latencies.clear()
    spin(time.monotonic() + seconds)
    times = np.array(received)
    spin(time.monotonic() + 1.5)  # the diagnostics that count the last ticks
    rclpy.shutdown()
    period_ms = np.diff(times) / 1e6
    return {
        "rate_hz": round(1e9 * (len(times) - 1) / float(times[-1] - times[0]), 3),
        "period_p50_ms": round(float(np.percentile(period_ms, 50)), 2),
        "period_p99_ms": round(float(np.percentile(period_ms, 99)), 2),
        "period_max_ms": round(float(period_ms.max()), 2),
        "missed_ticks": (missed[-1] if missed else 0) - before,
        "commands": len(times),
        "chunks_per_s": round(len(latencies) / seconds, 1),
        "chunk_ms_p50": round(1e3 * float(np.median(latencies or [0.0])), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--load", action="store_true", help="add a busy process per core")
    parser.add_argument("--checkpoint", type=Path, help="folder; default: random weights")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    busy = [[sys.executable, "-c", "import os\nos.nice(5)\nwhile True: pass"]] * (os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or untrained_policy(Path(folder) / "policy")
        node = [sys.executable, "-m"]
        arguments = ["-p", f"checkpoint:={checkpoint}", "-p", "always_infer:=true"]
        commands = [
            [*node, "recap_station.nodes.station_node"],
            [*node, "recap_policy.nodes.policy_node", "--ros-args", *arguments],
        ]
        if given.load:
            commands += busy
        with programs(*commands) as started:
            result = listen(given.seconds, started)
    held = (
        abs(result["rate_hz"] - GOAL_HZ) <= GOAL_TOLERANCE_HZ
        and result["period_p99_ms"] <= GOAL_P99_MS
        and result["missed_ticks"] == 0
    )
    print(json.dumps({**result, "seconds": given.seconds, "load": given.load, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
