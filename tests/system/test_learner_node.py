"""The learner over real ROS 2: bags come in, training begins by itself, and only a good checkpoint is offered
without a person's word. Trainings are real and as short as there can be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

import learner_rig
from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph
from rclpy.context import Context
from rclpy.node import Node
from recap_interfaces.msg import LearnerState, TrainingCurve
from recap_interfaces.srv import DecideCheckpoint, LoadPolicy, StartTraining

from recap_learner.evaluation.evaluation import read_evaluation
from recap_policy.description import read
from recap_station import topics
from recap_station.nodes import qos

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 400.0  # of one training with all that comes after it


class Onlooker(Node):
    """Plays the policy node, and a person who looks on and decides."""

    def __init__(self, context: Context):
        super().__init__("onlooker", context=context)
        self.state = LearnerState()
        self.asked: list[str] = []
        self.curves: list[TrainingCurve] = []
        self.lines: dict[str, tuple[bytes, str]] = {}
        self.create_subscription(LearnerState, topics.LEARNER_STATE, self._on_state, qos.LATCHED)
        self.create_subscription(TrainingCurve, topics.LEARNER_CURVES, self.curves.append, qos.EVENT)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENT)
        self.create_service(LoadPolicy, "load_policy", self._on_load)
        self.decide = self.create_client(DecideCheckpoint, "decide_checkpoint")
        self.train = self.create_client(StartTraining, "start_training")

    def _on_state(self, message: LearnerState) -> None:
        self.state = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.lines |= {status.name: (status.level, status.message) for status in message.status}

    def _on_load(self, request: LoadPolicy.Request, response: LoadPolicy.Response) -> LoadPolicy.Response:
        self.asked.append(request.path)
        response.success, response.message = True, "loaded"
        return response


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("learner")
    task = learner_rig.make_task(folder)
    learner_rig.pretrain(folder / "run", task)
    with Graph(folder, Onlooker) as graph:
        yield graph


def learner(graph: Graph, **given: Any) -> None:
    folder = graph.folder
    graph.start(
        "learner",
        "recap_learner.nodes.learner_node",
        **{"run": folder / "run", "bag_dir": folder / "bags", "task": folder / "quick.yaml", **given},
    )


def call(graph: Graph, client: Any, request: Any) -> Any:
    graph.wait(client.service_is_ready, 60, client.srv_name)
    future = client.call_async(request)
    graph.wait(future.done, 60, f"an answer of {client.srv_name}")
    return future.result()


def workers(graph: Graph) -> list[psutil.Process]:
    """Whatever the learner has started on this run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if f"{graph.folder}/run" in process.cmdline() and "recap_learner.nodes" not in str(
                process.cmdline()
            ):
                found.append(process)
    return found


@pytest.mark.timeout(900)
def test_a_bad_checkpoint_waits_for_a_word_and_a_good_one_is_offered(graph: Graph) -> None:
    onlooker, folder, task = graph.world, graph.folder, graph.folder / "quick.yaml"
    bags = folder / "bags"
    learner_rig.attempts(bags, task, range(10, 14))
    learner_rig.attempt(bags / "unjudged", task, 30, outcome="")
    open_ = learner_rig.attempt(bags / "open", task, 31, close=False)
    broken = bags / "broken"
    broken.mkdir()
    (broken / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    (broken / "broken_0.mcap").write_bytes(b"nothing of a bag")
    # One step: a value function that says nothing.
    learner(graph, train_after=4, value_steps=1, policy_steps=21, settle_s=600.0)
    graph.wait(lambda: onlooker.state.withheld, LIMIT_S, "a checkpoint is withheld")
    state = onlooker.state
    bad = str(folder / "run" / "iteration_01" / "policy")
    assert state.withheld == bad and state.state == LearnerState.WITHHELD and not state.offered
    assert any("value function: " in reason for reason in state.reasons), state.reasons
    assert f"{bad} is not offered: value function: " in state.message
    assert (state.attempts, state.demonstrations, state.unknown) == (9, 4, 1)  # without the open one
    assert (state.successes, state.failures, state.fresh) == (6, 2, 0)
    assert [str(broken) in line for line in state.problems] == [True]
    graph.wait(lambda: "learner: offer" in onlooker.lines, 10)
    assert "decide_checkpoint can accept it" in onlooker.lines["learner: offer"][1]
    curves = {(c.model, c.step): dict(zip(c.names, c.values, strict=True)) for c in onlooker.curves}
    log = json.loads((folder / "run/iteration_01/training/policy/log.json").read_text())
    assert curves["iteration_01/policy", 20]["loss"] == pytest.approx(log[-1]["loss"])
    assert ("iteration_01/value.fold1", 0) in curves

    graph.kill("learner")
    graph.wait(lambda: not workers(graph), 20, "its processes end with it")
    onlooker.state = LearnerState()
    open_.close()
    learner(graph, value_steps=120, policy_steps=20, settle_s=600.0)
    graph.wait(lambda: onlooker.state.withheld == bad, 60, "it remembers")
    refused = call(graph, onlooker.decide, DecideCheckpoint.Request(accept=True))
    assert not refused.success and "wanted who decides and why" in refused.message
    assert onlooker.asked == []
    word = DecideCheckpoint.Request(accept=True, who="operator", why="to see what it does")
    answer = call(graph, onlooker.decide, word)
    assert answer.success, answer.message
    graph.wait(lambda: onlooker.asked == [bad] and not onlooker.state.withheld, 30, "it is offered")
    events = [json.loads(line) for line in (folder / "run/learner.jsonl").read_text().splitlines()]
    [kept] = [event for event in events if event["event"] == "decided"]
    assert (kept["who"], kept["why"]) == ("operator", "to see what it does") and kept["when"]

    # As many more attempts, and a value function that has learnt something.
    learner_rig.attempts(bags, task, range(14, 20))
    graph.wait(lambda: onlooker.state.fresh == 7, LIMIT_S, "the attempts, with the one that was open")
    assert call(graph, onlooker.train, StartTraining.Request()).success
    good = str(folder / "run" / "iteration_02" / "policy")
    graph.wait(lambda: onlooker.state.offered == good, LIMIT_S, "the good one is offered")
    assert onlooker.asked == [bad, good] and not onlooker.state.withheld


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_policies_are_tried_on_the_same_start_states_before_an_offer(
    graph: Graph, tmp_path: Path
) -> None:
    """The new one and the one in use, in the simulated cell; neither can do anything, hence none is worse."""
    onlooker = graph.world
    task = learner_rig.make_task(tmp_path, "handover_insert")
    learner_rig.pretrain(tmp_path / "run", task)
    learner_rig.attempts(tmp_path / "bags", task, range(10, 20))
    own = {"run": tmp_path / "run", "bag_dir": tmp_path / "bags", "task": task, "use_sim": True}
    first = tmp_path / "run/iteration_00/policy"
    learner(graph, **own, checkpoint=first, evaluations=3, value_steps=120, policy_steps=20, train_after=8)
    policy = str(tmp_path / "run/iteration_01/policy")
    graph.wait(lambda: onlooker.state.offered == policy or onlooker.state.withheld, LIMIT_S, "a verdict")

    assert onlooker.state.offered == policy and not onlooker.state.reasons, onlooker.state.reasons
    found = [read_evaluation(file) for file in sorted((tmp_path / "run/offers").glob("*.json"))]
    assert {e.identity for e in found} == {read(first).identity, read(policy).identity}
    assert [[a.seed for a in e.attempts] for e in found] == [[70_000, 70_001, 70_002]] * 2
    events = [json.loads(line) for line in (tmp_path / "run/learner.jsonl").read_text().splitlines()]
    [judged] = [event for event in events if event["event"] == "judged"]
    assert any("success" in note for note in judged["notes"]), judged


@pytest.mark.timeout(300)
def test_a_training_that_cannot_be_is_told_and_the_node_stays(graph: Graph, tmp_path: Path) -> None:
    onlooker = graph.world
    (tmp_path / "bags").mkdir()
    learner(graph, run=tmp_path / "run", bag_dir=tmp_path / "bags")
    graph.wait(lambda: onlooker.state.run == str(tmp_path / "run"), 60, "another run")
    assert call(graph, onlooker.train, StartTraining.Request()).success
    graph.wait(lambda: onlooker.state.state == LearnerState.FAILED, LIMIT_S, "it has failed")
    assert "no attempt with an outcome, wanted some to learn from" in onlooker.state.message
    graph.wait(lambda: "no attempt" in onlooker.lines.get("learner: training", (b"", ""))[1], 10)
    process = graph.processes["learner"]
    assert call(graph, onlooker.train, StartTraining.Request()).success
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert process.wait(10) == 0 and time.monotonic() - begin < 10
    graph.wait(lambda: not [p for p in workers(graph) if str(tmp_path) in str(p.cmdline())], 5, "no process")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_loop_does_not_feel_the_training_beside_it() -> None:
    """Missed ticks of a bring-up with and without `concurrent:=true`: shown, for they depend on the machine;
    what is held is that both ran, and that it trained."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/beside_training.py", "--minutes", "0.5", "--turns", "1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for how in ("without", "with"):
        print(f"{how}: {found[f'missed_ticks_{how}']} missed of {found[f'ticks_{how}']}, "
              f"p99 {found[f'period_p99_ms_{how}']} ms")  # fmt: skip
    assert found["training_cpu_s"] > 0 and min(found["ticks_with"], found["ticks_without"]) > 200
