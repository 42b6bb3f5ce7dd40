"""`./recap iterate`: wrong words are told before any work; a run on a robot says what it waits for."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recap import sim_cell
from recap.cli import main
from recap.demo import DemoConfig
from recap.iterate_verb import settings
from recap.rollout import Attempt
from recap.sim_cell import SimCell
from recap_learner.algorithm import Algorithm
from recap_learner.cell import Order
from recap_learner.stages import StageError
from recap_learner.value.gates import Gates


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """→ (exit code, standard error)"""
    with pytest.raises(SystemExit) as ended:
        main(["iterate", *words])
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--compare", "dagger"], 2, "no arm 'dagger' (there are: recap, "),
        (["--extract", "bc"], 2, "no arm 'bc'"),
        (["--start", "first"], 2, "start is 'first', wanted pretrained or last"),
        (["--steps", "vision"], 2, "--steps: wanted vision, value, policy or finetune with a number"),
        (["--iterations", "0", "--compare", "awr"], 2, "0 iterations, wanted at least 1"),
        (["--demonstrations", "nowhere"], 2, "wanted a number or a folder of bags, found 'nowhere'"),
        (["--demonstrations", "1"], 2, "wanted 2 or more, found 1"),
        (["--gates", "ajar"], 2, "--gates: wanted fail or warn, found 'ajar'"),
        (["--cotraining", "nowhere.parquet"], 2, "nowhere.parquet: wanted a Parquet file of captions"),
        (["--collect", "dreams"], 2, "--collect: wanted sim or robot, found 'dreams'"),
        (["--set", "improvement.rule.lookahaed=5"], 2, "did you mean 'lookahead'?"),
        (["--set", "improvement.value.members=0"], 2, "0 members by 'mean'"),
        (["--set", 'value.mixture.kinds={"person": 1}'], 2, "kind 'person', wanted demonstration"),
        (["--set", "policy.checkpointing=perhaps"], 2, "found 'perhaps', wanted true or false"),
        (["--gates", "warn", "--set", "gates.spread=0.1"], 2, "there is no 'spread', what it is of is none"),
        (["--task", "handover_insrt"], 1, "did you mean 'handover_insert'?"),
        (["--task", "handover_insert", "--task", "handover_insert"], 2, "wanted each once"),
    ],
)
def test_wrong_words_are_told_in_one_line_and_leave_nothing(
    words: list[str], code: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = run([*words, "--run", str(tmp_path / "run")], capsys)
    assert found == code and line in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise FloatingPointError("step 3 (batch of seed 1): loss nan")

    monkeypatch.setattr("recap_learner.algorithm.algorithm_1", broken)
    code, said = run(["--run", str(tmp_path / "run")], capsys)
    assert code == 1 and said.splitlines()[-1] == "recap: step 3 (batch of seed 1): loss nan"


def test_all_arms_can_be_asked_for() -> None:
    how = settings(1, "pretrained", "recap", "all", False, "value=5,finetune=7", 3, True)
    assert len(how.compare) == 9 and "recap" not in how.compare
    assert how.value.schedule.steps == how.improvement.value.schedule.steps == 5
    assert how.improvement.policy.schedule.steps == 7 and how.seed == how.improvement.seed == 3


def test_gates_end_a_run_that_is_large_enough_to_be_judged() -> None:
    def how(quick: bool, gates: str = "") -> Algorithm:
        return settings(1, "pretrained", "recap", "", False, "", 1, quick, gates, 0.5)

    assert how(quick=False).gates == Gates() == how(quick=True, gates="fail").gates
    assert how(quick=True).gates is None and how(quick=False, gates="warn").gates is None
    assert how(quick=False).improvement.value.mixture.fresh_share == 0.5
    assert how(quick=False).value.mixture.even  # pre-training has no iteration
    assert DemoConfig().algorithm.gates is None


def test_a_robots_iteration_says_what_to_record_and_goes_on_with_it(tmp_path: Path) -> None:
    from recap.robot_cell import RobotCell

    [way] = RobotCell(SimCell()).collections("handover_insert", 1)
    order = Order("handover_insert", tmp_path / "bags", tmp_path, 1, tmp_path / "iteration_00" / "policy")
    assert not way.ours
    with pytest.raises(
        StageError, match=r"iteration 1 waits for attempts of .*policy: record them into .*bags"
    ):
        way.fill(order, lambda fraction, note: None)


def test_attempts_that_are_noted_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def attempts(how, seeds, workers, report, each):
        asked.append(list(seeds))
        made = [Attempt(s, s != 10_000, "", 1.0, 0, 0.0, bag=str(how.bags / f"bag{s}")) for s in seeds]
        for attempt in made:
            (how.bags / f"bag{attempt.seed}").mkdir()
            each(attempt)
        return made

    monkeypatch.setattr(sim_cell, "run_attempts", attempts)
    monkeypatch.setattr(sim_cell, "convert_bags", lambda bags, store: None)
    [way] = SimCell(rollouts=3).collections("handover_insert", 1)
    order = Order("handover_insert", tmp_path / "bags", tmp_path, 1, tmp_path / "policy")
    first = way.fill(order, lambda fraction, note: None)
    assert asked == [[10_000, 10_001, 10_002]] and first["success"] == pytest.approx(2 / 3)
    journal = tmp_path / "bags.jsonl"
    journal.write_text(journal.read_text()[:-9])  # the last line was cut short
    (tmp_path / "bags" / "bag10001").rmdir()  # and a bag is gone
    assert way.fill(order, lambda fraction, note: None) == first
    assert asked[1:] == [[10_001, 10_002]]
    assert way.fill(order, lambda fraction, note: None) == first and len(asked) == 2


def test_whatever_learning_has_can_be_set() -> None:
    words = {
        "improvement.rule.positive_fraction": "0.1",
        "improvement.rule.failure_point": "estimated",
        "improvement.rule.whole_episode_quantile": "none",
        "improvement.value.members": "3",
        "improvement.value.mixture.kinds": '{"rollout": 1, "correction": 2}',
        "improvement.policy.schedule.learning_rate": "1e-3",
        "policy.checkpointing": "true",
        "gates.outcome_auc": "0.6",
        "gates.fast_auc": "none",
    }
    said = [f"{name}={value}" for name, value in words.items()]

    how = settings(1, "pretrained", "recap", "", False, "", 1, False, other=said)

    again = how.improvement
    assert (again.rule.positive_fraction, again.rule.failure_point) == (0.1, "estimated")
    assert again.rule.whole_episode_quantile is None and again.value.members == 3
    assert again.value.mixture.kinds == {"rollout": 1, "correction": 2}
    assert again.policy.schedule.learning_rate == 1e-3 and how.policy.checkpointing is True
    assert how.gates == Gates(outcome_auc=0.6, fast_auc=None)


QUICK = ["--quick", "--iterations", "1", "--compare", "awr", "--conditions", "--json"]
# Stages after which the run is killed, while the next one is at work.
KILLS = (
    "vision", "episodes", "pretrain_value", "iteration_00.sft", "iteration_01.value", "iteration_01.policy"
)  # fmt: skip


def _weights(run: Path) -> dict[str, str]:
    """File of weights → its SHA-256."""
    files = sorted(run.rglob("weights.safetensors"))
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _stages(run: Path) -> dict[str, dict]:
    manifest = run / "manifest.json"
    return json.loads(manifest.read_text())["stages"] if manifest.exists() else {}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_a_run_killed_time_and_again_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    def words(run: Path) -> list[str]:
        return [sys.executable, "-m", "recap", "iterate", *QUICK, "--run", str(run)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(words(whole), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for number, stage in enumerate(KILLS):
        begun = subprocess.Popen(words(broken), **quiet, start_new_session=True)
        until = time.monotonic() + 400
        while stage not in _stages(broken):
            assert begun.poll() is None and time.monotonic() < until, f"ended before {stage} was done"
            time.sleep(0.02)
        time.sleep(0.3 * number)
        os.killpg(begun.pid, signal.SIGKILL)
        begun.wait()

    again = subprocess.run(words(broken), capture_output=True, text=True, timeout=900)

    assert again.returncode == 0, again.stderr
    weights = _weights(whole)
    assert weights == _weights(broken) and len(weights) >= 7
    first, second = (json.loads(each.stdout.splitlines()[-1]) for each in (done, again))
    assert first["evaluations"] == second["evaluations"]
    assert "iteration_01.evaluate_awr" in first["evaluations"]
    assert {"vision", "pretrain_policy", "iteration_01.policy"} <= first["seconds"].keys()
    manifest = _stages(broken)
    assert manifest.keys() == _stages(whole).keys() and "iteration_01.conditions" in manifest
