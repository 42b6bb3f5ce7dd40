"""The report shows the run's own numbers, asks nothing of any host, and survives every missing piece."""

import base64
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from recap.demo import QUICK
from recap.report import write_report
from recap.report.attempt_figure import spans, trend
from recap.rollout import Attempt, save_attempts, summarize
from recap_learner.data.episodes import SUFFIX, read_bag, save_episode
from recap_learner.evaluation.evaluation import Evaluation, compare, read_evaluation
from recap_learner.value.labels import EpisodeValues, LabelRule, label, save_labels
from recap_learner.value.returns import Normalizer, monte_carlo_returns
from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task
from recap_station.files import write_json

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START, TICKS = 1_700_000_000_000_000_000, 150
LATE_MS = 37  # one command of every live bag comes this long after the one before


def write_bag(folder: Path, name: str, source: str, won: bool, corrected: bool, seed: int) -> Path:
    """An attempt of three seconds; a person commands in its second third if `corrected`."""
    bag, names = folder / name, STATION.joint_names
    with BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED) as writer:
        for tick in range(TICKS):
            now = START + tick * 20_000_000 + (LATE_MS - 20) * 1_000_000 * (tick == 75)
            who = "teleop" if source == "demonstration" or (corrected and 50 <= tick < 100) else "policy"
            writer.write(topics.JOINT_STATES, now, joint_state(now, names, STATION.home))
            writer.write(topics.JOINT_COMMAND, now, joint_state(now, names, STATION.home, who))
            if tick % 5 == 0:
                stage = TASK.stages[min(3, tick * 4 // TICKS)]
                writer.write(topics.SIM_TRUTH, now, serialize(topics.TRUTH_TYPE, stamp_ns=now, stage=stage))
                image = np.full((96, 96, 3), (40 + tick, 120, 200 - tick), np.uint8)
                jpeg = cv2.imencode(".jpg", image)[1].tobytes()
                writer.write(topics.image_topic("base_camera"), now, compressed_image(now, jpeg))
                value = serialize(topics.VALUE_TYPE, stamp_ns=now, value=-0.4)
                writer.write(topics.VALUE, now, value)
        writer.set_metadata(
            {
                "recap.episode": name,
                "recap.outcome": "success" if won else "failure",
                "recap.reason": "success" if won else "time limit",
                "recap.task": json.dumps(TASK.to_dict()),
                "recap.station": json.dumps(STATION.to_dict()),
                "recap.source": source,
                "recap.seed": str(seed),
            }
        )
    return bag


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("run") / "small<run>")


def evaluated(odds: float, seconds: float, count: int = 40) -> tuple[Attempt, ...]:
    """Attempts on the evaluation's start states; the harder ones fail first, in any stage."""
    rng = np.random.default_rng(7)
    hard, pace, last = rng.random(count), rng.gamma(40, 1 / 40, count), rng.integers(0, 4, count)
    rows = []
    for i in range(count):
        won = bool(hard[i] < odds)
        stages = TASK.stages if won else TASK.stages[: last[i] + 1]
        duration = min(seconds * pace[i], 15.0) if won else 15.0
        reason = "success" if won else ("failure", "time limit")[i % 2]
        entered = {name: round(float(k) * 1.5, 2) for k, name in enumerate(stages)}
        rows.append(Attempt(90_000 + i, won, reason, duration, 0, 0.0, stage=stages[-1], stages=entered))
    return tuple(rows)


def build(run: Path) -> Path:
    """A run folder with everything that a finished demo leaves for its report, and what goes beyond it: arms,
    and evaluations under other labels and guidance."""
    run.mkdir(parents=True)
    rng = np.random.default_rng(0)
    norm = Normalizer(round(TASK.max_episode_s * STATION.control_rate_hz))
    bags = [
        (run / where, f"{kind}{i}", source, i % 3 != 2, kind == "live" and i == 0, i)
        for where, kind, source, count in (
            ("demonstrations", "demo", "demonstration", 4),
            ("iteration_01/live", "live", "rollout", 2),
            ("iteration_01/bags", "auto", "rollout", 6),
        )
        for i in range(count)
    ]
    episodes = []
    for bag in bags:
        episode = read_bag(write_bag(*bag), run / "episodes")
        save_episode(episode, run / "episodes" / f"{episode.info.id}{SUFFIX}")
        episodes.append(episode)
    values = {}
    for episode in episodes:
        true = monte_carlo_returns(len(episode), episode.info.success, norm)
        values[episode.info.id] = (true + rng.normal(0, 0.02, len(true))).astype(np.float32)
    for folder in ("pretrain", "iteration_01"):
        (run / folder).mkdir(exist_ok=True)
        np.savez(run / folder / "values.npz", **values)
    judged = [
        EpisodeValues(
            e.info.id, values[e.info.id], e.info.success, e.correction, e.info.source != "demonstration"
        )
        for e in episodes
    ]
    save_labels(label(judged, norm, LabelRule()), run / "iteration_01" / "labels.parquet", {"frames": 7})
    attempts = {}
    for folder, odds, seconds in (("iteration_00", 0.4, 9.0), ("iteration_01", 0.8, 6.5)):
        attempts[folder] = evaluated(odds, seconds)
        evaluation = Evaluation("", attempts[folder], stages=TASK.stages)
        if folder == "iteration_00":
            write_json(run / folder / "eval.json", save_attempts(attempts[folder]))  # as the demo has it
        else:
            evaluation.write(run / folder / "eval.json")
        log = [{"step": 20 * i, "loss": 1.0 / (i + 1)} for i in range(5)]
        write_json(run / folder / "training" / "policy" / "log.json", log)
    for arm, odds, seconds in (("awr", 0.6, 9.0), ("clone_best", 0.82, 6.8), ("hg_dagger", 0.5, 8.0)):
        found = Evaluation("", evaluated(odds, seconds), stages=TASK.stages)
        found.write(run / "iteration_01" / "arms" / arm / "eval.json")
    for indicator, beta, odds, seconds in (
        ("none", 1.0, 0.7, 7.0),
        ("negative", 1.0, 0.3, 9.0),
        ("positive", 1.5, 0.82, 6.0),
        ("positive", 2.0, 0.7, 5.6),
    ):
        settings = {"indicator": indicator, "beta": beta}
        found = Evaluation("", evaluated(odds, seconds), settings=settings, stages=TASK.stages)
        found.write(run / "iteration_01" / "evaluations" / f"policy_{indicator}_b{beta:g}.json")
    lineage = {"start": str(run / "pretrain" / "policy"), "episodes": ["demo0"] * 12, "frames": 4321}
    write_json(run / "iteration_01" / "policy" / "config.json", {"identity": "c0ffee", "lineage": lineage})
    report = {
        "frames": 900, "episodes": 12, "spread": 0.123, "spearman": 0.345, "spearman_success": 0.567,
        "outcome_auc": 0.891, "fast_auc": None,
    }  # fmt: skip
    problem = "it hardly follows the return: spearman is 0.345, wanted at least 0.4"
    live = {
        "attempts": 2,
        "takeovers": 1,
        "rate_hz": 50.03,
        "period_p99_ms": 21.37,
        "missed_ticks": 4,
        "period_histogram": {"from_ms": 0.0, "bin_ms": 0.5, "counts": [0] * 40 + [290, 7] + [0] * 78},
        "press_to_command_p50_ms": 22.6,
        "press_to_command_max_ms": 31.0,
        "policy_command": {"rate_hz": 49.91},
        "episodes": [
            {"seed": 20_000, "outcome": "success", "reason": "success", "takeovers": 1, "duration_s": 3.0}
        ],
    }
    results = {
        "demonstrations": {
            **summarize([replace(a, style="fast") for a in attempts["iteration_00"]]),
            "by_style": {"fast": summarize(attempts["iteration_00"])},
        },
        "vision": {"median_error_m": {"peg_center": 0.0042, "left_tip": 0.0031}},
        "pretrain_value": {**report, "problems": []},
        "value": {**report, "problems": [problem]},
        "live": live,
        "rollouts": summarize(attempts["iteration_01"]),
    }
    for name, result in results.items():
        write_json(run / "stages" / f"{name}.json", {"key": "k", "seconds": 61.0, "result": result})
    summary = {
        "config": asdict(QUICK),
        "code_version": "abc123",
        "value": {"pretrain": results["pretrain_value"], "recap": results["value"]},
        **{name: results[name] for name in ("live", "demonstrations", "vision", "rollouts")},
        "training": {"sft": {"frames": 900}},
        "seconds": {**dict.fromkeys(results, 61.0), "total": 61.0 * len(results)},
    }
    write_json(run / "summary.json", summary)
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run, to take pieces away from."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def text(report: Path) -> str:
    """What a reader sees, without figures and markup."""
    html = re.sub(r"<style>.*?</style>", "", report.read_text(), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace("\u202f", " ")


def test_a_finished_run_shows_its_numbers_and_nothing_is_missing(finished):
    report = write_report(finished)
    html, shown = report.read_text(), text(report)
    assert report == finished / "report.html"
    assert 'class="missing"' not in html
    sft, recap = (Evaluation(n, read_evaluation(finished / n / "eval.json").attempts) for n in
                  ("iteration_00", "iteration_01"))  # fmt: skip
    c = compare(sft, recap)
    for wanted in (
        "RECAP 1 succeeds more often than SFT.",
        f"{100 * sft.summary()['success']:.0f} %",
        f"{sft.summary()['throughput_per_hour']:.0f} an hour",
        f"+{100 * c['success_difference']:.1f} points",
        f"{c['throughput_ratio']:.2f} times",
        "exact McNemar test",
        "better it is asked to: here it does.",
        "RECAP 1 asked for positive",
        "against RECAP",
        "cloning the best",
        "spearman is 0.345, wanted at least 0.4",
        "50.03 Hz",
        "49.91 Hz",
        "21.37 ms",
        "23 ms",
        f"the longest took {LATE_MS}.0 ms",
        "small&lt;run&gt;",
        "c0ffee",
        "from pretrain/policy on 12 attempts, 4,321 frames",
    ):
        assert wanted in shown, wanted
    svg = "".join(
        base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]*)", html)
    )
    for wanted in (
        *("4.2 mm", "peg center", "a person takes over", "success, median of", "positive →", "guidance β"),
        *("attempts that passed the stage", "negative", "HG-DAgger", "corrections by a person", "▲"),
    ):
        assert wanted in svg, wanted


def test_the_report_is_one_file_that_asks_nothing_of_any_host(finished):
    html = write_report(finished).read_text()
    assert len(html) < 8_000_000
    assert "<script" not in html
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)


def test_the_corrected_live_attempt_is_the_one_shown(finished):
    html = write_report(finished).read_text()
    assert "iteration_01/live/live0" in html and "iteration_01/live/live1" not in html
    assert "a person commanded 33" in html


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (
            ["summary.json", "iteration_01/live", "iteration_00/eval.json"],
            ["This run is not finished", "Its pictures cannot be read", "No bag of a live attempt is there"],
        ),
        (["episodes"], ["No attempt has been converted"]),
        (
            ["iteration_01/labels.parquet", "iteration_01/values.npz"],
            [
                "No iteration has labels.parquet yet",
                "No iteration has values.npz yet",
                "It has no labels yet",
            ],
        ),
        (
            [
                "iteration_01/eval.json",
                "iteration_01/evaluations",
                "iteration_01/bags",
                "iteration_01/policy",
            ],
            [
                "nothing to compare it with yet",
                "No model has been trained yet",
                "own policy of this iteration was not evaluated",
            ],
        ),
    ],
)
def test_what_is_missing_is_named_and_the_rest_still_shown(run, gone, said):
    for path in (run / name for name in gone):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    shown = text(write_report(run))
    for line in said:
        assert line in shown, line
    assert "50.03 Hz" in shown  # from the summary, or from the stages' records without it
    assert "Traceback" not in shown


def test_a_damaged_piece_costs_its_own_part_only(run):
    (run / "iteration_01" / "labels.parquet").write_bytes(b"not parquet")
    shown = text(write_report(run))
    assert "This part cannot be shown" in shown and "exact McNemar test" in shown


def test_a_damaged_episode_is_named_and_the_others_shown(run):
    (run / "episodes" / f"demo0{SUFFIX}").write_bytes(b"not parquet")
    shown = text(write_report(run))
    assert f"Left out: demo0{SUFFIX}" in shown and "11 attempts in all" in shown
    assert "This part cannot be shown" not in shown


def test_evaluations_that_cannot_be_read_are_named_even_if_none_is_left(run):
    for file in [*run.rglob("eval.json"), *run.rglob("evaluations/*.json")]:
        file.write_text("{}")
    shown = text(write_report(run))
    assert "an evaluation of a policy" in shown and "iteration_01/eval.json: wanted an evaluation" in shown


def test_an_empty_folder_gives_a_report_that_says_so(tmp_path):
    shown = text(write_report(tmp_path))
    assert "This run is not finished" in shown and "No training has been finished yet" in shown
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_trend_tells_rise_fall_and_wavering_apart():
    step, pace = 0.02, 1 / 30
    rise = np.arange(200) * step * pace
    value = np.concatenate([rise, np.full(200, rise[-1]), rise[-1] - rise])
    found = trend(value, step, pace)
    assert set(found[30:170]) == {1} and set(found[230:370]) == {0} and set(found[430:570]) == {-1}


def test_spans_are_half_open_runs():
    assert spans(np.array([1, 1, 0, 0, 1], bool)) == [(0, 2), (4, 5)]
    assert spans(np.zeros(3, bool)) == []
