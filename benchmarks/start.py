"""Time from the start of the arbiter's process to its first command, with joint states already on the topic.

`python benchmarks/start.py [--count 5]` prints one JSON line: `first_command_p50_s`, `first_command_max_s`,
of which `import_p50_s` goes to importing the node, and `heavy`: what of torch and mujoco it imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import rclpy
from sensor_msgs.msg import JointState

from recap_station import topics
from recap_station.contract import load_station
from recap_station.nodes import qos

IMPORT = """
import json, sys, time
start = time.monotonic()
import recap_teleop.nodes.arbiter_node
heavy = [name for name in ("torch", "mujoco") if name in sys.modules]
print(json.dumps([time.monotonic() - start, heavy]))"""


def first_command_s(count: int) -> list[float]:
    station = load_station("aloha")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5)
    count = parser.parse_args().count
    run = [sys.executable, "-c", IMPORT]
    imports = [json.loads(subprocess.run(run, capture_output=True, check=True).stdout) for _ in range(count)]
    times = first_command_s(count)
    report = {
        "first_command_p50_s": round(float(np.median(times)), 3),
        "first_command_max_s": round(max(times), 3),
        "import_p50_s": round(float(np.median([seconds for seconds, _ in imports])), 3),
        "heavy": imports[0][1],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
