"""Algorithm 1 on made-up attempts: order, starts, and that a killed run ends where an unbroken one does."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).parent))

import killed_run
from forks import Program
from killed_run import HOW, POLICY, SHORT, VALUE, MadeUpCell

from recap_learner.arms import ArmError
from recap_learner.improve import Improvement, improve, next_iteration
from recap_learner.iteration import judge, notices
from recap_learner.lesson import Lesson
from recap_learner.stages import StageError
from recap_learner.value.gates import GateError, Gates, warnings
from recap_learner.value.mixture import Mixture
from recap_policy.checkpoint import read
from recap_station.contract import load_task

FEW = replace(SHORT, steps=2)
TINY = replace(
    HOW,
    value=replace(VALUE, schedule=FEW),
    policy=replace(POLICY, schedule=FEW),
    improvement=Improvement(value=replace(VALUE, schedule=FEW), policy=replace(POLICY, schedule=FEW)),
)


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and what `killed_run` puts in place of bags and pictures taken out again."""
    for name in ("convert", "open_frames", "train_vision"):
        monkeypatch.setattr(killed_run.rounds, name, getattr(killed_run.rounds, name))
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, bool]]]:
    """A run with few steps, and what it did in which order."""
    folder = tmp_path_factory.mktemp("algorithm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("convert", "open_frames", "train_vision"):
            patch.setattr(killed_run.rounds, name, getattr(killed_run.rounds, name))
        how = replace(TINY, compare=("clone_best", "ppo"), generalist=True)
        return folder, killed_run.run(folder, how).log


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["stages"]


def test_every_iteration_starts_from_the_pretrained_models_on_all_data_so_far(done) -> None:
    stages = _manifest(done[0])
    for k in (1, 2):
        value, policy = stages[f"iteration_0{k}.value"], stages[f"iteration_0{k}.policy"]
        data = ["episodes", *(f"iteration_0{i}.episodes" for i in range(1, k + 1))]
        assert [name for name in value["inputs"] if "episodes" in name and "/" not in name] == data
        assert [name for name in policy["inputs"] if "episodes" in name and "/" not in name] == data
        assert "pretrain_value" in value["inputs"] and "pretrain_policy" in policy["inputs"]
        assert f"iteration_0{k}.labels" in policy["inputs"]
        before = f"iteration_0{k - 1}." + ("policy" if k > 1 else "sft")
        assert before in stages[f"iteration_0{k}.rollouts"]["inputs"]
    lineage = read(done[0] / "iteration_02" / "policy").lineage
    assert len(lineage["episodes"]) == 18 and lineage["start"].endswith("pretrain/policy")


def test_sft_calls_every_demonstration_positive(done) -> None:
    sft = _manifest(done[0])["iteration_00.sft"]["result"]
    assert sft["positive"] == 1.0 and sft["frames"] == 6 * killed_run.TICKS // 5


def test_the_threshold_of_an_iteration_is_of_its_own_rollouts(done) -> None:
    columns = {n: _labels(done[0] / f"iteration_0{n}" / "labels.parquet") for n in (1, 2)}
    for k, labels in columns.items():
        own = np.concatenate([i[~f] for name, (i, f) in labels.items() if name.startswith(f"a{k}")])
        assert own.mean() == pytest.approx(TINY.improvement.rule.positive_fraction, abs=0.06)


def _labels(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = np.asarray(table["episode"].to_pylist())
    columns = table["indicator"].to_numpy(), table["forced"].to_numpy()
    return {name: (columns[0][names == name], columns[1][names == name]) for name in dict.fromkeys(names)}


def test_arms_that_are_compared_get_the_same_data_start_and_steps(done) -> None:
    folder, stages = done[0], _manifest(done[0])
    own = stages["iteration_02.policy"]
    for name in ("clone_best", "ppo"):
        other = stages[f"iteration_02.policy_{name}"]
        assert set(own["inputs"]) <= set(other["inputs"])
        assert other["settings"][0] == own["settings"][0] and other["settings"][1] == own["settings"][1]
        lineage = read(folder / "iteration_02" / "arms" / name / "policy").lineage
        assert lineage["start"].endswith("pretrain/policy") and lineage["arm"]["name"] == name
        # Asked without an indicator, as it was trained.
        assert json.loads((folder / "iteration_02" / "arms" / name / "eval.json").read_text()) == ""
    assert json.loads((folder / "iteration_02" / "eval.json").read_text()) == "positive"


def test_the_generalist_is_trained_from_scratch_on_everything(done) -> None:
    lineage = read(done[0] / "generalist" / "policy").lineage
    assert lineage["start"] == "" and len(lineage["episodes"]) == 18


def test_several_tasks_are_pretrained_on_together_and_then_apart(tmp_path: Path) -> None:
    other = tmp_path / "quick_insert.yaml"
    contract = {**load_task(killed_run.TASK).to_dict(), "name": "quick_insert", "max_episode_s": 20.0}
    other.write_text(yaml.safe_dump({**contract, "stages": list(contract["stages"])}))
    how = replace(TINY, iterations=1, generalist=True)
    run = tmp_path / "run"
    killed_run.run(run, how, tasks=[killed_run.TASK, str(other)])
    stages = _manifest(run)
    for name in ("pretrain_value", "pretrain_policy"):
        assert {"handover_insert.episodes", "quick_insert.episodes"} <= set(stages[name]["inputs"])
    special = read(run / "quick_insert" / "iteration_01" / "policy").lineage
    assert len(special["episodes"]) == 12 and all(e.startswith("b") for e in special["episodes"])
    general = read(run / "generalist" / "policy").lineage
    assert len(general["episodes"]) == 24 and general["start"] == ""
    labels = {"handover_insert.iteration_01.labels", "quick_insert.iteration_01.labels"}
    assert labels <= set(stages["generalist"]["inputs"])
    assert (run / "generalist" / "eval_quick_insert.json").is_file()


def test_a_second_run_does_nothing_and_another_setting_only_what_depends_on_it(done) -> None:
    how = replace(TINY, compare=("clone_best", "ppo"), generalist=True)
    assert [name for name, before in killed_run.run(done[0], how).log if not before] == []
    rule = replace(TINY.improvement.rule, positive_fraction=0.1)
    other = replace(how, improvement=replace(TINY.improvement, rule=rule), compare=(), generalist=False)
    again = [name for name, before in killed_run.run(done[0], other).log if not before]
    # Other labels make another π¹, whose rollouts are others: they are collected again.
    assert again[:3] == ["iteration_01.labels", "iteration_01.policy", "iteration_02.rollouts"]
    assert not {"iteration_01.value", "iteration_00.sft", "iteration_01.rollouts"} & set(again)


def test_going_on_from_the_last_iteration_is_an_option(tmp_path: Path) -> None:
    killed_run.run(tmp_path, replace(TINY, start="last", first_value=False))
    stages = _manifest(tmp_path)
    assert "iteration_01.value" in stages["iteration_02.value"]["inputs"]
    assert "iteration_01.policy" in stages["iteration_02.policy"]["inputs"]
    assert "pretrain_policy" in stages["iteration_01.policy"]["inputs"]
    assert "iteration_00.value" not in stages


def test_the_learner_node_goes_on_where_the_run_is(tmp_path: Path) -> None:
    killed_run.run(tmp_path, replace(TINY, iterations=0))
    cell = MadeUpCell(4)
    cell._fill(killed_run.Order("", tmp_path / "new", tmp_path, 3), lambda fraction, note: None)
    told: list[float] = []
    report = improve(
        tmp_path,
        next_iteration(tmp_path),
        [tmp_path / "demonstrations", tmp_path / "new"],
        TINY.improvement,
        lambda fraction, note: told.append(fraction),
    )
    assert (tmp_path / "iteration_01" / "policy" / "config.json").is_file()
    assert set(report) == {"value", "labels", "policy"} and told == sorted(told) and told[-1] <= 1
    assert next_iteration(tmp_path) == 2
    with pytest.raises(FileNotFoundError, match="wanted the run's pre-trained vision, found nothing"):
        improve(tmp_path / "empty", 1, [tmp_path / "new"], TINY.improvement)


def test_an_iteration_goes_on_from_the_last_with_a_share_of_what_is_new(tmp_path: Path) -> None:
    killed_run.run(tmp_path, replace(TINY, iterations=0))
    store, older = tmp_path / "episodes", tuple(f"a{seed:03d}" for seed in range(6))
    for k in (1, 2):
        fresh = tuple(f"a{100 * k + number}" for number in range(4))
        for name in fresh:
            (store / f"{name}.episode.parquet").write_text(f"{name[1:]} {killed_run.TASK}")
        how = TINY.improvement.with_fresh_share(0.5)
        improve(tmp_path, k, [], how, converted=Lesson(older, fresh), start="last")
        older += fresh
    lineage = read(tmp_path / "iteration_02" / "policy").lineage
    assert lineage["start"].endswith("iteration_01/policy") and len(lineage["episodes"]) == 14
    assert read(tmp_path / "iteration_01" / "policy").lineage["start"].endswith("pretrain/policy")
    settings = _manifest(tmp_path)["iteration_02.policy"]["settings"]
    assert settings[0]["PolicyTraining"]["fresh_share"] == 0.5 and settings[-1] == list(fresh)
    assert _manifest(tmp_path)["iteration_02.episodes"]["result"]["episodes"] == 14


def test_a_batch_of_the_policy_has_its_share_of_what_is_new(frames, vision) -> None:
    from recap_learner.training.policy_training import PolicyLoss, _fresh

    new = frames.episode == 2
    model = _fresh(frames, POLICY, vision, 0)
    how = replace(POLICY, fresh_share=0.75, schedule=replace(SHORT, batch=4000))
    positive = (np.arange(len(frames)) % 2).astype(np.int8)
    device = torch.device("cpu")
    loss = PolicyLoss(model, frames, positive, how, device, fresh=new)
    assert new[loss._pick(torch.Generator().manual_seed(0))[0]].mean() == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ValueError, match=r"a share of 0\.75 is to be fresh, wanted frames of both kinds"):
        PolicyLoss(model, frames, positive, how, device)


def test_examples_without_an_indicator_are_drawn_from_all_data_alike(frames, vision) -> None:
    from recap_learner.training.policy_training import PolicyLoss, _fresh

    positive = np.arange(len(frames)) % 10 == 0
    how = replace(POLICY, positive_share=0.75, schedule=replace(SHORT, batch=4000))
    model = _fresh(frames, POLICY, vision, 0)
    loss = PolicyLoss(model, frames, positive.astype(np.int8), how, torch.device("cpu"))

    pick, dropped = loss._pick(torch.Generator().manual_seed(0))

    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    kept = ~dropped.numpy()
    assert positive[pick[kept]].mean() == pytest.approx(0.75, abs=0.03)
    assert positive[pick[~kept]].mean() == pytest.approx(0.1, abs=0.03)


def test_no_success_stops_with_a_line_and_no_failure_is_said(frames) -> None:
    from recap_learner import iteration

    all_lost = replace(
        frames, episodes=[replace(e, info=replace(e.info, outcome="failure")) for e in frames.episodes]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration, "load_frames", lambda files, vision, progress=None: all_lost)
        with pytest.raises(ValueError, match=r"task handover_insert: none of 6 attempts succeeded"):
            iteration.open_frames([Path("a")], Path("v"))
    assert notices(frames) == []
    all_won = [replace(e, info=replace(e.info, outcome="success")) for e in frames.episodes]
    [notice] = notices(replace(frames, episodes=all_won))
    assert "none of 6 attempts failed" in notice


def test_a_value_that_fails_its_gates_ends_the_run_and_is_not_trained_again_to_go_on(tmp_path: Path) -> None:
    how = replace(TINY, iterations=0)
    with pytest.raises(GateError, match=r"pretrain fails \d of its gates .*--gates warn goes on with it"):
        killed_run.run(tmp_path, replace(how, gates=Gates()))
    assert "pretrain_labels" not in _manifest(tmp_path)
    again = killed_run.run(tmp_path, how).log
    assert ("pretrain_value", True) in again and ("iteration_00.sft", False) in again
    found = _manifest(tmp_path)["pretrain_value"]["result"]
    assert warnings(found, "V")[0].startswith("V: ")
    strict = replace(how, gates=Gates(**dict.fromkeys(asdict(Gates())) | {"spread": 1.0}))
    with pytest.raises(GateError, match=r"fails 1 of its gates .* wanted at least 1.0"):
        killed_run.run(tmp_path, strict)


def test_fresh_attempts_and_captions_reach_the_value_function(tmp_path: Path) -> None:
    image = cv2.imencode(".jpg", np.zeros((96, 96, 3), np.uint8))[1].tobytes()
    captions = tmp_path / "captions.parquet"
    columns = {"image": [image] * 2, "question": ["what?", "where?"], "answer": ["a peg", "here"]}
    pq.write_table(pa.table(columns), captions)
    asked, fit = {}, killed_run.rounds.fit_value

    def noted(frames: Any, folder: Path, start: Any, how: Any, *rest: Any, **options: Any) -> Any:
        fresh = sorted(e.info.id for e in frames.episodes if options["fresh"](e))
        asked[folder.name] = how.mixture.fresh_share, fresh
        return fit(frames, folder, start, how, *rest, **options)

    half = replace(TINY.improvement.value, mixture=Mixture(fresh_share=0.5))
    how = replace(TINY, captions=captions, improvement=replace(TINY.improvement, value=half))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed_run.rounds, "fit_value", noted)
        killed_run.run(tmp_path / "run", how)
    assert asked["pretrain"][0] is None and asked["iteration_00"][0] is None
    for k in (1, 2):
        assert asked[f"iteration_0{k}"] == (0.5, [f"a{k}{n:02d}" for n in range(6)])
    stages = _manifest(tmp_path / "run")
    for name in ("pretrain_value", "iteration_02.value"):
        assert str(captions) in stages[name]["inputs"]
    log = json.loads((tmp_path / "run/iteration_01/training/value.fold0/log.json").read_text())
    assert log[0]["cotraining"] > 0


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_what_was_made(tmp_path: Path) -> None:
    how, whole = replace(TINY, iterations=1), killed_run.episode

    def damaged(name: str, seed: int, task: str) -> Any:
        made = whole(name, seed, task)
        return replace(made, command=made.command * np.nan) if seed >= 100 else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed_run, "episode", damaged)
        with pytest.raises(FloatingPointError, match=r"loss nan.* episode a1\d\d, tick \d+.* are saved"):
            killed_run.run(tmp_path, how)
    made = _manifest(tmp_path)
    assert "iteration_01.labels" in made and "iteration_01.policy" not in made
    assert not (tmp_path / "iteration_01" / "policy").exists()
    again = [name for name, before in killed_run.run(tmp_path, how).log if not before]
    assert [name for name in again if "evaluate" not in name] == ["iteration_01.policy"]


def test_training_names_the_samples_that_it_draws(frames, vision) -> None:
    from recap_learner.training.policy_training import PolicyLoss, _fresh

    model = _fresh(frames, POLICY, vision, 0)
    one = np.zeros(len(frames), np.int8)
    one[37] = 1  # drawn alone
    how = replace(POLICY, positive_share=1.0, indicator_dropout=0.0)
    loss = PolicyLoss(model, frames, one, how, torch.device("cpu"))
    owner, tick = frames.episodes[frames.episode[37]].info.id, frames.tick[37]
    assert loss.name(torch.Generator().manual_seed(3), 5) == f"episode {owner}, tick {tick}"


def test_an_arm_without_its_data_stops_the_run_with_its_line(tmp_path: Path) -> None:
    class Uncorrected(MadeUpCell):
        def _fill(self, order: Any, report: Any) -> dict[str, Any]:
            order.bags.mkdir(parents=True, exist_ok=True)
            for seed in (100, 101, 103, 104) if order.iteration else (0, 1, 2, 3):  # those with no takeover
                (order.bags / f"a{seed:03d}").write_text(str(seed))
            return {}

    how = replace(TINY, iterations=1, extraction="hg_dagger", first_value=False)
    with pytest.raises(ArmError, match="hg_dagger: no correction"):
        killed_run.run(tmp_path, how, cell=Uncorrected())


def test_a_person_who_changes_an_outcome_during_training_is_noticed(tmp_path: Path) -> None:
    said = tmp_path / "episodes" / "judgements.jsonl"

    class Meddler(killed_run.Deadly):
        def begin(self, name: str, title: str) -> Any:
            if name == "iteration_01.value":
                said.write_text("{}\n")
            return super().begin(name, title)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed_run, "Deadly", Meddler)
        with pytest.raises(StageError, match=r"Value function, iteration 1: .*judgements.jsonl changed"):
            killed_run.run(tmp_path, replace(TINY, iterations=1))


def test_what_arms_are_told_of_the_frames(frames, tmp_path: Path) -> None:
    judged = judge(frames, [], [])
    assert not judged.positive.any() and not judged.advantage.any() and len(judged) == len(frames)
    # e1, e3, e5 succeeded: their return is above all failures'.
    assert judged.score[[1, 3, 5]].min() > judged.score[[0, 2, 4]].max()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with Program(Path(killed_run.__file__), tmp_path) as running:
        yield running


def _killed(program: Program, folder: Path, *kill: str) -> dict[str, Any] | None:
    """None where it was killed."""
    ended = program.ask(str(folder), *kill)
    if ended.code == -signal.SIGKILL:
        return None
    assert ended.code == 0, ended.err
    return json.loads(ended.out.splitlines()[-1])


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    program: Program, tmp_path: Path
) -> None:
    whole = _killed(program, tmp_path / "whole")
    assert whole is not None and len(whole["weights"]) == 4
    for kill in ("pretrain_policy@2", "iteration_01.value@3", "iteration_02.policy!"):
        assert _killed(program, tmp_path / "broken", kill) is None, kill
    broken = _killed(program, tmp_path / "broken")
    assert broken is not None and broken["weights"] == whole["weights"]
    assert broken["again"][0] == "iteration_02.policy"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_stage_before_and_after_its_work(program: Program, tmp_path: Path) -> None:
    whole = _killed(program, tmp_path / "whole")
    assert whole is not None
    for name in whole["again"]:
        assert _killed(program, tmp_path / "broken", f"{name}!") is None, name
        if name.rpartition(".")[2] in ("pretrain_value", "pretrain_policy", "value", "policy", "sft"):
            assert _killed(program, tmp_path / "broken", f"{name}@2") is None, name
    broken = _killed(program, tmp_path / "broken")
    assert broken is not None and broken["weights"] == whole["weights"]
