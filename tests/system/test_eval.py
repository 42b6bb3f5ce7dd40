"""`./recap eval`: the same numbers however often it is killed; wrong words and wrong files are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from recap.cli import main
from recap.evaluate import entrants, training_seeds
from recap.journal import Journal
from recap.robot_cell import RobotCell
from recap.rollout import Rollouts
from recap.sim_cell import SimCell
from recap_learner.evaluation.evaluation import Attempt, EvaluationError, read_evaluation
from recap_learner.evaluation.recorded_evaluation import evaluate_recorded
from recap_policy.description import read
from recap_policy.interface import Sampling
from recap_station.contract import config_folders, load_station

SHORT_S = 1.0


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a short task, and a run with two untrained policies."""
    import torch

    from recap_policy.checkpoint import save_policy
    from recap_policy.sizes import vla_config
    from recap_policy.text import TinyTokenizer
    from recap_policy.vla import VLA

    folder = tmp_path_factory.mktemp("world")
    source = next(f for f in (c / "tasks" / "handover_insert.yaml" for c in config_folders()) if f.exists())
    task = yaml.safe_load(source.read_text()) | {"time_limit_s": SHORT_S}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    for number in range(2):
        torch.manual_seed(number)
        model = VLA(vla_config("tiny"), TinyTokenizer.fit(["insert the peg", "reach"], 128))
        policy = folder / "run" / f"iteration_{number:02d}" / "policy"
        save_policy(model, policy, {"start": "", "episodes": []}, station=load_station("aloha"))
    return folder


def command(world: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "recap", "eval", *words, "--task", str(world / "task.yaml"), "--json"]


def run(world: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    done = subprocess.run(command(world, *words), capture_output=True, text=True, cwd=world, timeout=200)
    return done, json.loads(done.stdout.splitlines()[-1])


def test_killed_at_any_moment_and_run_again_it_gives_the_same_numbers(world, tmp_path):
    policies = [str(world / "run" / f"iteration_{n:02d}" / "policy") for n in range(2)]
    words = [*policies, "--attempts", "6"]
    _, unbroken = run(world, *words, "--out", str(tmp_path / "unbroken"), "--workers", "2")
    out = tmp_path / "killed"
    kills = 0
    for lines in (1, 5):
        killed = subprocess.Popen(command(world, *words, "--out", str(out), "--workers", "1"), cwd=world,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 100
        while sum(p.read_bytes().count(b"\n") for p in out.glob("*.jsonl")) < lines + 2:
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        kills += 1
    journals = sorted(out.glob("*.jsonl"))
    with journals[0].open("ab") as file:
        file.write(b'{"seed": 90005, "succ')  # as a crash of the machine would cut it
    before = {p: p.read_bytes().count(b"\n") - 1 for p in journals}
    assert kills == 2 and 5 <= sum(before.values()) < 12
    done, resumed = run(world, *words, "--out", str(out))
    assert done.returncode == 0

    def told(result):
        return [{k: v for k, v in p.items() if k not in ("file",)} for p in result["policies"]]

    assert told(resumed) == told(unbroken) and resumed["comparisons"] == unbroken["comparisons"]
    for first, second in zip(resumed["policies"], unbroken["policies"], strict=True):
        assert read_evaluation(Path(first["file"])).attempts == read_evaluation(Path(second["file"])).attempts
    # A third time nothing is left to do, and fewer attempts are the first of them.
    _, fewer = run(world, *words[:2], "--attempts", "3", "--out", str(out))
    assert [p["attempts"] for p in fewer["policies"]] == [3, 3]


def test_an_early_end_is_where_the_attempts_say_not_where_the_processes_were(world, tmp_path):
    policy = str(world / "run" / "iteration_00" / "policy")
    words = (policy, "--attempts", "30", "--until-width", "0.7", "--out", str(tmp_path))
    _, found = run(world, *words)
    one = found["policies"][0]
    # With no success in n attempts the sequence is 0 .. its upper end: 4 attempts make that less than 0.7.
    assert one["attempts"] == 4 and one["stopping"]["planned"] == 30
    assert one["success_interval"] == "confidence sequence" and one["success_ci95"][1] < 0.7
    _, again = run(world, *words, "--workers", "1")
    assert again["policies"][0]["attempts"] == 4


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "wanted CHECKPOINT, or --bags"),
        (["POLICY", "--beta", "1,two"], 2, "--beta: wanted a number"),
        (["POLICY", "--beta", "99"], 1, "beta is 99"),
        (["POLICY", "--indicator", "good"], 2, "found 'good'"),
        (["POLICY", "--until-width", "3"], 2, "less than 1"),
        (["POLICY", "--until-decided"], 2, "two policies"),
        (["POLICY", "--reset-s", "-4"], 2, "greater than or equal to 0"),
        (["POLICY", "--reset-s", "inf"], 2, "less than or equal to 86400"),
        (["POLICY", "POLICY"], 1, "given twice"),
        (["POLICY", "--attempts", "0"], 2, "attempts"),
        (["nowhere"], 1, "nowhere: no checkpoint there"),
        (["--bags", "nowhere"], 1, "nowhere: wanted a bag"),
        (["--bags", "nowhere", "--live"], 2, "without --live"),
        (["POLICY", "--live", "--until-decided"], 2, "wanted one policy"),
        (["POLICY", "--station", "aloah"], 1, "'aloha'"),
    ],
)
def test_wrong_words_are_told_in_one_line(world, words, code, said, capsys, monkeypatch):
    monkeypatch.chdir(world)
    policy = str(world / "run" / "iteration_00" / "policy")
    with pytest.raises(SystemExit) as ended:
        main(command(world, *(policy if word == "POLICY" else word for word in words))[3:])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    assert (
        said in json.loads(shown.out.splitlines()[-1])["error"] and len(shown.err.strip().splitlines()) == 1
    )


def test_a_journal_of_another_setting_a_broken_one_and_a_busy_one_are_refused(world, tmp_path):
    policy = world / "run" / "iteration_00" / "policy"
    made = entrants([policy], [Sampling()], Rollouts("aloha", str(world / "task.yaml")), tmp_path)[0]
    with Journal(made.journal, made.key) as journal:
        journal.add(Attempt(1, True, "success", 2.0, 0, 0.0))
        with pytest.raises(EvaluationError, match="one at a time"), Journal(made.journal, made.key):
            pass
    with Journal(made.journal, made.key) as journal:
        assert list(journal.attempts) == [1]
    with (
        pytest.raises(EvaluationError, match="another policy or setting"),
        Journal(made.journal, made.key[:8]),
    ):
        pass
    made.journal.write_bytes(made.journal.read_bytes() + b"{no json\n")
    with pytest.raises(EvaluationError, match="line 3 cannot be read"), Journal(made.journal, made.key):
        pass


def test_a_policy_under_another_setting_or_with_other_weights_has_a_journal_of_its_own(world, tmp_path):
    first, second = (world / "run" / f"iteration_{n:02d}" / "policy" for n in range(2))
    how = Rollouts("aloha", str(world / "task.yaml"))
    one = entrants([first, second], [Sampling(), Sampling(beta=2.0)], how, tmp_path)
    one += entrants([first], [Sampling()], replace(how, execute_steps=10), tmp_path)
    assert len({e.journal for e in one}) == 5
    copy = shutil.copytree(first, tmp_path / "elsewhere" / "policy")
    assert entrants([copy], [Sampling()], how, tmp_path)[0].journal == one[0].journal


def test_start_states_that_training_has_seen_are_refused(world, recorded, tmp_path):
    from recap_policy.checkpoint import load_policy, save_policy

    shutil.copytree(recorded, tmp_path / "bags")
    model = load_policy(world / "run" / "iteration_00" / "policy")
    station, run_folder = load_station("aloha"), tmp_path / "run"
    from recap_learner.data.episodes import convert_bags

    files, _ = convert_bags([tmp_path / "bags"], run_folder / "episodes")
    names = [f.name.removesuffix(".episode.parquet") for f in files]
    save_policy(
        model, run_folder / "pretrain" / "policy", {"start": "", "episodes": names[:2]}, station=station
    )
    start = str(tmp_path / "moved" / "pretrain" / "policy")  # where the run was once
    policy = run_folder / "iteration_00" / "policy"
    save_policy(model, policy, {"start": start, "episodes": names[2:]}, station=station)
    assert training_seeds(policy, "handover_insert") == {0, 1, 2}
    assert training_seeds(policy, "another") == set()
    done, last = run(world, str(policy), "--seed", "2", "--attempts", "2")
    assert done.returncode == 1 and "learned from 1 of these 2 start states (2)" in last["error"]
    done, last = run(world, str(policy), "--seed", "2", "--attempts", "2", "--training-seeds")
    assert done.returncode == 0 and "not a held-out evaluation" in last["policies"][0]["notes"][0]
    save_policy(model, tmp_path / "alone" / "policy", {}, station=station)
    assert training_seeds(tmp_path / "alone" / "policy", "handover_insert") is None


@pytest.fixture(scope="module")
def recorded(world, tmp_path_factory) -> Path:
    """Bags of three attempts of a policy."""
    from recap.rollout import run_attempts

    bags = tmp_path_factory.mktemp("recorded") / "bags"
    policy = world / "run" / "iteration_00" / "policy"
    rollouts = Rollouts("aloha", str(world / "task.yaml"), checkpoint=policy, bags=bags, camera_hz=2.0)
    run_attempts(rollouts, range(3))
    return bags


def test_bags_are_evaluated_by_checkpoint_with_a_person_s_outcomes(world, recorded, tmp_path):
    from recap_station.bags import amend_metadata

    bags = Path(shutil.copytree(recorded, tmp_path / "bags"))
    first, second, third = sorted(p for p in bags.iterdir() if p.is_dir())
    amend_metadata(first, {"recap.outcome": "success", "recap.reason": "a person said so"})
    amend_metadata(second, {"recap.checkpoint": "another/policy"})
    amend_metadata(third, {"recap.outcome": "discarded"})
    done, found = run(world, "--bags", str(bags), "--reset-s", "9", "--with-reset")
    assert done.returncode == 0 and "1 attempts left out, discarded" in done.stderr
    by_name = {p["name"]: p for p in found["policies"]}
    assert by_name["another/policy"]["successes"] == 0
    one = by_name["iteration_00/policy"]
    assert one["successes"] == one["attempts"] == 1
    assert one["throughput_per_hour"] == pytest.approx(3600 / (SHORT_S + 9), rel=0.02)
    assert Path(one["file"]).parent == tmp_path / "evaluations"
    assert found["comparisons"][0]["paired"] is False  # other start states
    done, only = run(world, "another/policy", "--bags", str(bags), "--reset-s", "9")
    assert [p["name"] for p in only["policies"]] == ["another/policy"]
    policy = world / "run" / "iteration_00" / "policy"
    amend_metadata(first, {"recap.checkpoint": read(policy).identity})  # as the live graph calls it
    _, both = run(world, "another/policy", str(policy), "--bags", str(bags), "--reset-s", "9")
    assert [p["name"] for p in both["policies"]] == ["another/policy", "iteration_00/policy"]
    done, wrong = run(world, "third/policy", "--bags", str(bags))
    assert done.returncode == 1 and "wanted one of" in wrong["error"]


def test_a_store_s_judgements_count_and_damaged_bags_are_named(recorded, tmp_path):
    from recap_learner.data.episodes import convert_bags
    from recap_learner.data.judgements import say

    bags, store = Path(shutil.copytree(recorded, tmp_path / "bags")), tmp_path / "episodes"
    files, _ = convert_bags([bags], store)
    say(store, "ann", files[1].name.removesuffix(".episode.parquet"), "outcome", outcome="success", reason="")
    found, problems = evaluate_recorded([store])
    assert [a.seed for a in found[0].attempts] == [0, 1, 2] and not problems
    assert sum(a.success for a in found[0].attempts) == 1
    assert found[0].attempts[0].stages == {"reach": 0.0} and found[0].attempts[0].duration_s >= SHORT_S - 0.03
    damaged, gone, _ = sorted(p for p in bags.iterdir() if p.is_dir())
    for file in damaged.glob("*"):
        file.write_bytes(b"")
    shutil.rmtree(gone)
    found, problems = evaluate_recorded([bags])
    assert len(found[0].attempts) == 1 and len(problems) == 1
    with pytest.raises(EvaluationError, match="cannot be seen in the recordings: wanted --reset-s"):
        evaluate_recorded([bags], count_reset=True)


def test_an_iteration_s_evaluation_is_read_as_any_other(world, tmp_path):
    task, policy = str(world / "task.yaml"), world / "run" / "iteration_01" / "policy"
    out = tmp_path / "eval.json"
    how = SimCell(evaluations=2, workers=1).evaluation(task, policy, tmp_path)
    found = how.run(policy, "", out, lambda fraction, note: None)
    written = read_evaluation(out)
    assert [a.seed for a in written.attempts] == [90_000, 90_001] and written.stages
    assert written.settings["indicator"] == "none" and written.identity == read(policy).identity
    assert found["attempts"] == 2 and found["stages"].keys() == set(written.stages)
    again = how.run(policy, "", out, lambda fraction, note: pytest.fail("an attempt was made again"))
    assert again == found
    assert SimCell(evaluations=0).evaluation(task, policy, tmp_path) is None


def test_on_a_robot_what_was_recorded_of_a_policy_is_its_evaluation(world, recorded, tmp_path):
    from recap_learner.data.episodes import convert_bags
    from recap_station.bags import amend_metadata

    run, cell = tmp_path / "run", RobotCell(SimCell())
    policy, store = run / "iteration_00" / "policy", run / "episodes"
    shutil.copytree(world / "run" / "iteration_00" / "policy", policy)
    assert cell.evaluation("handover_insert", policy, store) is None  # nothing is recorded yet
    bags = Path(shutil.copytree(recorded, run / "iteration_01" / "bags"))
    convert_bags([bags], store)
    how, out = cell.evaluation("handover_insert", policy, store), run / "iteration_00" / "eval.json"
    assert bags in how.inputs
    of_another = how.run(policy, "positive", out, lambda fraction, note: None)
    assert "not evaluated: checkpoint" in of_another["notices"][0] and not out.exists()
    for bag in bags.iterdir():
        amend_metadata(bag, {"recap.checkpoint": read(policy).identity})  # as the live graph calls it
    convert_bags([bags], store)
    found = how.run(policy, "positive", out, lambda fraction, note: None)
    assert found["attempts"] == len(read_evaluation(out).attempts) == 3
