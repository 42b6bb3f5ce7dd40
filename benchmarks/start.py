"""Time from the start of the arbiter's process to its first command, with joint states already on the topic.

`python benchmarks/start.py [--count 5]` prints one JSON line: `first_command_p50_s`, `first_command_max_s`,
of which `import_p50_s` goes to importing the node, and `heavy`: what of torch and mujoco it imported;
`restart_p50_s`: killed and started again in a cell of eight nodes, until it is heard, and
`restart_plain_p50_s`, with Fast DDS's own announcements instead of `recap_station/nodes/discovery.xml`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from sensor_msgs.msg import JointState

from recap_station import topics
from recap_station.contract import load_station
from recap_station.nodes import qos
from recap_station.nodes.discovery import VARIABLES, announce_often

IMPORT = """
import json, sys, time
start = time.monotonic()
import recap_teleop.nodes.arbiter_node
heavy = [name for name in ("torch", "mujoco") if name in sys.modules]
print(json.dumps([time.monotonic() - start, heavy]))"""


def first_command_s(count: int) -> list[float]:
    station = load_station("aloha")
    announce_often()
    rclpy.init(args=[])
    node = rclpy.create_node("start")
    heard: list[float] = []
    node.create_subscription(
        JointState, topics.JOINT_COMMAND, lambda _: heard.append(time.monotonic()), qos.COMMAND
    )
    states = node.create_publisher(JointState, topics.JOINT_STATES, qos.COMMAND)
    message = JointState(name=list(station.joint_names), position=station.home.tolist())
    node.create_timer(0.02, lambda: states.publish(message))
    times = []
    for _ in range(count):
        heard.clear()
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "recap_teleop.nodes.arbiter_node"])
        while not heard and time.monotonic() - start < 60.0:
            rclpy.spin_once(node, timeout_sec=0.05)
        process.terminate()
        process.wait()
        if not heard:
            raise SystemExit("the arbiter sent no command within 60 s")
        times.append(heard[0] - start)
    node.destroy_node()
    rclpy.shutdown()
    return times


PLAIN = '<?xml version="1.0"?><dds xmlns="http://www.eprosima.com"><profiles></profiles></dds>'


def restart_s(count: int) -> list[float]:
    """In a process of its own: which announcements it makes is settled when it first speaks."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "system"))
    from rig import BUSY, Rig

    times = []
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), BUSY) as rig:
        for _ in range(count):
            rig.graph.kill("arbiter")
            time.sleep(0.5)
            before, start = len(rig.watch.commands), time.monotonic()
            rig.start("arbiter")
            rig.wait(lambda before=before: len(rig.watch.commands) > before, what="a command")
            times.append(rig.watch.commands[before].received_s - start)
    return times


def restarts(count: int) -> tuple[list[float], list[float]]:
    """As it is, and with plain announcements."""
    found = []
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as plain:
        plain.write(PLAIN)
        plain.flush()
        for profile in ({}, dict.fromkeys(VARIABLES, plain.name)):
            command = [sys.executable, __file__, "--restarts", "--count", str(count)]
            said = subprocess.run(command, env={**os.environ, **profile}, stdout=subprocess.PIPE, check=True)
            found.append(json.loads(said.stdout.splitlines()[-1]))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--restarts", action="store_true", help="these alone, in seconds")
    given = parser.parse_args()
    count = given.count
    if given.restarts:
        print(json.dumps(restart_s(count)))
        return
    restarted, plain = restarts(count)
    run = [sys.executable, "-c", IMPORT]
    imports = [json.loads(subprocess.run(run, capture_output=True, check=True).stdout) for _ in range(count)]
    times = first_command_s(count)
    report = {
        "first_command_p50_s": round(float(np.median(times)), 3),
        "first_command_max_s": round(max(times), 3),
        "import_p50_s": round(float(np.median([seconds for seconds, _ in imports])), 3),
        "heavy": imports[0][1],
        "restart_p50_s": round(float(np.median(restarted)), 3),
        "restart_plain_p50_s": round(float(np.median(plain)), 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
