"""`./recap study`: what is compared, a tiny study end to end, killed and gone on with, and its numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recap.changes import changed
from recap.cli import main
from recap.study.figures import write_figures
from recap.study.policies import POLICIES, Asked, Entry, chosen
from recap.study.records import Record, RecordError, identity, read_records
from recap.study.results import compare_policies, study_results, summarize_policy
from recap.study.settings import study_settings
from recap_learner.evaluation.evaluation import Attempt
from recap_station.contract import load_task

TASK = load_task("handover_insert")
ARMS = "offline_rl_sft,recap_1"


def command(folder: Path) -> list[str]:
    words = ["--quick", "--seeds", "1", "--workers", "1", "--attempts", "3", "--arms", ARMS, "--json"]
    words += ["--task", "handover_insert", "--run", str(folder)]
    return [sys.executable, "-m", "recap", "study", *words]


def test_a_study_killed_goes_on_and_ends_with_results(tmp_path):
    folder = tmp_path / "handover_insert" / "state" / "quick"
    manifest = folder / "seed_1" / "manifest.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = subprocess.Popen(command(tmp_path), **quiet, start_new_session=True)
    until = time.monotonic() + 400
    while not manifest.exists() or "pretrain_value" not in json.loads(manifest.read_text())["stages"]:
        assert begun.poll() is None and time.monotonic() < until, "ended before it could be killed"
        time.sleep(0.1)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    before = json.loads(manifest.read_text())["stages"]

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=500)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    stages = json.loads(manifest.read_text())["stages"]
    for name in ("demonstrations", "pretrain_value"):
        assert stages[name]["began"] == before[name]["began"]  # not made again
    found = json.loads((folder / "handover_insert.json").read_text())
    assert told["policies"] == found["policies"] and set(found["policies"]) == set(ARMS.split(","))
    for policy in found["policies"].values():
        assert policy["attempts"] == 3 and policy["training_seeds"] == [1]
    assert found["start_states"] == [50_000, 50_003] and "study" in found["command"]
    assert stages["iteration_01.rollouts"]["result"]["attempts"] == 8
    assert (folder / "handover_insert.iterations.svg").read_text().startswith("<svg")


def test_every_policy_starts_and_learns_as_the_paper_says():
    trained = {name: e for name, e in POLICIES.items() if isinstance(e, Entry)}
    assert {e.start for n, e in trained.items() if n.startswith("supervised")} == {"scratch"}
    assert all(e.iteration == 2 for n, e in trained.items() if n in ("awr", "ppo", "filtered_bc", "bc_all"))
    assert [n for n, e in trained.items() if e.own] == ["offline_rl_sft", "recap_1", "recap_2"]
    assert all(e.of == "recap_2" for e in POLICIES.values() if isinstance(e, Asked))
    assert chosen("", "images") == ["offline_rl_sft", "recap_1", "recap_2", "filtered_bc", "awr"]
    assert chosen("all", "images") == list(POLICIES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "magic"], "no policy 'magic' in the study"),
        (["--seeds", "0"], "--seeds: wanted numbers from 1 to 6, found '0'"),
        (["--observation", "touch"], "observation is 'touch', wanted state or images"),
    ],
)
def test_wrong_words_are_told(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "--task", "handover_insert", *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_setting_is_changed_by_its_path():
    how = changed(study_settings("state"), ["improvement.rule.positive_fraction=0.15", "rollouts=40"])
    assert how.improvement.rule.positive_fraction == 0.15 and how.rollouts == 40
    assert identity(how, TASK) != identity(study_settings("state"), TASK)
    for word, said in (
        ("improvement.rule.positive=1", "did you mean 'positive_fraction'"),
        ("rollouts=many", "rollouts is 40 so far: invalid literal"),
        ("styles=1", "wanted a setting that is a number, a word or a mapping"),
        ("styles={", "styles is .* so far"),
        ("rollouts", "wanted NAME=VALUE"),
    ):
        with pytest.raises(ValueError, match=said):
            changed(how, [word])


def test_no_start_state_is_used_twice():
    how = study_settings("state")
    used = set(range(40_000, 50_000 + how.attempts))  # of evaluations
    for seed in range(7):
        cell = how.cell(seed)
        own = {*range(cell.first_demonstration, cell.first_demonstration + cell.demonstrations_count)}
        own |= {*range(cell.first_rollout, cell.first_rollout + 2 * cell.rollouts)}
        assert not own & used
        used |= own
    with pytest.raises(ValueError, match=r"training seed 7, wanted 0 \.\. 6"):
        how.cell(7)


def attempts(rate: float, seconds: float, rng: np.random.Generator) -> list[Attempt]:
    won = rng.random(200) < rate
    return [Attempt(50_000 + i, bool(w), "", seconds if w else 15.0, 0, 0.0) for i, w in enumerate(won)]


def test_intervals_of_several_trainings_know_that_trainings_differ():
    rng = np.random.default_rng(0)
    alike = {seed: attempts(0.6, 8.0, rng) for seed in (1, 2, 3)}
    unlike = {seed: attempts(rate, 8.0, rng) for seed, rate in ((1, 0.4), (2, 0.6), (3, 0.8))}

    one, two = summarize_policy(alike), summarize_policy(unlike)

    assert (
        two["success_ci95"][1] - two["success_ci95"][0]
        > 0.25
        > one["success_ci95"][1] - one["success_ci95"][0]
    )
    assert one["success_ci95"][0] < one["success"] < one["success_ci95"][1]
    assert one["throughput_ci95"][0] < one["throughput_per_hour"] < one["throughput_ci95"][1]
    assert one["attempts"] == 600 and one["training_seeds"] == [1, 2, 3]


def test_twice_as_fast_and_half_as_many_failures_are_seen(tmp_path):
    rng = np.random.default_rng(1)
    slow, fast = {1: attempts(0.5, 10.0, rng)}, {1: attempts(0.75, 5.0, rng)}

    found = compare_policies(slow, fast)

    assert 2.0 < found["throughput_ratio"] < 3.0 and 0.3 < found["failures_ratio"] < 0.7
    assert found["throughput_ratio_ci95"][0] > 1.5 and found["success_difference_ci95"][0] > 0.1
    results = study_results({"offline_rl_sft": slow, "recap_2": fast, "awr": {}}, {"task": "t"})
    assert results["headline"] == found and "awr" not in results["policies"]
    drawn = [file.name for file in write_figures(results, tmp_path, "t")]
    assert drawn == ["t.policies.svg", "t.iterations.svg"]


def test_training_seeds_of_other_machines_add_up(tmp_path):
    rng, how = np.random.default_rng(2), study_settings("state")
    first = Record(1, identity(how, TASK), {"commit": "a"}, {"awr": attempts(0.5, 10.0, rng)})
    first.write(tmp_path)
    Record(2, identity(how, TASK), {"commit": "b"}, {"awr": attempts(0.6, 10.0, rng)}).write(tmp_path)

    again = first.with_policies({"ppo": attempts(0.4, 9.0, rng), "awr": attempts(0.9, 1.0, rng)[:50]})
    again.write(tmp_path)

    found = read_records(tmp_path)
    assert list(found) == [1, 2] and found[2].about == {"commit": "b"}
    assert set(found[1].policies) == {"awr", "ppo"}
    assert found[1].policies["awr"] == list(first.policies["awr"])  # not given up for fewer attempts
    summary = summarize_policy({seed: record.policies["awr"] for seed, record in found.items()})
    assert summary["attempts"] == 400 and summary["training_seeds"] == [1, 2]


def test_only_the_number_of_attempts_does_not_change_what_is_compared():
    how = study_settings("state")
    own = identity(how, TASK)
    assert own == identity(replace(how, attempts=7), TASK) != identity(how.scaled(0.5), TASK)
    longer = replace(TASK, time_limit_s=TASK.time_limit_s + 1, max_episode_s=TASK.max_episode_s + 1)
    assert own != identity(how, longer)


def test_results_of_other_settings_are_not_lost(tmp_path, capsys):
    kept = tmp_path / "attempts" / "handover_insert"
    Record(1, "other", {}, {}).write(kept)
    words = ["study", "--task", "handover_insert", "--out", str(tmp_path), "--run", str(tmp_path / "run")]

    with pytest.raises(SystemExit) as ended:
        main([*words, "--seeds", "1,2"])

    assert ended.value.code == 2 and "seed_1.json is of settings other" in capsys.readouterr().err
    (kept / "seed_1.json").write_text("{}")
    with pytest.raises(RecordError, match="not a record of a training seed"):
        read_records(kept)


def test_a_damaged_record_is_named_while_developing_too(tmp_path, capsys):
    kept = tmp_path / "handover_insert" / "state" / "development" / "attempts"
    file = kept / "handover_insert" / "seed_0.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    with pytest.raises(SystemExit) as ended:
        main(["study", "--task", "handover_insert", "--development", "--run", str(tmp_path)])
    assert ended.value.code == 2 and "seed_0.json: not a record" in capsys.readouterr().err
