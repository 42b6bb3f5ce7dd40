"""The whole loop once round, too small to learn anything: every stage, every file, resumed without work; and
one more round from inside a running graph."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from recap_interfaces.msg import ActionChunk, Episode, LearnerState
from recap_interfaces.srv import DecideCheckpoint, StartTraining

from recap.demo import QUICK, run_demo
from recap_policy.checkpoint import read
from recap_station import topics
from recap_station.nodes import qos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.alone]

DOMAIN = "79"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("loop") / "run"
    return run, run_demo(run, QUICK, Console(quiet=True))


def test_the_loop_closes_and_a_second_call_has_nothing_left_to_do(quick: tuple[Path, dict[str, Any]]) -> None:
    run, summary = quick
    for name in ("sft", "recap"):
        policy = summary["policies"][name]
        assert policy["attempts"] == QUICK.evaluations
        assert policy["success_ci95"][0] <= policy["success"] <= policy["success_ci95"][1]
    assert summary["live"]["attempts"] == QUICK.live_attempts
    assert summary["live"]["rate_hz"] == pytest.approx(50.0, abs=1.0)
    assert set(summary["live"]["bags"]) == {p.name for p in (run / "iteration_01" / "live").iterdir()}
    assert (run / "report.html").stat().st_size > 100_000
    records = {p.name: p.stat().st_mtime_ns for p in (run / "stages").iterdir()}
    again = run_demo(run, QUICK, Console(quiet=True))
    assert {p.name: p.stat().st_mtime_ns for p in (run / "stages").iterdir()} == records
    assert json.dumps(again["policies"]) == json.dumps(summary["policies"])


class Listener:
    """Which checkpoint commanded in which attempt, and a person who asks for training and decides."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(args=[], context=self.context, domain_id=int(DOMAIN))
        self.node = rclpy.create_node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.episode = ""
        self.commanded: dict[str, set[str]] = {}
        self.node.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.node.create_subscription(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        self.state = LearnerState()
        self.node.create_subscription(LearnerState, topics.LEARNER_STATE, self._on_state, qos.LATCHED)
        self.decide = self.node.create_client(DecideCheckpoint, "decide_checkpoint")
        self.training = self.node.create_client(StartTraining, "start_training")

    def _on_episode(self, message: Episode) -> None:
        self.episode = message.id if message.state == Episode.RUNNING else ""

    def _on_chunk(self, message: ActionChunk) -> None:
        if self.episode:
            self.commanded.setdefault(self.episode, set()).add(message.checkpoint)

    def _on_state(self, message: LearnerState) -> None:
        self.state = message

    def close(self) -> None:
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def cell(quick: tuple[Path, dict[str, Any]], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A whole graph that runs the SFT policy, with a learner that takes few steps."""
    steps = tmp_path / "steps.yaml"
    steps.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"value_steps": 40, "policy_steps": 20}}}))
    up = [
        *(sys.executable, "-m", "recap", "up", "--manager", "supervisor", "operator:=scripted"),
        *(f"checkpoint:={quick[0] / 'iteration_00' / 'policy'}", f"bag_dir:={tmp_path / 'bags'}"),
        *(f"params_file:={steps}", "evaluations:=0", "convert:=false"),
    ]
    with (tmp_path / "up.log").open("wb") as log:
        graph = subprocess.Popen(
            up, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "ROS_DOMAIN_ID": DOMAIN}
        )
    yield graph
    graph.send_signal(signal.SIGINT)
    try:
        graph.wait(15)
    finally:
        if graph.poll() is None:
            graph.kill()
            graph.wait()


def test_a_policy_learnt_inside_the_graph_commands_from_the_next_attempt_on(
    quick: tuple[Path, dict[str, Any]], cell: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    run = quick[0]
    old = read(run / "iteration_00" / "policy").identity
    listener = Listener()
    environment = {**os.environ, "ROS_DOMAIN_ID": DOMAIN}
    client = subprocess.Popen(
        [
            *(sys.executable, "-m", "recap.nodes.attempts_node", "--attempts", "40"),
            *("--seed", "500", "--out", str(tmp_path / "attempts.json")),
        ],
        env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        def wait(condition: Any, limit_s: float, what: str) -> None:
            until = time.monotonic() + limit_s
            while not condition():
                assert time.monotonic() < until, f"not within {limit_s} s: {what}"
                alive = cell.poll() is None and client.poll() is None
                assert alive, (tmp_path / "up.log").read_text()[-2000:]
                listener.executor.spin_once(timeout_sec=0.1)

        wait(lambda: len(listener.commanded) >= 2, 120, "an attempt is over")
        [policy] = [p for p in psutil.Process(cell.pid).children() if "policy_node" in " ".join(p.cmdline())]
        request = StartTraining.Request(run=str(run), bags=[str(tmp_path / "bags")])
        future = listener.training.call_async(request)
        wait(future.done, 30, "an answer of start_training")
        assert future.result().success
        fresh = run / "iteration_02" / "policy"
        wait(lambda: (fresh / "config.json").is_file(), 400, "a new policy")
        new = read(fresh).identity
        wait(lambda: listener.state.withheld or listener.state.offered, 60, "it is judged")
        if listener.state.withheld:  # so few steps hardly make a value function that passes its gates
            word = DecideCheckpoint.Request(accept=True, who="test", why="to see it swapped in")
            future = listener.decide.call_async(word)
            wait(future.done, 30, "an answer of decide_checkpoint")
            assert future.result().success
        wait(lambda: {new} in listener.commanded.values(), 120, "an attempt by the new policy")
        assert policy.is_running()  # the same process as before
        assert new != old and set().union(*listener.commanded.values()) == {old, new}
        assert all(len(found) == 1 for found in listener.commanded.values())  # swapped between attempts
    finally:
        client.send_signal(signal.SIGINT)
        client.wait(20)
        listener.close()
