"""What the next iteration would take: from the records of the one before, scaled to the data."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from recap_learner.forecast import BACKWARD, forecast
from recap_learner.improve import Improvement

HOW = Improvement()


def bags(folder: Path, count: int) -> list[str]:
    for k in range(count):
        (folder / f"bag{k}").mkdir(parents=True)
        (folder / f"bag{k}" / "metadata.yaml").write_text("{}")
        (folder / f"bag{k}" / f"bag{k}.mcap").write_bytes(b"")
    return [f"bag{k}" for k in range(count)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten attempts, eight of them converted, and no iteration yet."""
    run = tmp_path / "run"
    for part in ("vision", "value", "policy"):
        (run / "pretrain" / part).mkdir(parents=True)
    (run / "episodes").mkdir()
    for name in bags(run / "demonstrations", 10)[:8]:
        (run / "episodes" / f"{name}.episode.parquet").write_bytes(b"")
    return run


def record(run: Path, how: Improvement = HOW) -> None:
    """The first iteration, of four attempts with 1000 frames."""

    def one(began: int, seconds: float, inputs: list[str], outputs: list[str], **more: Any) -> dict[str, Any]:
        found = {"began": f"{began}", "seconds": seconds, "outputs": dict.fromkeys(outputs)}
        return {**found, "inputs": dict.fromkeys(inputs), "settings": None, "result": {}, **more}

    data, files = {"episodes": 4, "frames": 1000}, [f"episodes/bag{k}.episode.parquet" for k in range(4)]
    value, policy = ([{type(t).__name__: asdict(t)}, 1] for t in (how.value, how.policy))
    first, labels = "iteration_01.episodes", "iteration_01.labels"
    stages = {
        first: one(1, 40.0, ["bags"], files, result=data),
        "iteration_01.value": one(2, 100.0, [first], ["iteration_01/value"], settings=value),
        labels: one(3, 5.0, [first, "iteration_01.value"], []),
        "iteration_01.policy": one(4, 200.0, [first, labels], ["iteration_01/policy"], settings=policy),
    }
    (run / "iteration_01" / "policy").mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"stages": stages}))


def test_a_run_without_an_iteration_has_no_estimate(run: Path) -> None:
    found = forecast(run, [], HOW)
    assert (found.iteration, found.attempts, found.new, found.problem) == (1, 10, 2, "")
    assert found.seconds is None and all(step.seconds is None for step in found.steps)


def test_times_are_scaled_to_new_attempts_frames_and_steps(run: Path) -> None:
    record(run)
    how = replace(HOW, policy=HOW.policy.for_steps(3 * HOW.policy.schedule.steps))
    found = forecast(run, [], how)
    took = {step.stage: step.seconds for step in found.steps}
    assert (found.iteration, found.like) == (2, 1)
    assert took["episodes"] == pytest.approx(40.0 * 2 / 4), "two are new, four had been"
    assert took["labels"] == pytest.approx(5.0 * 10 / 4)
    assert took["policy"] == pytest.approx(200.0 * 3)
    value = HOW.value
    trained = BACKWARD * value.schedule.steps * value.schedule.batch * value.folds
    assert took["value"] == pytest.approx(100.0 * (trained + 2500) / (trained + 1000))
    assert found.seconds == pytest.approx(sum(took.values()))


def test_bags_from_elsewhere_count_once(run: Path, tmp_path: Path) -> None:
    bags(tmp_path / "live", 13)
    assert forecast(run, [tmp_path / "live"], HOW).attempts == 23
    assert forecast(run, [run / "demonstrations"], HOW).attempts == 10


def test_what_cannot_be_made_is_said(run: Path, tmp_path: Path) -> None:
    assert "no pre-trained vision" in forecast(tmp_path / "empty", [], HOW).problem
    (run / "box" / "iteration_00").mkdir(parents=True)
    assert "several tasks" in forecast(run, [], HOW).problem
