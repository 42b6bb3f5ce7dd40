"""The value function learns what pictures tell, says so on episodes that it has not seen, and fails its gates
where it cannot have learnt anything."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.frames import Frames
from recap_learner.iteration import fit_value, make_labels
from recap_learner.training.training import Schedule, fit
from recap_learner.value.cotraining import Captions
from recap_learner.value.gates import GateError, Gates
from recap_learner.value.labels import FILE, LabelRule, load_ticks
from recap_learner.value.mixture import KINDS, Mixture, frame_kinds, frame_odds
from recap_learner.value.returns import Normalizer, monte_carlo_returns, renormalize
from recap_learner.value.value_data import check_start, normalizer, normalizers
from recap_learner.value.value_file import load_values, save_values
from recap_learner.value.value_inference import load_ensemble, outlook, per_tick
from recap_learner.value.value_training import EarlyStop, ValueTraining, train_value
from recap_policy.checkpoint import load_value, read, save_value
from recap_policy.sizes import value_config
from recap_policy.text import TinyTokenizer
from recap_policy.value import ValueModel
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
# Something is learnt in a few seconds of one core.
HOW = ValueTraining(
    schedule=Schedule(steps=120, batch=64, learning_rate=3e-3, warmup=10, weight_decay=0.05), check_every=20
)
SHORT = replace(HOW, schedule=replace(HOW.schedule, steps=4), check_every=2)
EVERY = 10  # ticks between frames


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def attempts(count: int = 40, tasks=(TASK,), seed: int = 0) -> Frames:
    """Attempts of 200 to 500 ticks, half of them failures; a third are demonstrations, some rollouts
    corrected.

    The tokens tell how far the attempt has come, how fast it is, and in its last half whether it will fail.
    """
    rng = np.random.default_rng(seed)
    way = rng.normal(size=(4, 2, 96))
    episodes, tokens, ticks = [], [], []
    for index in range(count):
        steps = int(rng.integers(200, 500))
        won = bool(index % 2)
        source = "demonstration" if index % 3 == 0 else "rollout"
        correction = np.zeros(steps, bool)
        if index % 3 == 1:
            correction[80:150] = True
        task = tasks[index % len(tasks)]
        info = EpisodeInfo(
            f"e{index:03}", "", "success" if won else "failure", "", source, "", index, task, STATION
        )
        state = (STATION.home + rng.normal(0, 0.01, (steps, STATION.dof))).astype(np.float32)
        t = np.arange(steps)
        episodes.append(
            Episode(
                info, t * 20_000_000, state, state, state, np.full_like(state, np.nan),
                np.full(steps, "policy"), correction, np.full(steps, "reach"), np.zeros(steps, bool),
            )
        )  # fmt: skip
        at = t[::EVERY]
        progress = at / steps
        late = np.clip(2 * progress - 1, 0, 1) * (1 if won else -1)
        told = np.stack([progress - 0.5, late, np.full(len(at), (steps - 350) / 150), np.ones(len(at))], 1)
        seen = np.einsum("fk,kpw->fpw", told, way)[:, None] + rng.normal(0, 0.3, (len(at), 3, 2, 96))
        tokens.append(seen.astype(np.float16))
        ticks.append(at)
    lengths = [len(at) for at in ticks]
    state = np.concatenate([e.state[at] for e, at in zip(episodes, ticks, strict=True)])
    place = np.repeat(np.arange(count), lengths)
    return Frames(episodes, "a tower", np.concatenate(tokens), state, place, np.concatenate(ticks))


@pytest.fixture(scope="module")
def data() -> Frames:
    return attempts()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A round's folder with a value function that has learnt."""
    folder = tmp_path_factory.mktemp("run") / "iteration_01"
    return folder, fit_value(data, folder, None, HOW, 1)


def test_a_value_that_learns_passes_its_gates(data, trained) -> None:
    folder, report = trained
    assert report["problems"] == [], report
    assert report["outcome_auc"] > 0.9 and report["episodes"] == 40 and report["successes"] == 20
    assert json.loads((folder / "value.json").read_text()) == report
    norm = {TASK.name: normalizers(data)[TASK.name]}
    values, failed, norms = load_values(folder / "values.npz")
    assert norms == norm and set(values) == set(failed) == {e.info.id for e in data.episodes}
    # the chance of failure is the outcome's, where the pictures tell it
    won = np.array([e.info.success for e in data.episodes])
    last = np.array([failed[e.info.id][-EVERY, 0] for e in data.episodes])
    assert last[won].mean() < 0.3 < 0.7 < last[~won].mean()
    assert read(folder / "value").lineage["normalizers"][TASK.name] == norm[TASK.name].to_dict()


class PaddingReader(ValueModel):
    """The head of a known bug: the last position of the padded batch is read, and what stands there sees
    only itself."""

    def logits(self, image_features, state, prompt, metadata=None, camera_mask=None):
        cue = self.prefix.layout.value_cue
        rows = [row + cue for row in self.prefix.prompts(prompt, state, metadata)]
        prefix = self.prefix(image_features, state, rows, camera_mask)
        size, length = prefix.valid.shape
        pad = self.prefix.text(torch.full((size, 1), self.tokenizer.pad))
        x = torch.cat([prefix.x, pad], 1)
        mask = torch.zeros(size, length + 1, length + 1, dtype=torch.bool)
        mask[:, :-1, :-1] = prefix.mask
        mask[:, -1, -1] = True
        positions = F.pad(prefix.positions, (0, 1))
        hidden, _ = self.backbone(x, positions, mask)
        return self.head(hidden[:, -1]).float()


def test_a_head_that_reads_padding_is_caught(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("recap_learner.value.value_training.ValueModel", PaddingReader)
    with pytest.raises(GateError, match=r"the output is nearly constant: spread is 0\.0") as caught:
        fit_value(data, tmp_path, None, HOW, 1, gates=Gates())
    assert "it cannot tell success from failure before the end" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = json.loads((tmp_path / "value.json").read_text())
    assert kept["spread"] < 0.02 and (tmp_path / "values.npz").exists()


def test_data_with_shuffled_outcomes_are_caught(data, tmp_path) -> None:
    """The loss falls all the same; on episodes that it has not seen the value says nothing of outcomes."""
    rng = np.random.default_rng(5)
    outcomes = rng.permutation([e.info.outcome for e in data.episodes])
    shuffled = replace(
        data,
        episodes=[
            replace(e, info=replace(e.info, outcome=str(o)))
            for e, o in zip(data.episodes, outcomes, strict=True)
        ],
    )
    with pytest.raises(GateError, match="it cannot tell success from failure before the end: outcome_auc is"):
        fit_value(shuffled, tmp_path, None, HOW, 1, gates=Gates())
    log = json.loads((tmp_path / "training" / "value.fold0" / "log.json").read_text())
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]


def _as_before(frames: Frames, folder, how: ValueTraining, seed: int) -> dict[str, np.ndarray]:
    """The first training of this project, written out: what default settings must still come to."""
    norm = Normalizer(750)
    returns = {e.info.id: monte_carlo_returns(len(e), e.info.success, norm) for e in frames.episodes}
    target = torch.from_numpy(frames.per_tick(returns).astype(np.float32))
    order = np.random.default_rng(seed).permutation(len(frames.episodes))
    fold_of = np.empty(len(order), dtype=int)
    fold_of[order] = np.arange(len(order)) % how.folds
    values = {}
    for fold in range(how.folds):
        held_out = fold_of[frames.episode] == fold
        torch.manual_seed(seed + fold)
        shape = value_config(how.config)
        words = TinyTokenizer.fit([TASK.prompt], shape.prefix.word_slots, shape.prefix.action_codes)
        model = ValueModel(shape, words)
        model.fit_normalizers(torch.from_numpy(frames.state))
        train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        test = test[:: max(1, len(test) // 1500)]

        def crossed(rows, model=model):
            part = frames.where(rows)
            logits = model.logits(
                torch.from_numpy(part.tokens.astype(np.float32)), torch.from_numpy(part.state),
                part.prompts.tolist(),
            )  # fmt: skip
            return F.cross_entropy(logits, model.two_hot(target[rows]))

        def loss(step, generator, train=train, crossed=crossed):
            return {"loss": crossed(train[torch.randint(len(train), (64,), generator=generator).numpy()])}

        stop = EarlyStop(model, lambda test=test, crossed=crossed: float(crossed(test)), 20, 3)
        fit(model, loss, how.schedule, seed + 17 * fold, folder / str(fold), None, stop)
        model.load_state_dict(stop.weights)
        model.eval()
        scored = frames.where(held_out)
        with torch.no_grad():
            at_frames = model.value(
                torch.from_numpy(scored.tokens.astype(np.float32)), torch.from_numpy(scored.state),
                scored.prompts.tolist(),
            ).numpy()  # fmt: skip
        for index in np.unique(scored.episode):
            rows, episode = scored.episode == index, frames.episodes[index]
            values[episode.info.id] = np.interp(np.arange(len(episode)), scored.tick[rows], at_frames[rows])
    return values


def test_default_settings_come_to_what_they_always_did(data, tmp_path) -> None:
    how = replace(HOW, schedule=replace(HOW.schedule, steps=40))
    found = train_value(data, tmp_path / "now" / "value", None, how, 3, {}).values
    wanted = _as_before(data, tmp_path / "then", how, 3)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def test_labels_are_made_from_what_was_kept(data, trained) -> None:
    folder, _ = trained
    rule = LabelRule(whole_episode_quantile=0.3, failure_point="estimated")
    found = make_labels(data, folder, rule, lambda info: info.source == "rollout")
    assert 0 < found["positive"] < 1 and found["positive_by_source"]["rollout"] > 0.39
    ticks, rules, about = load_ticks(folder / FILE)
    assert rules == {TASK.name: rule} and about["frames"] == len(data)
    costly = ticks.under({TASK.name: Normalizer(750, 4.0)})
    values, failed, _ = load_values(folder / "values.npz")
    name = ticks.episode[0]
    wanted = renormalize(values[name], failed[name], Normalizer(750), Normalizer(750, 4.0))[0]
    np.testing.assert_array_equal(costly.split(costly.value)[name], wanted)


def test_values_of_before_the_normalizer_was_kept_are_labelled(data, trained, tmp_path) -> None:
    values, _, _ = load_values(trained[0] / "values.npz")
    np.savez(tmp_path / "values.npz", **values)
    assert make_labels(data, tmp_path, LabelRule(), lambda info: True)["positive"] > 0.39
    del values[data.episodes[3].info.id]
    save_values(tmp_path / "values.npz", values, None, {})
    with pytest.raises(ValueError, match="1 episodes have no value, the first: e003"):
        make_labels(data, tmp_path, LabelRule(), lambda info: True)
    with pytest.raises(FileNotFoundError, match="wanted the values of all ticks"):
        make_labels(data, tmp_path / "absent", LabelRule(), lambda info: True)


def test_several_tasks_are_pretrained_together_and_one_is_fine_tuned(tmp_path) -> None:
    stack = replace(TASK, name="stack", prompt="stack the cups", max_episode_s=30.0)
    both = attempts(16, (TASK, stack, stack))
    made = train_value(both, tmp_path / "pretrain" / "value", None, SHORT, 1, {})
    assert made.norms == {TASK.name: Normalizer(750), "stack": Normalizer(1500)}
    assert set(made.by_task) == set(made.norms) and made.report.episodes == 16
    assert sum(report.episodes for report in made.by_task.values()) == 16
    alone = both.without([i for i, e in enumerate(both.episodes) if e.info.task.name != "stack"])
    own = train_value(alone, tmp_path / "stack" / "value", tmp_path / "pretrain" / "value", SHORT, 1, {})
    assert own.norms == {"stack": Normalizer(1500)} and len(own.values) == len(alone.episodes)
    report = fit_value(both, tmp_path / "round", None, SHORT, 1)
    assert set(report["by_task"]) == {TASK.name, "stack"}
    rules = {TASK.name: LabelRule(positive_fraction=0.4), "stack": LabelRule(positive_fraction=0.1)}
    labels = make_labels(both, tmp_path / "round", rules, lambda info: True)
    assert set(labels["thresholds"]) == {TASK.name, "stack"}


def test_the_prompt_alone_changes_the_value(tmp_path) -> None:
    stack = replace(TASK, name="stack", prompt="stack the cups")
    both = attempts(24, (TASK, stack))  # all of the first are lost, all of the second won
    blind = replace(both, tokens=np.zeros_like(both.tokens))
    train_value(blind, tmp_path / "value", None, replace(HOW, folds=1), 1, {})
    models = load_ensemble(tmp_path / "value", STATION, blind.tower)

    asked = {
        task.name: replace(
            blind, episodes=[replace(e, info=replace(e.info, task=task)) for e in blind.episodes]
        )
        for task in (TASK, stack)
    }
    value = {name: outlook(models, frames).value for name, frames in asked.items()}

    assert np.median(value["stack"] - value[TASK.name]) > 0.3


def test_a_value_of_another_normalizer_is_no_start(data, tmp_path) -> None:
    train_value(data, tmp_path / "value", None, SHORT, 1, {})
    told = r"value checkpoint .* C_fail = 1·T_max, ordered, wanted .* C_fail = 2"
    with pytest.raises(ValueError, match=told):
        train_value(data, tmp_path / "next", tmp_path / "value", replace(SHORT, fail_ratio=2.0), 1, {})
    longer = [replace(e, info=replace(e.info, task=replace(TASK, max_episode_s=30.0))) for e in data.episodes]
    with pytest.raises(ValueError, match=r"T_max = 750 ticks, .* wanted T_max = 1500"):
        train_value(replace(data, episodes=longer), tmp_path / "next", tmp_path / "value", SHORT, 1, {})
    with pytest.raises(ValueError, match=r"e001: task .* of at most 1500 ticks, others of 750"):
        normalizers(replace(data, episodes=[data.episodes[0], *longer[1:]]))
    assert normalizer(data) == Normalizer(750)
    stack = replace(TASK, name="stack")
    with pytest.raises(ValueError, match=r"wanted episodes of one task, found .*handover_insert.*stack"):
        normalizer(attempts(4, (TASK, stack)))


def test_a_checkpoint_of_before_normalizers_were_kept_is_one_of_the_default_rule(data, tmp_path) -> None:
    model = ValueModel(value_config("value-tiny"), TinyTokenizer.fit([TASK.prompt], 128))
    save_value(model, tmp_path / "value", {}, station=STATION, tower=data.tower)
    check_start(tmp_path / "value", {TASK.name: Normalizer(750)})
    with pytest.raises(ValueError, match="clipped"):
        check_start(tmp_path / "value", {TASK.name: Normalizer(750, 1.0, "clipped")})


def test_marks_of_failure_reach_the_gates(data, tmp_path) -> None:
    lost = {e.info.id: len(e) - 60 for e in data.episodes if not e.info.success}
    report = fit_value(replace(data, failed_at=lost), tmp_path, None, SHORT, 1)
    assert report["fall_auc"] is not None and not any("fall_auc" in line for line in report["unmeasured"])


def test_clipped_returns_are_learnt_and_keep_no_chance_of_failure(data, tmp_path) -> None:
    made = train_value(data, tmp_path / "value", None, replace(SHORT, fail_rule="clipped"), 1, {})
    assert made.failed is None and made.norms[TASK.name].fail_rule == "clipped"


def test_an_ensemble_is_its_mean_or_its_worst(data, tmp_path) -> None:
    how = replace(SHORT, members=2, folds=1)
    made = {
        combine: train_value(data, tmp_path / combine, None, replace(how, combine=combine), 1, {})
        for combine in ("mean", "worst")
    }
    models = load_ensemble(tmp_path / "mean", STATION, data.tower)
    assert len(models) == 2
    each = np.stack([outlook([model], data).value for model in models])
    assert np.abs(each[0] - each[1]).max() > 1e-3
    for combine, wanted in (("mean", each.mean(0)), ("worst", each.min(0))):
        found = per_tick(wanted, data)
        for name, value in made[combine].values.items():
            np.testing.assert_allclose(value, found[name], atol=1e-6)
    # fine-tuning goes on with each from its own
    nothing = replace(how, schedule=replace(how.schedule, steps=0))
    again = train_value(data, tmp_path / "again", tmp_path / "mean", nothing, 1, {})
    for name, value in again.values.items():
        np.testing.assert_allclose(value, made["mean"].values[name], atol=1e-6)


def test_without_folds_one_model_scores_all_and_is_judged_on_what_was_kept_back(data, tmp_path) -> None:
    made = train_value(data, tmp_path / "value", None, replace(SHORT, folds=1), 1, {})
    assert len(made.values) == 40 and made.report.episodes == 8
    model = load_value(tmp_path / "value", STATION, data.tower)
    wanted = per_tick(outlook([model], data).value, data)
    for name, value in made.values.items():
        np.testing.assert_array_equal(value, wanted[name])


def test_frames_are_drawn_in_the_shares_that_are_asked_for(data) -> None:
    kinds = frame_kinds(data)
    assert set(kinds.tolist()) == {0, 1, 2}

    def shares(mixture, fresh=None):
        odds = frame_odds(data, mixture, fresh)
        assert odds.sum() == pytest.approx(1) and (odds >= 0).all()
        return odds, [odds[kinds == kind].sum() for kind in range(3)]

    np.testing.assert_allclose(shares(Mixture())[0], 1 / len(data))
    weights = dict(zip(KINDS, (2.0, 1.0, 1.0), strict=True))
    np.testing.assert_allclose(shares(Mixture(kinds=weights))[1], [0.5, 0.25, 0.25])
    np.testing.assert_allclose(shares(Mixture(kinds={"rollout": 1.0}))[1], [0, 1, 0])
    by_task = Mixture(kinds=weights, by_task={TASK.name: {"correction": 1.0}})
    np.testing.assert_allclose(shares(by_task)[1], [0, 0, 1])
    new = np.array([e.info.id >= "e030" for e in data.episodes])
    odds, _ = shares(Mixture(kinds=weights, fresh_share=0.5), new)
    assert odds[new[data.episode]].sum() == pytest.approx(0.5)
    for wrong, told in (
        ({"kinds": {"demos": 1.0}}, "kind 'demos', wanted demonstration, rollout, correction"),
        ({"kinds": {"rollout": -1.0}}, "weights"),
        ({"fresh_share": 2.0}, "fresh share is 2.0"),
    ):
        with pytest.raises(ValueError, match=told):
            Mixture(**wrong)
    with pytest.raises(ValueError, match="found 0 fresh and"):
        frame_odds(data, Mixture(fresh_share=0.5))
    with pytest.raises(ValueError, match="nothing has a share"):
        frame_odds(data, Mixture(tasks={"another": 1.0}))


def test_tasks_have_their_share() -> None:
    stack = replace(TASK, name="stack", prompt="stack the cups")
    both = attempts(12, (TASK, stack, stack))
    odds = frame_odds(both, Mixture(tasks={TASK.name: 3.0, "stack": 1.0}))
    mine = np.array([e.info.task.name == TASK.name for e in both.episodes])[both.episode]
    assert odds[mine].sum() == pytest.approx(0.75)


def test_a_batch_is_drawn_by_the_mixture(data, tmp_path, monkeypatch) -> None:
    drawn: list[np.ndarray] = []
    where = Frames.where

    def spy(frames, rows):
        if len(rows) == 64 and np.issubdtype(np.asarray(rows).dtype, np.integer):
            drawn.append(np.asarray(rows))
        return where(frames, rows)

    monkeypatch.setattr(Frames, "where", spy)
    mixture = Mixture(kinds={"demonstration": 1.0, "correction": 1.0})
    how = replace(SHORT, mixture=mixture, schedule=replace(SHORT.schedule, steps=20), check_every=30)
    train_value(data, tmp_path / "value", None, how, 1, {})
    kinds = frame_kinds(data)[np.concatenate(drawn)]
    assert not (kinds == 1).any() and (kinds == 2).mean() == pytest.approx(0.5, abs=0.05)
    fresh = replace(how, mixture=Mixture(fresh_share=0.5))
    drawn.clear()
    train_value(data, tmp_path / "fresh", None, fresh, 1, {}, fresh=lambda e: e.info.id >= "e035")
    new = np.array([e.info.id >= "e035" for e in data.episodes])[data.episode[np.concatenate(drawn)]]
    assert new.mean() == pytest.approx(0.5, abs=0.05)


def _captions(tmp_path) -> Captions:
    import cv2

    rng = np.random.default_rng(0)
    colours = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}
    rows = []
    for index in range(24):
        word = list(colours)[index % 3]
        picture = np.clip(np.array(colours[word]) + rng.normal(0, 9, (48, 48, 3)), 0, 255).astype(np.uint8)
        image = cv2.imencode(".png", picture)[1].tobytes()
        rows.append({"image": image, "question": "which", "answer": word})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")

    def encode(images: torch.Tensor) -> torch.Tensor:
        """A tower's stand-in: mean colours."""
        return (images.float().mean((1, 2)) / 128 - 1).repeat(1, 64).reshape(-1, 2, 96)

    return Captions.from_parquet(tmp_path / "captions.parquet", encode, 32, batch=12, weight=0.5)


def test_vision_language_data_are_learnt_beside_the_value(data, tmp_path) -> None:
    captions = _captions(tmp_path)
    how = replace(HOW, folds=1, schedule=replace(HOW.schedule, steps=80))
    train_value(data, tmp_path / "value", None, how, 1, {}, cotraining=captions)
    log = json.loads((tmp_path / "training" / "value.fold0" / "log.json").read_text())
    assert log[-1]["cotraining"] < 0.3 * log[0]["cotraining"] and log[-1]["value"] < log[0]["value"]
    model = load_value(tmp_path / "value", STATION, data.tower)
    assert float(captions(model, 0, torch.Generator().manual_seed(0)).detach()) < 0.3
    with pytest.raises(ValueError, match="24 pictures, 3 questions"):
        replace(captions, questions=captions.questions[:3])
    with pytest.raises(ValueError, match="no column 'answer'"):
        pq.write_table(pa.table({"image": [b""], "question": [""]}), tmp_path / "bad.parquet")
        Captions.from_parquet(tmp_path / "bad.parquet", lambda images: images, 32)


def test_data_that_cannot_be_trained_on_are_refused(data, tmp_path) -> None:
    def train(frames, how=SHORT):
        train_value(frames, tmp_path / "value", None, how, 1, {})

    with pytest.raises(ValueError, match="value training on 1 episode with 2 folds, wanted at least 2"):
        train(data.without(list(range(1, 40))))
    unknown = replace(data.episodes[4], info=replace(data.episodes[4].info, outcome="unknown"))
    with pytest.raises(ValueError, match="1 of 40 episodes have no outcome, the first: e004: give it by"):
        train(replace(data, episodes=[*data.episodes[:4], unknown, *data.episodes[5:]]))
    with pytest.raises(ValueError, match="0 folds"):
        replace(SHORT, folds=0)
    with pytest.raises(ValueError, match="by 'best'"):
        replace(SHORT, combine="best")
    assert not (tmp_path / "value").exists()


def test_a_task_of_one_episode_is_scored_by_what_others_taught_and_judged_by_nothing(tmp_path) -> None:
    stack = replace(TASK, name="stack")
    data = attempts(12, (TASK, stack))
    of_stack = [i for i, e in enumerate(data.episodes) if e.info.task.name == "stack"]
    data = data.without(of_stack[1:])
    report = fit_value(data, tmp_path, None, SHORT, 1)
    assert report["by_task"]["stack"]["episodes"] == 1 and report["by_task"]["stack"]["spearman"] is None
    [alone] = [e.info.id for e in data.episodes if e.info.task.name == "stack"]
    assert np.isfinite(load_values(tmp_path / "values.npz")[0][alone]).all()
    only = data.without([i for i, e in enumerate(data.episodes) if e.info.id != alone])
    with pytest.raises(ValueError, match="value training on 1 episode with 2 folds, wanted at least 2"):
        fit_value(only, tmp_path / "next", tmp_path / "value", SHORT, 1)


@pytest.mark.parametrize("kept", ["success", "failure"])
def test_one_outcome_alone_trains_and_says_what_it_cannot_tell(data, tmp_path, kept) -> None:
    one = data.without([i for i, e in enumerate(data.episodes) if e.info.outcome != kept])
    report = fit_value(one, tmp_path, None, SHORT, 1)
    assert report["outcome_auc"] is None and any("outcome_auc" in line for line in report["unmeasured"])
    assert any("no success among" in problem for problem in report["problems"]) == (kept == "failure")
