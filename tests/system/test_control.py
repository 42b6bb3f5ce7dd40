"""The arbiter, episode control and the recorder together over real ROS 2: what the bag says is what was done,
and none of them takes an attempt with it when it dies.

Time limits are wide, so that a busy machine does not fail them.
"""

from __future__ import annotations

import csv
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from graph import POLICY, STATION, Graph
from recap_interfaces.msg import ControlMode, Episode
from recap_interfaces.srv import EndEpisode, MarkStage, StartEpisode
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from recap_station import topics
from recap_station.bags import BagReader, deserialize
from recap_station.cdr import stamp_ns
from recap_station.nodes import qos
from recap_teleop.modes import Mode
from recap_teleop.trace import COLUMNS

pytestmark = pytest.mark.alone

SLOW: dict[str, Any] = {  # the time-outs are those of a busy test machine
    "policy_timeout_s": 0.5, "teleop_timeout_s": 0.5, "pedal_timeout_s": 0.5, "state_timeout_s": 1.0,
}  # fmt: skip
ARBITER = "recap_teleop.nodes.arbiter_node"


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    with Graph(tmp_path) as graph:
        yield graph


class Heard:
    """What episode control says."""

    def __init__(self, graph: Graph):
        self.messages: list[Episode] = []
        graph.world.create_subscription(Episode, topics.EPISODE, self.messages.append, qos.LATCHED)

    @property
    def last(self) -> Episode:
        return self.messages[-1] if self.messages else Episode()


def call(graph: Graph, kind: Any, name: str, **fields: Any) -> Any:
    client = graph.world.create_client(kind, name)
    assert client.wait_for_service(60.0), name
    future = client.call_async(kind.Request(**fields))
    graph.wait(future.done, 60.0, name)
    graph.world.destroy_client(client)
    return future.result()


def stop(graph: Graph, name: str) -> None:
    process = graph.processes.pop(name)
    process.send_signal(signal.SIGINT)
    assert process.wait(30.0) == 0


def read_trace(path: Path) -> dict[int, tuple[str, str, str]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and tuple(rows[0]) == COLUMNS
    return {int(row["stamp_ns"]): (row["mode"], row["source"], row["reason"]) for row in rows}


def read_commands(bag: Path) -> list[tuple[int, str]]:
    found = BagReader(bag).messages({topics.JOINT_COMMAND})
    read = [deserialize(cdr, topics.JOINT_STATE_TYPE) for _, _, cdr in found]
    return [(stamp_ns(message), message.header.frame_id) for message in read]


def read_modes(bag: Path) -> list[tuple[int, tuple[str, str, str]]]:
    found = BagReader(bag).messages({topics.CONTROL_MODE})
    read = [deserialize(cdr, topics.MODE_TYPE) for _, _, cdr in found]
    return sorted((stamp_ns(m), (Mode(m.mode).name, m.source, m.reason)) for m in read)


def test_mode_trace_of_the_bag_is_the_arbiters_own_log_tick_for_tick(graph: Graph, tmp_path: Path) -> None:
    world, bags, trace = graph.world, tmp_path / "bags", tmp_path / "trace.csv"
    graph.start("arbiter", ARBITER, trace_file=trace, **SLOW)
    graph.start("policy", code=POLICY)
    graph.start("recorder", "recap_teleop.nodes.recorder_node", bag_dir=bags)
    graph.wait(lambda: world.count_subscribers(topics.EPISODE) > 1, 60.0, "the recorder and the arbiter")
    graph.wait(world.source, 60.0, "the arbiter commands")
    time.sleep(2.0)  # until the recorder hears the arbiter, which nobody else can see
    world.episode("one", Episode.RUNNING)
    graph.wait(lambda: world.mode() == ControlMode.POLICY, 60.0, "the policy is followed")
    rng = random.Random(0)
    for _ in range(40):  # presses as short as a tick, and as long as a correction
        world.person = STATION.home + np.where(STATION.is_gripper, 0.0, rng.uniform(-0.3, 0.3))
        world.press(True)
        time.sleep(rng.choice([0.001, 0.02, 0.05, 0.4]))
        world.press(False)
        time.sleep(rng.choice([0.001, 0.02, 0.05, 0.4]))
    graph.kill("policy")
    graph.wait(lambda: world.mode() == ControlMode.HOLD, 30.0, "HOLD")
    world.press(True)
    graph.wait(lambda: world.mode() == ControlMode.TELEOP, 30.0, "TELEOP")
    world.episode("one", Episode.ENDED, Episode.SUCCESS)  # in mid-press
    graph.wait(lambda: (bags / "one" / "metadata.yaml").is_file(), 30.0, "the bag is closed")
    world.press(False)
    stop(graph, "arbiter")

    log, commands, modes = read_trace(trace), read_commands(bags / "one"), read_modes(bags / "one")
    first, last = commands[0][0], commands[-1][0]
    assert len(commands) > 300
    assert [stamp for stamp, _ in commands] == [stamp for stamp in sorted(log) if first <= stamp <= last]
    at = 0
    for stamp, source in commands:
        while at + 1 < len(modes) and modes[at + 1][0] <= stamp:
            at += 1
        assert log[stamp][1] == source
        if stamp < modes[0][0]:  # it did not hear it yet
            continue
        assert modes[at][1] == log[stamp], f"{(stamp - first) / 1e9:.2f} s"
    assert modes[0][0] < commands[len(commands) // 4][0]
    sources = [source for _, source in commands]
    assert sources.count("teleop") > 20
    assert modes[-1][1][0] == "HOLD" and commands[-1][1] == "hold"  # the last correction is closed
    assert json.loads(BagReader(bags / "one").metadata["recap.dropped"]) == {}


def test_arbiter_goes_on_when_everything_else_has_died(graph: Graph, tmp_path: Path) -> None:
    world = graph.world
    graph.start("arbiter", ARBITER, **SLOW)
    graph.start("policy", code=POLICY)
    graph.start("recorder", "recap_teleop.nodes.recorder_node", bag_dir=tmp_path / "bags")
    graph.start(
        "episode", "recap_teleop.nodes.episode_node", use_sim="false", reset="none", state_dir=tmp_path
    )
    graph.wait(lambda: world.mode() is not None, 60.0, "the arbiter speaks")
    assert call(graph, StartEpisode, "start_episode").success
    graph.wait(lambda: world.mode() == ControlMode.POLICY, 60.0, "the policy is followed")
    for name in ("policy", "recorder", "episode"):
        graph.kill(name)
    graph.wait(lambda: world.mode() == ControlMode.HOLD, 30.0, "HOLD")
    before = len(world.heard.commands)
    graph.wait(lambda: len(world.heard.commands) > before + 50, 30.0, "commands go on")
    assert all(command.source == "hold" for command in world.heard.commands[before:])
    assert graph.processes["arbiter"].poll() is None


def test_locks_are_heard_on_topics_of_their_own(graph: Graph) -> None:
    world = graph.world
    graph.start("arbiter", ARBITER, locks="['curtain timeout_s=1.0', 'door latch=true timeout_s=60']", **SLOW)
    graph.start("policy", code=POLICY)
    curtain = world.create_publisher(Bool, "curtain", qos.EVENT)
    door = world.create_publisher(Bool, "door", qos.EVENT)
    said: dict[str, bool | None] = {"curtain": False, "door": None}

    def say() -> None:
        for name, publisher in (("curtain", curtain), ("door", door)):
            if said[name] is not None:
                publisher.publish(Bool(data=said[name]))

    timer = world.create_timer(0.05, say)
    graph.wait(lambda: world.mode() == ControlMode.HOLD, 60.0, "the arbiter speaks")
    graph.wait(lambda: world.heard.modes[-1][2] == "door silent", 30.0, "a stop")
    said["door"] = False
    world.episode("one", Episode.RUNNING)
    graph.wait(lambda: call(graph, Trigger, "resume").success, 60.0, "the door's stop is resumed")
    graph.wait(lambda: world.mode() == ControlMode.POLICY, 60.0, "the policy is followed")
    said["curtain"] = None
    graph.wait(lambda: world.heard.modes[-1][1:] == (ControlMode.HOLD, "curtain silent"), 30.0, "HOLD")
    said["curtain"] = False
    graph.wait(lambda: world.mode() == ControlMode.POLICY, 30.0, "the policy is followed again")
    said["door"] = True
    graph.wait(lambda: world.heard.modes[-1][1:] == (ControlMode.HOLD, "door engaged"), 30.0, "a stop")
    answer = call(graph, Trigger, "resume")
    assert not answer.success and "door engaged" in answer.message
    world.destroy_timer(timer)


def test_episode_control_that_is_killed_takes_its_attempt_up_again(graph: Graph, tmp_path: Path) -> None:
    world, heard = graph.world, Heard(graph)
    task = tmp_path / "long.yaml"
    task.write_text(
        "name: long\nprompt: p\ntime_limit_s: 900\nmax_episode_s: 900\nstages: [a, b]\njudge: person\n"
    )
    options: dict[str, Any] = {"use_sim": "false", "reset": "none", "state_dir": tmp_path, "task": task}
    node = "recap_teleop.nodes.episode_node"
    graph.start("arbiter", ARBITER, **SLOW)
    graph.start("policy", code=POLICY)
    graph.start("recorder", "recap_teleop.nodes.recorder_node", bag_dir=tmp_path / "bags", task=task)
    graph.start("episode", node, **options)
    graph.wait(lambda: world.mode() is not None, 60.0, "the arbiter speaks")
    identity = call(graph, StartEpisode, "start_episode", seed=7).id
    assert call(graph, MarkStage, "mark_stage").stage == "a"
    graph.wait(lambda: len(heard.messages) > 6, 30.0, "it repeats itself")
    graph.kill("episode")
    reason = (ControlMode.HOLD, "episode control silent")
    graph.wait(lambda: world.heard.modes[-1][1:] == reason, 30.0, "nobody would end the attempt: HOLD")
    heard.messages.clear()
    graph.start("episode", node, **options)
    graph.wait(lambda: heard.messages, 60.0, "it is back")
    first = heard.messages[0]
    assert (first.id, first.state, first.seed, first.stage) == (identity, Episode.RUNNING, 7, "a")
    assert first.elapsed_s > 2.0
    graph.wait(lambda: world.mode() == ControlMode.POLICY, 30.0, "the policy is followed again")

    # with the arbiter gone too, nothing may begin to move by itself
    graph.kill("episode")
    graph.kill("arbiter")
    graph.start("arbiter", ARBITER, **SLOW)
    heard.messages.clear()
    graph.start("episode", node, **options)
    graph.wait(lambda: heard.messages, 60.0, "it is back")
    first = heard.messages[0]
    assert (first.id, first.state, first.outcome) == (identity, Episode.ENDED, Episode.DISCARDED)
    assert "arbiter was restarted" in first.reason
    bag = tmp_path / "bags" / identity
    graph.wait(lambda: (bag / "metadata.yaml").is_file(), 30.0, "the bag is closed")
    assert BagReader(bag).metadata["recap.outcome"] == "discarded"


def test_a_person_resets_the_cell_marks_stages_and_takes_a_label_back(graph: Graph, tmp_path: Path) -> None:
    heard = Heard(graph)
    graph.start("episode", "recap_teleop.nodes.episode_node", use_sim="false", state_dir=tmp_path)
    assert not call(graph, Trigger, "reset_done").success
    assert "no episode is running" in call(graph, MarkStage, "mark_stage").message
    started = call(graph, StartEpisode, "start_episode", seed=-1)
    assert started.success and "then call reset_done" in started.message
    graph.wait(lambda: heard.last.state == Episode.RESETTING, 30.0, "RESETTING")
    assert heard.last.id == started.id and "insert the peg" in heard.last.message
    assert call(graph, EndEpisode, "end_episode", outcome=EndEpisode.Request.DISCARDED).success
    graph.wait(lambda: heard.last.state == Episode.IDLE, 30.0, "IDLE")

    started = call(graph, StartEpisode, "start_episode", seed=-1)
    assert call(graph, Trigger, "reset_done").success
    graph.wait(lambda: heard.last.state == Episode.RUNNING, 30.0, "RUNNING")
    assert heard.last.id == started.id and heard.last.message == ""
    assert call(graph, MarkStage, "mark_stage", stage="lift").success
    graph.wait(lambda: heard.last.stage == "lift", 30.0, "the stage is told")
    assert "did you mean 'insert'" in call(graph, MarkStage, "mark_stage", stage="inser").message
    assert call(graph, EndEpisode, "end_episode", outcome=EndEpisode.Request.SUCCESS).success
    answer = call(graph, Trigger, "undo_label")
    if answer.success:  # a machine that takes ten seconds to answer takes nothing back
        graph.wait(lambda: heard.last.outcome == Episode.UNKNOWN, 30.0, "the label is taken back")
    assert answer.success or "ended" in answer.message
