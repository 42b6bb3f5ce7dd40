"""Does the robot feel that its policy is being trained beside it? The last line is JSON.

    python benchmarks/beside_training.py [--minutes 10] [--cores 1]

A simulated cell is brought up (`./recap up`) again and again, by turns without training and with
`concurrent:=true`; in each, attempts follow one another and a person takes over at random moments. With it
the learner converts every attempt and trains all the while, with idle priority on --cores cores; a stretch
counts from the moment at which its policy's losses are heard. Periods are what a subscriber of
`joint_command` receives, missed ticks what station, arbiter and policy node count themselves;
`training_cpu_s` is what the training used meanwhile, of one core. Models are tiny
and know nothing: what is measured is the load. Exit 0 where no more ticks are missed with training than
without, and the period's p99 is at most 1 ms greater.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from control import WAIT_S, Person, soak
from rclpy.context import Context
from recap_interfaces.msg import LearnerState, TrainingCurve

from recap_station import topics
from recap_station.nodes import qos
from recap_station.nodes.base import claim_realtime

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/system"))
import learner_rig
from graph import Graph, end_on_signals

START_S = 600.0  # until training has come as far as the policy
TASK = "handover_insert"
WITHOUT, WITH = "without", "with"
ENDLESS = 10**7  # steps: training outlasts the measurement
WORST_MS = 1.0


class Onlooker(Person):
    """Hears the learner too."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.state = LearnerState()
        self.steps = 0  # of the policy's training
        self.create_subscription(LearnerState, topics.LEARNER_STATE, self._on_state, qos.LATCHED)
        self.create_subscription(TrainingCurve, topics.LEARNER_CURVES, self._on_curve, qos.EVENT)

    def _on_state(self, message: LearnerState) -> None:
        self.state = message

    def _on_curve(self, message: TrainingCurve) -> None:
        if message.model.endswith("/policy"):
            self.steps = message.step


@contextmanager
def cell(graph: Graph, folder: Path, how: str, cores: int) -> Iterator[None]:
    """A bring-up, until the policy commands and, with training, until the policy's losses are heard."""
    person: Onlooker = graph.world
    for seen in (person.spoken, person.missed):
        seen.clear()
    person.loaded, person.steps, person.state = False, 0, LearnerState()
    steps = folder / "learner.yaml"
    steps.write_text(
        f"/**:\n  ros__parameters:\n    value_steps: 20\n    policy_steps: {ENDLESS}\n    cores: {cores}\n"
    )
    run = folder / "run"
    words = [
        *("console:=false", f"bag_dir:={folder / 'bags'}", f"checkpoint:={run / 'iteration_00' / 'policy'}"),
        *(f"params_file:={steps}", f"task:={TASK}", "evaluations:=0"),
        *((f"run:={run}", "concurrent:=true") if how == WITH else ("convert:=false",)),
    ]
    log = (folder / f"up_{how}.log").open("a")
    up = [sys.executable, "-m", "recap", "up", "--manager", "supervisor", *words]
    graph.processes["up"] = subprocess.Popen(up, env=graph.environment, stdout=log, stderr=log)
    log.close()
    try:
        graph.wait(lambda: person.loaded and person.begin.service_is_ready(), 3 * WAIT_S, "the cell")
        if how == WITH:
            graph.wait(lambda: person.steps > 0, START_S, f"training ({person.state.message})")
        yield
    finally:
        process = graph.processes.pop("up")
        process.terminate()
        process.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of measurement in all")
    parser.add_argument("--turns", type=int, default=2, help="without and with, so many times")
    parser.add_argument("--cores", type=int, default=1, help="that the learner may use; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    if given.minutes <= 0 or given.turns < 1:
        parser.error(f"wanted minutes and turns above 0, found {given.minutes:g} and {given.turns}")
    end_on_signals()
    rng = np.random.default_rng(given.seed)
    found: dict[str, list[dict[str, Any]]] = {WITHOUT: [], WITH: []}
    trained, cpu_s = 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        learner_rig.pretrain(folder / "run", TASK)
        learner_rig.attempts(folder / "bags", TASK, range(10, 16))
        with Graph(folder, Onlooker) as graph:
            graph.start("leader", "faults", role="leader", seed=given.seed)
            gc.collect()
            gc.freeze()
            claim_realtime(10)  # as a real robot's driver, who listens in earnest
            for _ in range(given.turns):
                for how in (WITHOUT, WITH):
                    with cell(graph, folder, how, given.cores):
                        time.sleep(2.0)
                        steps, spent_s = graph.world.steps, training_cpu_s(graph)
                        seconds = 30.0 * given.minutes / given.turns
                        found[how].append(soak(graph, seconds, folder / "bags", rng))
                        trained += graph.world.steps - steps
                        cpu_s += training_cpu_s(graph) - spent_s
                    print(f"{how}: {json.dumps(found[how][-1])}", file=sys.stderr)
    result = {how: together(parts) for how, parts in found.items()}
    more = result[WITH]["missed_ticks"] - result[WITHOUT]["missed_ticks"]
    slower = result[WITH]["period_p99_ms"] - result[WITHOUT]["period_p99_ms"]
    held = more <= 0 and slower <= WORST_MS and cpu_s > 0
    about: dict[str, Any] = {"training_steps": trained, "training_cpu_s": round(cpu_s, 1)}
    about |= {"cores": given.cores, "cpus": len(os.sched_getaffinity(0))}
    flat = {f"{key}_{how}": value for how, part in result.items() for key, value in part.items()}
    print(json.dumps({**flat, **about, "minutes": given.minutes, "held": held}))
    return 0 if held else 1


def training_cpu_s(graph: Graph) -> float:
    """What the training under way has used of a core so far [s]."""
    total = 0.0
    for process in psutil.Process(graph.processes["up"].pid).children(recursive=True):
        with suppress(psutil.Error):
            if "recap_learner.improve" in process.cmdline():
                times = process.cpu_times()
                total += times.user + times.system
    return total


def together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Stretches of one kind: counts added, the worst p99 and maximum."""
    added = {key: sum(p[key] for p in parts) for key in ("ticks", "missed_ticks", "attempts", "takeovers")}
    return {**added, **{key: max(p[key] for p in parts) for key in ("period_p99_ms", "period_max_ms")}}


if __name__ == "__main__":
    sys.exit(main())
