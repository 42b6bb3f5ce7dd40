"""The recorder under load: three 640×480 JPEG cameras at 30 Hz plus all 50 Hz topics, over real ROS 2.

`python benchmarks/record.py [--minutes 1]` prints one JSON line: dropped (counted by the recorder, and
lost counted against what was published), core_fraction (processor time of the recorder's process),
mb_per_s written. The publisher is a second process; it needs about as much of a core again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from recap_station import topics
from recap_station.bags import BagReader
from recap_station.contract import load_station

STATION = load_station("aloha")
STATES = (topics.JOINT_STATES, topics.JOINT_COMMAND, topics.POLICY_COMMAND, topics.TELEOP_COMMAND)


def jpeg() -> bytes:
    """A 640×480 picture with much texture: about 100 kB."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (640, 480)) // 2 + rng.integers(0, 60, (480, 640, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def publish(domain: int, seconds: float, result: multiprocessing.Queue) -> None:
    """Plays the whole graph for so long; puts the numbers of messages published, by topic."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from recap_interfaces.msg import ControlMode, Episode
    from sensor_msgs.msg import CompressedImage, JointState

    from recap_station.nodes import qos

    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("publisher")
    recorded = topics.recorded_topics(STATION)
    states = {name: node.create_publisher(JointState, name, qos.COMMAND) for name in STATES}
    cameras = {
        name: node.create_publisher(CompressedImage, name, qos.SENSOR)
        for name in recorded
        if recorded[name] == topics.IMAGE_TYPE
    }
    episodes = node.create_publisher(Episode, topics.EPISODE, qos.LATCHED)
    modes = node.create_publisher(ControlMode, topics.CONTROL_MODE, qos.LATCHED)
    image = CompressedImage(format="jpeg")
    image.data.frombytes(jpeg())
    state = JointState(name=list(STATION.joint_names), position=STATION.home.tolist())
    counts = dict.fromkeys((*states, *cameras), 0)
    running = False

    def send(publishers: dict, message: object) -> None:
        if running:
            for name, publisher in publishers.items():
                publisher.publish(message)
                counts[name] += 1

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.create_timer(1 / 50, lambda: send(states, state))
    node.create_timer(1 / 30, lambda: send(cameras, image))
    while node.count_subscribers(topics.JOINT_STATES) == 0:
        executor.spin_once(timeout_sec=0.1)
    modes.publish(ControlMode())
    episodes.publish(Episode(id="benchmark", state=Episode.RUNNING, task="handover_insert"))
    until = time.monotonic() + 2.0  # the bag is open before the first message that counts
    while time.monotonic() < until:
        executor.spin_once(timeout_sec=0.1)
    running = True
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        executor.spin_once(timeout_sec=0.1)
    running = False
    time.sleep(1.0)
    episodes.publish(Episode(id="benchmark", state=Episode.ENDED, outcome=Episode.SUCCESS))
    time.sleep(0.5)
    result.put(counts)
    rclpy.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of recording")
    seconds = 60.0 * parser.parse_args().minutes
    domain = 43 + os.getpid() % 58
    with tempfile.TemporaryDirectory() as folder:
        bag = Path(folder) / "benchmark"
        run = [
            sys.executable,
            "-m",
            "recap_teleop.nodes.recorder_node",
            "--ros-args",
            "-p",
            f"bag_dir:={folder}",
        ]
        recorder = subprocess.Popen(run, env={**os.environ, "ROS_DOMAIN_ID": str(domain)})
        context = multiprocessing.get_context("spawn")
        result = context.Queue()
        publisher = context.Process(target=publish, args=(domain, seconds, result))
        publisher.start()
        while not bag.is_dir():
            time.sleep(0.1)
        process = psutil.Process(recorder.pid)
        before = process.cpu_times()
        counts = result.get()
        after = process.cpu_times()
        publisher.join()
        recorder.send_signal(signal.SIGINT)
        recorder.wait()
        reader = BagReader(bag)
        found = dict.fromkeys(counts, 0)
        for topic, _, _ in reader.messages(counts):
            found[topic] += 1
        size = sum(file.stat().st_size for file in reader.files)
        dropped = sum(json.loads(reader.metadata["recap.dropped"]).values())
    busy = (after.user + after.system) - (before.user + before.system)
    print(
        json.dumps(
            {
                "dropped": dropped,
                "lost": sum(counts.values()) - sum(found.values()),
                "messages": sum(counts.values()),
                "core_fraction": round(busy / seconds, 3),
                "mb_per_s": round(size / 1e6 / seconds, 2),
                "minutes": seconds / 60.0,
            }
        )
    )


if __name__ == "__main__":
    main()
