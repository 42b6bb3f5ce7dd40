"""What the console shows of recorded attempts and runs: the learner's own files, and nothing beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")

sys.path.append(str(Path(__file__).parents[1] / "learner"))
from store_writer import episode

from recap.console_archive import StoreArchive, agreement
from recap.console_runs import lineage, list_runs, read_run, split
from recap_learner.data.judgements import read_judgements, say
from recap_learner.data.store import Store
from recap_learner.evaluation.evaluation import Attempt, Evaluation, summarize
from recap_learner.stages import Made, Report, Stages
from recap_learner.training.logs import EventFile
from recap_teleop.console.archive import ArchiveError

pytestmark = pytest.mark.alone


@pytest.fixture
def archive(tmp_path: Path) -> StoreArchive:
    store = Store(tmp_path / "episodes")
    store.add(episode("e0", 20))
    store.add(episode("e1", 30, "failure"))
    return StoreArchive(tmp_path / "episodes", tmp_path / "bags", tmp_path / "runs")


def test_the_table_has_every_episode_with_what_people_said(archive: StoreArchive, tmp_path: Path) -> None:
    archive.judge("ana", "e0", "outcome", {"outcome": "failure", "reason": "dropped"})
    rows = {row["id"]: row for row in archive.attempts()["rows"]}
    assert (rows["e0"]["outcome"], rows["e0"]["recorded"], rows["e0"]["by"]) == (
        "failure",
        "success",
        ["ana"],
    )
    assert rows["e1"]["length_s"] == pytest.approx(0.6)
    assert read_judgements(tmp_path / "episodes")["e0"].reason == "dropped", "the learner reads the same"


def test_an_empty_place_is_an_empty_table(tmp_path: Path) -> None:
    empty = StoreArchive(tmp_path / "no", tmp_path / "no", tmp_path / "no")
    assert empty.attempts() == {"rows": [], "problems": [], "agreement": [], "bags_waiting": 0}
    assert empty.runs() == [] and empty.convert() == {"made": 0, "problems": []}


def test_undo_gives_back_what_was_before(archive: StoreArchive) -> None:
    archive.judge("ana", "e0", "outcome", {"outcome": "failure"})
    after = archive.judge("ana", "e0", "outcome", {"outcome": "discarded"})
    assert after["outcome"] == "discarded"
    back = archive.undo("ben", "e0")
    assert back["outcome"] == "failure" and len(back["undone"]) == 1 and len(back["log"]) == 3
    assert archive.undo("ben", "e0")["outcome"] is None
    with pytest.raises(ArchiveError, match="nothing was said"):
        archive.undo("ben", "e0")


def test_one_attempt_has_its_labels(archive: StoreArchive, tmp_path: Path) -> None:
    assert archive.attempt("e0")["value"] is None
    value = np.linspace(-0.5, 0.0, 20, dtype=np.float32)
    value[3] = np.nan
    labels = {"value": value, "indicator": value > -0.2}
    Store(tmp_path / "episodes").save_labels("run", "e0", labels, {})
    shown = archive.attempt("e0")
    assert shown["value"][3] is None and shown["value"][19] == 0.0 and shown["tag"] == "run"
    assert shown["indicator"][-1] is True and shown["ticks"] == 20
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    "name", ["../episodes/e0", "/etc/passwd", "..", ".lock", "", "e0/../e1", "e\0", "judgements", "e9"]
)
def test_no_name_leads_out_of_the_store(archive: StoreArchive, name: str) -> None:
    for ask in (
        archive.attempt,
        lambda n: archive.image(n, "base_camera", 0),
        lambda n: archive.undo("a", n),
    ):
        with pytest.raises(ArchiveError):
            ask(name)
    with pytest.raises(ArchiveError):
        archive.run(name or "..")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("outcome", {"outcome": "splendid"}),
        ("outcome", {}),
        ("criterion", {"name": "unknown", "met": True}),
        ("stage", {"stage": "nowhere", "tick": 1}),
        ("failed", {"tick": 20}),
        ("failed", {"tick": -1}),
        ("failed", {"tick": "1"}),
        ("undo", {"of": 1}),
        ("format", {}),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_written(
    archive: StoreArchive, tmp_path: Path, kind: str, what: dict
) -> None:
    with pytest.raises(ArchiveError):
        archive.judge("ana", "e0", kind, what)
    assert read_judgements(tmp_path / "episodes") == {}


def test_agreement_of_two_reviewers_is_counted_against_chance(tmp_path: Path) -> None:
    for name, ana, ben in (
        ("a", "success", "success"),
        ("b", "failure", "failure"),
        ("c", "success", "failure"),
    ):
        say(tmp_path, "ana", name, "outcome", outcome=ana)
        say(tmp_path, "ben", name, "outcome", outcome=ben)
    say(tmp_path, "ana", "d", "outcome", outcome="success")  # by one alone
    [pair] = agreement(read_judgements(tmp_path))
    assert (pair["a"], pair["b"], pair["both"], pair["alike"]) == ("ana", "ben", 3, 2)
    assert pair["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9), abs=1e-3)


def attempts(successes: int, count: int) -> list[Attempt]:
    reasons = ["success"] * successes + ["time limit"] * (count - successes)
    return [Attempt(90000 + k, r == "success", r, 5.0, 0, 0.0) for k, r in enumerate(reasons)]


def learned(run: Path) -> None:
    """A run as `Stages` records it: an iteration from the attempts of SFT, and one of bags handed in."""

    def does(name: str, inputs: list[Made], result: dict[str, Any], *outputs: str) -> Made:
        def work(report: Report) -> dict[str, Any]:
            for out in outputs:
                (run / out).mkdir(parents=True, exist_ok=True)
                (run / out / "file").write_text(name)
            return result

        return stages.stage(name, name, work, outputs=[run / out for out in outputs], inputs=inputs)

    with Stages(run, about={"code_version": "abc"}) as stages:
        collected = summarize(attempts(1, 4))
        made = does("iteration_01.rollouts", [], collected, "iteration_01/bags")
        data = does("iteration_01.episodes", [made], {"episodes": 4, "frames": 9}, "episodes/e0")
        sft = does("iteration_00.sft", [], {}, "iteration_00/policy")
        value = {"spearman": 0.3, "problems": ["it hardly follows"], "unmeasured": []}
        v = does("iteration_01.value", [data], value, "iteration_01/value")
        labels = does(
            "iteration_01.labels", [data, v], {"threshold": -0.1, "positive": 0.4}, "iteration_01/l"
        )
        does("iteration_01.policy", [data, sft, labels], {}, "iteration_01/policy")
    for k, successes in enumerate((5, 9)):
        evaluation = Evaluation(f"p{k}", tuple(attempts(successes, 10)))
        evaluation.write(run / f"iteration_{k:02d}" / "eval.json")


def test_a_run_shows_how_its_policies_do_and_what_came_from_what(tmp_path: Path) -> None:
    learned(tmp_path / "demo")
    shown = read_run(tmp_path / "demo")
    json.dumps(shown, allow_nan=False)
    assert [(e["policy"], e["iteration"], e["success"]) for e in shown["evaluations"]] == [
        ("SFT", 0, 0.5),
        ("RECAP 1", 1, 0.9),
    ]
    first = shown["evaluations"][0]
    assert first["success_ci95"][0] < 0.5 < first["success_ci95"][1]
    assert [(f["reason"], f["count"]) for f in first["failures"]] == [("time limit", 5)]
    [collected] = shown["collected"]
    assert (collected["iteration"], collected["by"], collected["success"]) == (1, 0, 0.25)
    [value] = shown["values"]
    assert (value["threshold"], value["positive"], value["problems"]) == (-0.1, 0.4, ["it hardly follows"])
    made = {one["checkpoint"]: one for one in shown["lineage"]}
    policy = made["iteration_01/policy"]
    assert (policy["bags"], policy["attempts"], policy["start"]) == (
        ["iteration_01/bags"],
        4,
        "iteration_00.sft",
    )
    assert (policy["value"], policy["threshold"], policy["code"]) == ("iteration_01.value", -0.1, "abc")
    assert set(made) == {"iteration_00/policy", "iteration_01/value", "iteration_01/policy"}


def test_bags_that_were_handed_in_are_named_by_their_episodes(tmp_path: Path) -> None:
    store = Store(tmp_path / "run" / "episodes")
    store.add(episode("e0", 20))
    records = {
        "iteration_01.episodes": {
            "inputs": {"bags": "hash", "the run's pre-trained vision": "hash"},
            "outputs": {"episodes/e0.episode.parquet": None},
            "result": {"episodes": 1},
        },
        "iteration_01.value": {
            "inputs": {"iteration_01.episodes": "hash", "the run's pre-trained value": "hash"},
            "outputs": {"iteration_01/value": None},
        },
    }
    [made] = lineage(tmp_path / "run", records)
    assert made["start"] == "the run's pre-trained value" and made["attempts"] == 1
    assert len(made["bags"]) == 1 and made["bags"][0].endswith(" (1)")


def test_a_run_is_shown_as_far_as_its_files_go(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    (run / "stages").mkdir(parents=True)
    (run / "stages" / "vision.json").write_text(json.dumps({"seconds": 7.0, "result": None}))
    (run / "stages" / "broken.json").write_text("{")
    (run / "iteration_00").mkdir()
    (run / "iteration_00" / "eval.json").write_text("[1]")
    done = run / "iteration_00" / "training" / "policy"
    done.mkdir(parents=True)
    log = [{"step": k, "loss": 1.0 / (k + 1)} for k in range(1000)]
    (done / "log.json").write_text(json.dumps(log))
    under_way = EventFile(run / "iteration_01" / "training" / "value.fold0" / "events")
    under_way.add(20, {"loss": 0.5, "learning_rate": 1e-3})
    (tmp_path / "no_run").mkdir()
    assert [one["name"] for one in list_runs(tmp_path)] == ["demo"]
    shown = read_run(run)
    under_way.close()
    assert shown["evaluations"] == [] and len(shown["problems"]) == 1
    assert [stage["stage"] for stage in shown["stages"]] == ["vision"]
    assert len(shown["logs"]["iteration_00/policy"]) == 250
    assert shown["logs"]["iteration_01/value.fold0"] == [{"step": 20, "loss": 0.5}]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("iteration_01.value", ("", 1, "value")),
        ("box.iteration_12.policy_awr", ("box", 12, "policy_awr")),
        ("box.demonstrations", ("box", None, "demonstrations")),
        ("vision", ("", None, "vision")),
    ],
)
def test_a_stage_s_name_has_parts(name: str, parts: tuple[str, int | None, str]) -> None:
    assert split(name) == parts


def test_the_plan_of_a_run_comes_from_the_learner(archive: StoreArchive, tmp_path: Path) -> None:
    learned(tmp_path / "runs" / "demo")
    plan = archive.plan("demo", {"value_steps": 40})
    assert (plan["iteration"], plan["value_steps"], plan["bags"]) == (2, 40, [])
    assert "no pre-trained vision" in plan["problem"]
    with pytest.raises(ArchiveError, match="no run"):
        archive.plan("../demo", {})


PANELS = {"Image", "Plot", "StateTransitions", "RawMessages", "DiagnosticSummary", "CallService"}


def test_the_foxglove_layout_names_our_topics_fields_and_services_alone() -> None:
    """Its panels are types that Foxglove has, and every path leads to a field of what is published there."""
    from recap_station import topics
    from recap_station.contract import load_station
    from recap_teleop.requests import SERVICES

    root = Path(__file__).resolve().parents[2]
    layout = json.loads((root / "ros2_ws/src/recap/config/foxglove/recap.json").read_text())
    assert set(layout) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    station = load_station("aloha")
    kinds = {f"/{name}": kind for name, kind in topics.recorded_topics(station).items()}
    kinds["/diagnostics"] = "diagnostic_msgs/msg/DiagnosticArray"
    panels = layout["configById"]
    for name, panel in panels.items():
        assert name.partition("!")[0] in PANELS, name
        paths = [path["value"] for path in panel.get("paths", [])]
        paths += [panel[key] for key in ("topicPath", "topicToRender") if key in panel]
        paths += [panel["imageMode"]["imageTopic"]] if "imageMode" in panel else []
        for path in paths:
            topic, _, fields = path.partition(".")
            assert topic in kinds, path
            check_path(kinds[topic], fields, path, station.dof)
        assert panel.get("serviceName", "/stop").lstrip("/") in SERVICES

    def shown(part: str | dict) -> set[str]:
        return {part} if isinstance(part, str) else shown(part["first"]) | shown(part["second"])

    assert shown(layout["layout"]) == set(panels)


def check_path(kind: str, fields: str, path: str, dof: int) -> None:
    pytest.importorskip("rclpy")
    from recap_station.nodes.base import message_type

    for field in filter(None, fields.split(".")):
        word, _, index = field.rstrip("]").partition("[")
        known = message_type(kind).get_fields_and_field_types()
        assert word in known, f"{path}: {kind} has no field {word}"
        assert not index or int(index) < dof, path
        kind = known[word].replace("/", "/msg/") if "/" in known[word] else kind


def test_the_rerun_blueprint_is_written(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="no rerun-sdk: requirements-exchange.txt")
    root = Path(__file__).resolve().parents[2]
    script = root / "ros2_ws/src/recap/config/rerun/blueprint.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "recap.rbl")], check=True, timeout=120)
    data = (tmp_path / "recap.rbl").read_bytes()
    assert data[:4] == b"RRF2"
