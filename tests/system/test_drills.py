"""Each drill once over a real graph: whatever fails, the robot is safe, and all is well when it returns.

Time-outs are those of a busy machine, and what a busy machine may be the reason for is tried again;
`benchmarks/drills.py` measures the real ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("recap_interfaces.msg")

from drill import DRILLS, STATION, STEP, Result, Rig, run_drill
from rig import BUSY

from recap_station import topics
from recap_station.bags import BagReader
from recap_teleop.arbiter import Arbiter

pytestmark = pytest.mark.alone

TRIES = 3
NAMES = {rig: [name for name, what in DRILLS.items() if what.rig == rig] for rig in ("stand-in", "clock")}
SEEING = [name for name, what in DRILLS.items() if what.rig == "real policy"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("rig"), BUSY) as rig:
        yield rig


@pytest.fixture(scope="module")
def clock_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("clock"), BUSY, clock=True) as rig:
        yield rig


@pytest.fixture(scope="module")
def policy_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from policy_rate import untrained_policy

    folder = tmp_path_factory.mktemp("policy")
    with Rig(folder, BUSY, checkpoint=untrained_policy(folder / "checkpoint")) as rig:
        yield rig


def run(rig: Rig, name: str, seed: int, count: int = 1, during_s: float = 0.6) -> None:
    """Safe every time; once in a few tries everything as wanted."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        found: list[Result] = []
        while not found or (found[-1].problems and len(found) < TRIES):
            found.append(run_drill(rig, DRILLS[name], rng, before_s=(0.1, 0.4), during_s=during_s))
            assert not found[-1].unsafe, f"{name}: {found[-1]}\n{rig.log()}"
        assert not found[-1].problems, f"{name}: {found}\n{rig.log()}"


@pytest.mark.parametrize("name", NAMES["stand-in"])
def test_a_part_fails(rig: Rig, name: str) -> None:
    run(rig, name, seed=0)


def test_what_a_sleeping_recorder_lost_is_counted_in_the_bag(rig: Rig) -> None:
    result = run_drill(rig, DRILLS["recorder stopped for 2 s"], np.random.default_rng(4), (0.1, 0.2))
    assert not result.unsafe
    bag = BagReader(max(rig.bags.iterdir(), key=lambda path: path.stat().st_mtime))
    assert json.loads(bag.metadata["recap.dropped"]).get(topics.JOINT_COMMAND, 0) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES["stand-in"])
def test_a_part_fails_twenty_times(rig: Rig, name: str) -> None:
    run(rig, name, seed=1, count=20, during_s=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES["clock"])
def test_the_clock_is_set_back(clock_rig: Rig, name: str) -> None:
    run(clock_rig, name, seed=2, count=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_what_the_policy_sees_fails(policy_rig: Rig, name: str) -> None:
    run(policy_rig, name, seed=3, during_s=3.0)


def test_the_end_of_an_attempt_in_motion_is_no_jump() -> None:
    arbiter = Arbiter(STATION)
    arbiter.start(STATION.home)
    arm, commands = STATION.home.copy(), [STATION.home]
    for tick in range(60):
        now_s = tick * STATION.step_s
        arbiter.policy(now_s, STATION.home + np.where(STATION.is_gripper, 0.0, 0.04 * min(tick, 30)))
        if tick == 30:
            arbiter.episode(now_s, False)
        command = arbiter.tick(now_s, arm)
        assert command is not None
        arm = arm + 0.25 * (command.positions - arm)  # lags behind by some 80 ms, as the simulated one does
        commands.append(command.positions)
    steps = np.abs(np.diff(np.array(commands), axis=0)) / STEP
    assert steps[1:30].max() > 0.2  # it did move
    assert steps.max() <= 1.0 + 1e-9
