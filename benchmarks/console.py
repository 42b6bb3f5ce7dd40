"""The console in front of a live cell: share of a core, effect on the 50 Hz loop, how soon it answers.

    python benchmarks/console.py [--seconds 60] [--size 640x480]

Over real ROS 2: the real arbiter, a stand-in robot that publishes three JPEG cameras at 30 Hz and all joint
topics at 50 Hz, and the console. Two watchers read everything as browsers do: state, samples and pictures,
each asked for when the last has come. `core_fraction` is processor time of the console's process with two
watchers by wall time; `period_p99_change_ms` the p99 of the period at which a subscriber receives
`joint_command` with two watchers less that with none, by stretches in turn within the run; `interactive_s`
what a real Chromium takes from the link to the page's first live state, -1 where there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from recap_station import topics
from recap_station.contract import load_station

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests/system"))
STATION = load_station("aloha")
HZ, CAMERA_HZ = 50.0, 30.0
STRETCHES = 3  # of each kind, in turn


def jpeg(width: int, height: int) -> bytes:
    """A picture with texture: about 100 kB at 640×480."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    noise = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height)) // 2 + noise
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def robot(domain: int, size: tuple[int, int], stop: Any) -> None:
    """Cameras and joints of a cell, and a policy that commands it."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import CompressedImage, JointState

    from recap_station.nodes import qos
    from recap_station.nodes.base import claim_realtime

    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("robot")
    claim_realtime(10)
    names = (topics.JOINT_STATES, topics.POLICY_COMMAND, topics.TELEOP_COMMAND)
    joints = [node.create_publisher(JointState, name, qos.COMMAND) for name in names]
    cameras = [
        node.create_publisher(CompressedImage, topics.image_topic(name), qos.SENSOR)
        for name in STATION.camera_names
    ]
    image = CompressedImage(format="jpeg")
    image.data.frombytes(jpeg(*size))
    state = JointState(name=list(STATION.joint_names), position=STATION.home.tolist())

    def move() -> None:
        state.header.stamp = node.get_clock().now().to_msg()
        for publisher in joints:
            publisher.publish(state)

    def look() -> None:
        image.header.stamp = node.get_clock().now().to_msg()
        for publisher in cameras:
            publisher.publish(image)

    node.create_timer(1.0 / HZ, move)
    node.create_timer(1.0 / CAMERA_HZ, look)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.1)
    rclpy.shutdown()


def watcher(url: str, wanted: Any, stop: Any, counts: Any) -> None:
    """Another process that reads what a browser reads, while `wanted` is set. counts: pictures, states."""
    from websockets.asyncio.client import connect

    host = url.removeprefix("http://").rstrip("/")
    headers = {"Origin": url.rstrip("/")}

    async def live() -> None:
        async with connect(f"ws://{host}/live", additional_headers=headers) as socket:
            while wanted.is_set() and not stop.is_set():
                message = await asyncio.wait_for(socket.recv(), 5.0)
                counts[1] += 1
                await socket.send("samples" if isinstance(message, bytes) else "state")

    async def cameras() -> None:
        async with connect(f"ws://{host}/cameras", additional_headers=headers) as socket:
            for camera in range(len(STATION.cameras)):
                await socket.send(str(camera))
            while wanted.is_set() and not stop.is_set():
                message = await asyncio.wait_for(socket.recv(), 5.0)
                counts[0] += 1
                await socket.send(str(message[1]))

    async def both() -> None:
        await asyncio.gather(live(), cameras())

    while not stop.is_set():
        if wanted.is_set():
            with suppress(Exception):
                asyncio.run(both())
        time.sleep(0.05)


def interactive_s(url: str) -> float:
    """From the link to the first live state on a page, by a real browser's own clock."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return -1.0
    if chromium is None:
        return -1.0
    took = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(3):
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("#b-start", state="attached", timeout=60_000)
            script = "performance.getEntriesByName('interactive')[0]?.startTime ?? -1000"
            deadline = time.monotonic() + 30.0
            while (at_ms := page.evaluate(script)) < 0 and time.monotonic() < deadline:
                page.wait_for_timeout(20)
            took.append(at_ms / 1e3)
            page.close()
        browser.close()
    return float(np.median(took))


class Ear:
    """Notes when each `joint_command` arrives."""

    def __init__(self, context: Any) -> None:
        from rclpy.node import Node
        from sensor_msgs.msg import JointState

        from recap_station.nodes import qos

        self.arrived: list[float] = []
        self.node = Node("ear", context=context)
        heard = lambda _: self.arrived.append(time.monotonic())  # noqa: E731
        self.node.create_subscription(JointState, topics.JOINT_COMMAND, heard, qos.RECORD)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of all stretches together")
    parser.add_argument("--size", default="640x480", help="of the cameras' pictures")
    given = parser.parse_args()
    width, _, height = given.size.partition("x")
    if given.seconds <= 0 or not (width.isdecimal() and height.isdecimal()):
        parser.error("wanted --seconds above 0 and --size such as 640x480")

    from graph import Graph, end_on_signals

    from recap_station.nodes.base import claim_realtime

    end_on_signals()
    ears: list[Ear] = []

    def make(context: Any) -> Any:
        ears.append(Ear(context))
        return ears[0].node

    spawn = multiprocessing.get_context("spawn")
    stop, wanted, counts = spawn.Event(), spawn.Event(), spawn.Array("l", 2)
    with tempfile.TemporaryDirectory() as folder, Graph(Path(folder), make) as graph:
        processes = [spawn.Process(target=robot, args=(graph.domain, (int(width), int(height)), stop))]
        try:
            processes[0].start()
            graph.start("arbiter", "recap_teleop.nodes.arbiter_node")
            graph.start("console", "recap_teleop.nodes.console_node", port=0, bag_dir=folder)
            graph.wait(lambda: "recap console:" in graph.log("console"), 60.0, "the console's link")
            graph.wait(lambda: ears[0].arrived, 60.0, "joint_command")
            url = re.findall(r"recap console: (\S+)", graph.log("console"))[-1]
            page_s = interactive_s(url)
            for _ in range(2):
                processes.append(spawn.Process(target=watcher, args=(url, wanted, stop, counts)))
                processes[-1].start()
            time.sleep(3.0)
            claim_realtime(10)  # as a real robot's driver, who listens in earnest
            result = measure(graph, ears[0], given.seconds, wanted, counts)
        finally:
            stop.set()
            for process in processes:
                process.join(10.0)
                if process.is_alive():
                    process.kill()
    held = result["core_fraction"] <= 0.4 and result["period_p99_change_ms"] <= 1.0 and 0.0 <= page_s <= 1.0
    print(json.dumps({**result, "interactive_s": round(page_s, 3), "size": given.size, "held": held}))
    return 0 if held else 1


def measure(graph: Any, ear: Ear, seconds: float, wanted: Any, counts: Any) -> dict[str, Any]:
    """Stretches without and with watchers, in turn."""
    console = psutil.Process(graph.processes["console"].pid)
    periods: dict[bool, list[np.ndarray]] = {False: [], True: []}
    busy = {False: 0.0, True: 0.0}
    lasted = {False: 0.0, True: 0.0}
    pictures = 0
    for k in range(2 * STRETCHES):
        watched = bool(k % 2)
        (wanted.set if watched else wanted.clear)()
        threading.Event().wait(1.5)
        first, before, begin, seen = len(ear.arrived), console.cpu_times(), time.monotonic(), counts[0]
        time.sleep(seconds / (2 * STRETCHES))
        after, end = console.cpu_times(), time.monotonic()
        periods[watched].append(np.diff(ear.arrived[first:]) * 1e3)
        busy[watched] += after.user + after.system - before.user - before.system
        lasted[watched] += end - begin
        pictures += counts[0] - seen if watched else 0
    p99 = {watched: float(np.percentile(np.concatenate(found), 99)) for watched, found in periods.items()}
    return {
        "core_fraction": round(busy[True] / lasted[True], 3),
        "core_fraction_unwatched": round(busy[False] / lasted[False], 3),
        "period_p99_ms": round(p99[True], 2),
        "period_p99_unwatched_ms": round(p99[False], 2),
        "period_p99_change_ms": round(p99[True] - p99[False], 2),
        "pictures_per_s": round(pictures / lasted[True], 1),
        "watchers": 2,
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
