"""A soak: does the whole cell keep 50 Hz for an hour, and its memory? The last line is JSON.

    python benchmarks/control.py [--minutes 60] [--checkpoint FOLDER]

Every node of a cell over real ROS 2, as a bring-up starts them: simulated station, arbiter, policy node with
its inference process, episode control, recorder and learner. One attempt follows the other; a person's leader
arms take over at random moments. Bags are deleted as they are closed. The policy is an untrained `tiny` one
unless a checkpoint is given. Rate and periods are what a subscriber of `joint_command` receives;
`missed_ticks` is what station, arbiter and policy node count themselves (`missed_by_node`); `rss_growth_mb`
is the largest growth of a process's resident memory between the end of the first minute (of the first fifth
of a shorter run) and the end, `rss_growth_by_process_mb` that of each. Exit 0 with no tick missed and less
than 20 MB. Interrupted, it prints what it measured until then, and exits with 1.

`stalls` are moments at which a core did nothing for anybody for 5 ms and more (stalls.py): of the missed
ticks, `missed_in_stalls` were counted within 2 s of one. They are missed all the same; what is left is ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from array import array
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from diagnostic_msgs.msg import DiagnosticArray
from policy_rate import untrained_policy
from rclpy.node import Node
from recap_interfaces.msg import ActionChunk, Episode
from recap_interfaces.srv import EndEpisode, StartEpisode
from sensor_msgs.msg import JointState, Joy
from stalls import Stalls, excused, summary

from recap_station import topics
from recap_station.bags import BagReader
from recap_station.nodes import qos
from recap_station.nodes.base import OK, claim_realtime

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/system"))
from graph import Graph, end_on_signals

GOAL_GROWTH_MB = 20.0
ATTEMPT_S = (8.0, 14.0)  # within the task's time limit
SAMPLE_S = 5.0
WAIT_S = 60.0
COUNTED_WITHIN_S = 2.0  # a tick is missed, and told of once a second
LOOPS = ("station", "arbiter", "policy")  # at 50 Hz
NODES = ("station", "arbiter", "episode", "recorder", "learner", "policy")
PACKAGE = {"station": "recap_station", "policy": "recap_policy", "learner": "recap_learner"}


class Person(Node):
    """Starts and ends attempts, presses the pedal at random moments, and notes when commands arrive."""

    def __init__(self, context: Any):
        super().__init__("person", context=context)
        self.arrived = array("q")  # ns
        self.by_source: dict[str, int] = defaultdict(int)
        self.missed: dict[str, int] = {}
        self.missed_at: list[float] = []  # when each missed tick was told of, time.monotonic
        self.spoken: set[str] = set()  # nodes heard of in /diagnostics
        self.loaded = False  # the policy
        self.chunks = 0
        self.episode = Episode()
        self.pressed = False
        self.joy = self.create_publisher(Joy, topics.JOY, qos.EVENT)
        self.begin = self.create_client(StartEpisode, "start_episode")
        self.end = self.create_client(EndEpisode, "end_episode")
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.RECORD)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.create_subscription(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENT)
        self.create_timer(0.02, self._press)

    def _on_command(self, message: JointState) -> None:
        self.arrived.append(time.monotonic_ns())
        self.by_source[message.header.frame_id] += 1

    def _on_chunk(self, message: ActionChunk) -> None:
        self.chunks += 1

    def _on_episode(self, message: Episode) -> None:
        self.episode = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.spoken.add(status.hardware_id)
            self.loaded |= status.name == "policy: checkpoint" and status.level == OK
            if status.name.endswith(": loop") and status.hardware_id in LOOPS:
                values = {value.key: value.value for value in status.values}
                count = int(float(values["missed"]))
                more = count - self.missed.get(status.hardware_id, count)
                self.missed_at += [time.monotonic()] * more
                self.missed[status.hardware_id] = count

    def _press(self) -> None:
        message = Joy(buttons=[int(self.pressed)])
        message.header.stamp = self.get_clock().now().to_msg()
        self.joy.publish(message)


class Memory:
    """Resident memory of every process of the cell over time, in MB."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self.samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._due_s = 0.0

    def sample(self) -> None:
        """Take a sample, if it is time for one. Ends the program where a process has ended."""
        now = time.monotonic()
        if now < self._due_s:
            return
        self._due_s = now + SAMPLE_S
        for name, process in self._graph.processes.items():
            if process.poll() is not None:
                raise SystemExit(f"control: {name} ended with code {process.returncode}")
            node = psutil.Process(process.pid)
            for child in (node, *node.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    label = name if child.pid == node.pid else f"{name}: {' '.join(child.cmdline()[1:3])}"
                    self.samples[label].append((now, child.memory_info().rss / 1e6))

    def growth(self, since_s: float) -> dict[str, float]:
        """Of each process from then on: mean of the last samples less that of the first [MB]."""
        grown = {}
        for name, samples in self.samples.items():
            sizes = [size for at, size in samples if at >= since_s]
            if len(sizes) > 1:
                few = max(1, min(6, len(sizes) // 4))
                grown[name] = round(float(np.mean(sizes[-few:]) - np.mean(sizes[:few])), 2)
        return grown


def call(graph: Graph, client: Any, request: Any) -> Any:
    future = client.call_async(request)
    graph.wait(future.done, WAIT_S, f"an answer of {client.srv_name}")
    return future.result()


def attempt(graph: Graph, rng: np.random.Generator, memory: Memory, until_s: float) -> int:
    """One attempt with takeovers at random moments → how many of them."""
    person: Person = graph.world
    answer = call(graph, person.begin, StartEpisode.Request(seed=int(rng.integers(2**31))))
    if not answer.success:
        raise SystemExit(f"control: start_episode refused: {answer.message}")
    end_s = min(until_s, time.monotonic() + rng.uniform(*ATTEMPT_S))
    change_s = time.monotonic() + rng.uniform(1.0, 4.0)
    presses = 0
    while time.monotonic() < end_s:
        if person.episode.id == answer.id and person.episode.state == Episode.ENDED:
            break  # the simulator judged it
        if time.monotonic() >= change_s:
            person.pressed = not person.pressed
            presses += person.pressed
            change_s += rng.uniform(0.5, 2.0) if person.pressed else rng.uniform(1.0, 4.0)
        memory.sample()
        time.sleep(0.02)
    person.pressed = False
    with_outcome = EndEpisode.Request(outcome=EndEpisode.Request.FAILURE, reason="benchmark")
    call(graph, person.end, with_outcome)
    return presses


def soak(
    graph: Graph, seconds: float, bags: Path, rng: np.random.Generator, stalls: Stalls
) -> dict[str, Any]:
    person: Person = graph.world
    memory = Memory(graph)
    begin_s = time.monotonic()
    stalls.seen()  # those of the start
    end_s, warm_s = begin_s + seconds, begin_s + min(60.0, seconds / 5)
    before, chunks = dict(person.missed), person.chunks
    first, sources = len(person.arrived), dict(person.by_source)
    attempts = presses = dropped = 0
    interrupted = False
    try:
        while time.monotonic() < end_s:
            presses += attempt(graph, rng, memory, end_s)
            attempts += 1
            for bag in sorted(bags.iterdir())[:-1]:  # the last may be open still
                dropped += dropped_in(bag)
                shutil.rmtree(bag)
            if attempts % 10 == 0:
                minutes = (time.monotonic() - begin_s) / 60
                print(f"{minutes:.0f} min, {attempts} attempts, missed {person.missed}", file=sys.stderr)
    except SystemExit as end:
        if end.code != 1 or not attempts:  # else a signal: what was measured until then is worth having
            raise
        interrupted = True
    minutes = (time.monotonic() - begin_s) / 60
    arrived = np.array(person.arrived[first:])
    time.sleep(1.5)  # the diagnostics that count the last ticks
    missed = {node: count - before.get(node, 0) for node, count in sorted(person.missed.items())}
    told_at = [moment for moment in person.missed_at if moment > begin_s]
    stood = stalls.seen()
    period_ms = np.diff(arrived) / 1e6
    growth = memory.growth(warm_s)
    return {
        "rate_hz": round(1e9 * (len(arrived) - 1) / float(arrived[-1] - arrived[0]), 3),
        "period_p50_ms": round(float(np.percentile(period_ms, 50)), 2),
        "period_p99_ms": round(float(np.percentile(period_ms, 99)), 2),
        "period_p999_ms": round(float(np.percentile(period_ms, 99.9)), 2),
        "period_max_ms": round(float(period_ms.max()), 2),
        "missed_ticks": sum(missed.values()),
        "missed_by_node": missed,
        "missed_in_stalls": excused(told_at, stood, COUNTED_WITHIN_S),
        **summary(stood),
        "rss_growth_mb": max(growth.values(), default=0.0),
        "rss_growth_by_process_mb": growth,
        "ticks": len(arrived),
        "attempts": attempts,
        "takeovers": presses,
        "chunks": person.chunks - chunks,
        "commands_of": {name: n - sources.get(name, 0) for name, n in person.by_source.items()},
        "dropped": dropped,
        "minutes": round(minutes, 2),
        "interrupted": interrupted,
    }


def dropped_in(bag: Path) -> int:
    """Messages that the recorder counts as dropped in a closed bag."""
    return sum(json.loads(BagReader(bag).metadata.get("recap.dropped", "{}")).values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--checkpoint", type=Path, help="folder; default: an untrained policy")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    if given.minutes <= 0:
        parser.error(f"--minutes: wanted more than 0, found {given.minutes:g}")
    end_on_signals()
    with Stalls() as stalls, tempfile.TemporaryDirectory() as name, Graph(Path(name), Person) as graph:
        person: Person = graph.world
        bags = Path(name) / "bags"
        checkpoint = given.checkpoint or untrained_policy(Path(name) / "policy")
        for node in NODES:
            more: dict[str, Any] = {"recorder": {"bag_dir": bags}, "policy": {"checkpoint": checkpoint}}
            graph.start(node, f"{PACKAGE.get(node, 'recap_teleop')}.nodes.{node}_node", **more.get(node, {}))
        graph.start("leader", "faults", role="leader", seed=given.seed)
        graph.wait(lambda: person.arrived and person.begin.service_is_ready(), WAIT_S, "the cell")
        graph.wait(lambda: graph_is_whole(person), 2 * WAIT_S, "every node in /diagnostics, a policy loaded")
        gc.collect()
        gc.freeze()
        claim_realtime(10)  # as a real robot's driver, who listens in earnest
        time.sleep(2.0)  # what had piled up is through
        result = soak(graph, 60.0 * given.minutes, bags, np.random.default_rng(given.seed), stalls)
    held = result["missed_ticks"] == 0 and result["rss_growth_mb"] < GOAL_GROWTH_MB
    held &= not result["interrupted"]
    print(json.dumps({**result, "held": held}))
    return 0 if held else 1


def graph_is_whole(person: Person) -> bool:
    return set(NODES) <= person.spoken and person.loaded


if __name__ == "__main__":
    sys.exit(main())
