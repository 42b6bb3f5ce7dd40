"""Stages: skipped while settings, inputs and outputs hold; a change is noticed, whenever it comes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recap_learner.artefacts import examine
from recap_learner.stages import Made, Report, StageError, Stages


class Log:
    def __init__(self) -> None:
        self.done: list[str] = []

    def begin(self, name: str, title: str) -> Report:
        return lambda fraction, note: None

    def end(self, name: str, title: str, seconds: float, before: bool) -> None:
        if not before:
            self.done.append(name)


def pipeline(run: Path, steps: int = 3, meddle: Any = None) -> list[str]:
    """data → model → label; → stages that were done now."""
    log = Log()

    def data(report: Report) -> dict[str, Any]:
        (run / "data").mkdir(parents=True, exist_ok=True)
        (run / "data" / "a").write_text("one")
        return {}

    def model(report: Report) -> dict[str, Any]:
        text = (run / "data" / "a").read_text()
        if meddle:
            meddle()
        (run / "model").write_text(text * steps)
        return {"steps": steps}

    def label(report: Report) -> dict[str, Any]:
        (run / "label").write_text((run / "model").read_text()[:3])
        return {}

    with Stages(run, log, {"code_version": "abc"}) as do:
        first = do.stage("data", "Data", data, outputs=[run / "data"])
        leftovers = [run / "model", run / "work*"]
        second = do.stage(
            "model",
            "Model",
            model,
            settings=steps,
            inputs=[first],
            outputs=[run / "model"],
            leftovers=leftovers,
        )
        do.stage("label", "Label", label, inputs=[second], outputs=[run / "label"])
    return log.done


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert pipeline(tmp_path / "run") == ["data", "model", "label"]
    return tmp_path / "run"


def test_a_second_run_has_nothing_to_do(run: Path) -> None:
    assert pipeline(run) == []


def test_other_settings_do_a_stage_again_and_those_that_its_output_changes(run: Path) -> None:
    assert pipeline(run, steps=2) == ["model", "label"]


def test_those_after_it_are_left_alone_where_its_output_is_the_same(run: Path) -> None:
    (run / "model").unlink()
    assert pipeline(run) == ["model"]


def test_a_changed_input_does_what_was_made_of_it_again(run: Path) -> None:
    (run / "data" / "a").write_text("two")
    assert pipeline(run) == ["model", "label"]
    assert (run / "label").read_text() == "two"


def test_a_touched_input_with_the_same_contents_does_not(run: Path) -> None:
    (run / "data" / "a").touch()
    assert pipeline(run) == []


def test_a_run_can_be_moved(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert pipeline(moved) == []


def test_the_manifest_says_what_was_made_from_what(run: Path) -> None:
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert list(stages) == ["data", "model", "label"]
    assert stages["model"]["settings"] == 3 and stages["model"]["code_version"] == "abc"
    assert stages["model"]["outputs"]["model"]["sha256"] == examine(run / "model").sha256
    assert list(stages["label"]["inputs"]) == ["model"]


def test_an_input_that_changes_under_a_stage_is_noticed_and_the_stage_not_believed(run: Path) -> None:
    def meddle() -> None:
        (run / "data" / "a").write_text("changed")

    with pytest.raises(StageError, match=r"Model: .*data changed while it ran.*the same command"):
        pipeline(run, steps=4, meddle=meddle)
    assert pipeline(run, steps=4) == ["model", "label"]
    assert (run / "label").read_text() == "cha"


def test_an_input_that_goes_is_noticed(run: Path) -> None:
    def meddle() -> None:
        (run / "data").rename(run / "gone")

    with pytest.raises(StageError, match="data is gone while it ran"):
        pipeline(run, steps=4, meddle=meddle)


def test_what_a_killed_stage_left_serves_the_same_settings_alone(run: Path) -> None:
    def die() -> None:
        (run / "work.pt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(run, steps=5, meddle=die)
    seen = []
    pipeline(run, steps=5, meddle=lambda: seen.append((run / "work.pt").exists()))
    with pytest.raises(KeyboardInterrupt):
        pipeline(run, steps=6, meddle=die)
    pipeline(run, steps=7, meddle=lambda: seen.append((run / "work.pt").exists()))
    assert seen == [True, False]


def test_a_stage_that_leaves_less_than_it_says_is_refused(tmp_path: Path) -> None:
    with Stages(tmp_path) as do, pytest.raises(StageError, match="wanted nothing afterwards, found nothing"):
        do.stage("lazy", "Lazy", lambda report: {}, outputs=[tmp_path / "nothing"])


def _make(path: Path, wait: threading.Event | None = None) -> Any:
    def work(report: Report) -> dict[str, Any]:
        assert wait is None or wait.wait(10)
        path.write_text("there")
        return {"made": path.name}

    return work


def test_what_runs_beside_is_waited_for_by_whoever_needs_it(tmp_path: Path) -> None:
    go = threading.Event()
    with Stages(tmp_path) as do:
        slow = do.stage("slow", "", _make(tmp_path / "a", go), outputs=[tmp_path / "a"], beside=True)
        do.stage("other", "", _make(tmp_path / "b"), outputs=[tmp_path / "b"])
        assert not (tmp_path / "a").exists()
        go.set()
        needs = do.stage("needs", "", _make(tmp_path / "c"), outputs=[tmp_path / "c"], inputs=[slow])
    assert list(needs.record["inputs"]) == ["slow"] and slow.result == {"made": "a"}


def test_what_must_keep_time_runs_alone(tmp_path: Path) -> None:
    def slow(report: Report) -> dict[str, Any]:
        time.sleep(0.2)
        (tmp_path / "a").write_text("")
        return {}

    def live(report: Report) -> dict[str, Any]:
        assert (tmp_path / "a").exists()
        return {}

    with Stages(tmp_path) as do:
        do.stage("slow", "", slow, outputs=[], beside=True)
        do.stage("live", "", live, outputs=[], alone=True)


def test_a_failure_beside_ends_the_run_and_is_the_one_told(tmp_path: Path) -> None:
    failed = threading.Event()

    def bad(report: Report) -> dict[str, Any]:
        failed.set()
        raise OSError("the disk is full")

    def long(report: Report) -> dict[str, Any]:
        assert failed.wait(10)
        for step in range(500):
            time.sleep(0.01)
            report(step / 500, "")
        raise AssertionError("never stopped")

    with pytest.raises(OSError, match="the disk is full"), Stages(tmp_path) as do:
        do.stage("bad", "", bad, outputs=[], beside=True)
        do.stage("long", "", long, outputs=[])


def test_given_things_must_be_there(tmp_path: Path) -> None:
    with Stages(tmp_path) as do:
        with pytest.raises(FileNotFoundError, match="wanted the pre-trained value, found nothing"):
            do.given("the pre-trained value", [tmp_path / "value"])
        (tmp_path / "value").write_text("1")
        made = do.given("the pre-trained value", [tmp_path / "value"])
    assert isinstance(made, Made) and list(made.record["outputs"]) == ["value"]
