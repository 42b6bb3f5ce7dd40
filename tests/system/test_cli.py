"""The command line: help, exit codes, one-line errors, machine-readable output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recap.cli import app
from recap_station import topics
from recap_station.cdr import joint_state
from recap_station.contract import load_station, load_task
from recap_teleop.recorder import EpisodeRecorder

VERBS = sorted(c.name or c.callback.__name__ for c in app.registered_commands if c.callback)


def recap(*words: str, debug: bool = False, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RECAP_DEBUG"}
    if debug:
        environment["RECAP_DEBUG"] = "1"
    environment["COLUMNS"] = "200"
    return subprocess.run(
        [sys.executable, "-m", "recap", *words],
        capture_output=True, text=True, timeout=120, env=environment, cwd=cwd, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_json(verb: str) -> None:
    done = recap(verb, "--help")
    assert done.returncode == 0
    assert f"./recap {verb}" in done.stdout
    assert "--json" in done.stdout
    assert f"Usage: recap {verb} " in done.stdout


def test_misspelt_verb_suggests_the_nearest() -> None:
    done = recap("docter")
    assert done.returncode == 2
    assert "'doctor'" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["up", "taks:=x"], 2, "'task'"),
        (["up", "task:=handover_inser"], 1, "'handover_insert'"),
        (["up", "--manager", "systemd"], 2, "supervisor"),
        (["convert", "no/such/bags"], 1, "no/such/bags"),
        (["eval", "no/such/policy"], 1, "no/such/policy"),
        (["collect", "--style", "fats"], 2, "sloppy"),
        (["collect", "--attempts", "0"], 2, "attempts"),
        (["collect", "--task", "handover_inser", "--attempts", "1"], 1, "'handover_insert'"),
        (["bench", "takeovr"], 2, "did you mean 'takeover'?"),
        (["bench", "policy-rate"], 2, "did you mean 'policy_rate'?"),
        (["convert"], 2, "recap convert --help"),
        (["label", "no/such/bag", "--outcome", "success"], 1, "no/such/bag"),
        (["label", "no/such/bag", "--outcome", "succes"], 2, "discarded"),
        (["label", "no/such/store"], 1, "no/such/store"),
        (["label", "set", "no/such/store", "one", "success"], 1, "no/such/store"),
    ],
)
def test_wrong_input_is_one_readable_line(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = recap(*words, "--json", cwd=tmp_path)
    assert done.returncode == code
    [line] = done.stderr.strip().splitlines()
    assert said in line
    assert json.loads(done.stdout) == {"ok": False, "error": line.removeprefix("recap: ")}


def test_benchmarks_are_listed_with_what_they_measure() -> None:
    listed = json.loads(recap("bench", "--json").stdout)["benchmarks"]
    files = {path.stem for path in (Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py")}
    assert set(listed) == files and all(listed.values())
    assert "takeover\n    From the pedal's press" in recap("bench").stdout


def test_a_benchmark_gets_its_arguments_and_its_last_line_is_json(tmp_path: Path) -> None:
    done = recap("bench", "fast", "--chunks", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chunks"] == 20
    assert recap("bench", "fast", "--help").returncode == 0
    assert recap("bench", "fast", "--chunk", "x").returncode == 2


def test_a_bag_without_outcome_is_named_until_it_is_labelled(tmp_path: Path) -> None:
    station, task = load_station("aloha"), load_task("handover_insert")
    recorder = EpisodeRecorder(tmp_path / "bags", station)
    recorder.start({"recap.episode": "one", "recap.task": json.dumps(task.to_dict())})
    for tick in range(50):
        now = 10**9 + tick * 20_000_000
        for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
            recorder.write(topic, now, joint_state(now, station.joint_names, station.home, "policy"))
    recorder.stop("unknown", "recorder was stopped")
    unjudged = recap("convert", "bags", "--json", cwd=tmp_path)
    assert unjudged.returncode == 0
    assert "no outcome yet; ./recap label" in unjudged.stderr
    found = json.loads(unjudged.stdout)
    assert found["without_outcome"] == found["episodes"] == ["episodes/one.episode.parquet"]
    labelled = recap("label", "bags/one", "--outcome", "failure", "--reason", "peg dropped", cwd=tmp_path)
    assert labelled.returncode == 0, labelled.stderr
    done = recap("convert", "bags", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["episodes"] == ["episodes/one.episode.parquet"] and found["without_outcome"] == []


def test_debug_shows_where(tmp_path: Path) -> None:
    done = recap("convert", "no/such/bags", debug=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_doctor_tries_ros_and_rendering() -> None:
    done = recap("doctor", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    found = {finding["name"]: finding for finding in result["findings"]}
    assert found["ROS 2"]["state"] == "ok", found["ROS 2"]
    assert "rmw_" in found["ROS 2"]["found"]
    assert found["rendering"]["state"] == "ok", found["rendering"]
    assert done.returncode == (0 if result["ok"] else 1)


def test_doctor_names_what_is_missing_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    done = recap("doctor", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    rendering = next(f for f in result["findings"] if f["name"] == "rendering")
    assert done.returncode == 1
    assert rendering["state"] == "fail"
    assert "apt-get install" in rendering["hint"]


def test_command_line_starts_without_the_heavy_libraries() -> None:
    heavy = ("torch", "mujoco", "rclpy", "cv2", "pyarrow")
    code = f"import sys, recap.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_policy_that_cannot_be_loaded_is_one_readable_line(tmp_path: Path) -> None:
    """Found by the worker processes, which must not break with a traceback each."""
    done = recap("eval", str(tmp_path), "--attempts", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"recap: {tmp_path}: no checkpoint there")
    assert len(done.stderr.splitlines()) == 1


def test_show_args_lists_every_launch_argument() -> None:
    from recap.bringup import ARGUMENTS

    done = recap("up", "--show-args")
    assert done.returncode == 0
    for argument in ARGUMENTS:
        assert f"{argument.name}:={argument.default}" in done.stdout
