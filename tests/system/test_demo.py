"""The whole loop once round, too small to learn anything: every stage, every file, resumed without work."""

import json

import pytest
from rich.console import Console

from recap.demo import QUICK, run_demo


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_loop_closes_and_a_second_call_has_nothing_left_to_do(tmp_path):
    pytest.importorskip("rclpy")
    run = tmp_path / "run"
    summary = run_demo(run, QUICK, Console(quiet=True))
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
