"""Thresholds, forced positives, points of failure, the sidecar, and labels made anew from it."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_learner.data.judgements import say
from recap_learner.data.store import Store
from recap_learner.value.labels import (
    EpisodeValues,
    LabelRule,
    label,
    label_ticks,
    load_indicator,
    load_ticks,
    relabel,
    save_labels,
)
from recap_learner.value.returns import Normalizer, monte_carlo_returns, n_step_advantages

NORM = Normalizer(max_steps=400)


def episodes(count: int = 40, correction: bool = False) -> list[EpisodeValues]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        steps = int(rng.integers(100, 300))
        values = np.clip(np.cumsum(rng.normal(0, 0.01, steps)) - 0.5, -1, 0)
        corrected = np.zeros(steps, bool)
        if correction:
            corrected[20:50] = True
        made.append(EpisodeValues(f"e{index}", values, bool(index % 2), corrected, index >= 10))
    return made


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.4])
def test_the_threshold_leaves_the_wanted_share_of_autonomous_frames_positive(fraction):
    data = episodes(correction=True)
    labels = label(data, NORM, LabelRule(positive_fraction=fraction))
    share = np.mean(
        np.concatenate([labels.indicator[e.episode][~e.correction] for e in data if e.sets_threshold])
    )
    assert share == pytest.approx(fraction, abs=0.01)


def test_corrections_are_positive_whatever_their_advantage():
    data = episodes(correction=True)
    labels = label(data, NORM, LabelRule(positive_fraction=0.01))
    assert all(labels.indicator[e.episode][e.correction].all() for e in data)


def test_the_end_of_a_failure_is_never_positive():
    values = np.linspace(-0.8, -0.6, 200) ** 3
    data = [EpisodeValues(f"e{i}", values, False, np.zeros(200, bool), True) for i in range(4)]
    labels = label(data, NORM, LabelRule(lookahead=50, positive_fraction=0.4))
    assert not any(labels.indicator[e.episode][-50:].any() for e in data)


def test_both_lookaheads_together_leave_the_wanted_share():
    data = episodes()
    rule = LabelRule(positive_fraction=0.4, whole_episode_quantile=0.3)
    labels = label(data, NORM, rule)
    share = np.mean(np.concatenate([labels.indicator[e.episode] for e in data if e.sets_threshold]))
    assert share == pytest.approx(0.4, abs=0.01)


def test_no_frame_to_set_the_threshold_is_an_error():
    data = [EpisodeValues("e", np.zeros(9), True, np.zeros(9, bool), False)]
    with pytest.raises(ValueError, match="no autonomous frame"):
        label(data, NORM, LabelRule())


def test_labels_stand_beside_each_episode_of_a_store_too(tmp_path):
    labels, store = label(episodes(), NORM, LabelRule()), Store(tmp_path)
    for name, columns in labels.by_episode().items():
        store.save_labels("iteration_01", name, columns, {})
    assert store.tags() == ["iteration_01"]
    found = store.load_labels("iteration_01", "e3")
    np.testing.assert_array_equal(found["indicator"], labels.indicator["e3"])
    np.testing.assert_array_equal(found["advantage"], labels.advantage["e3"])


def test_labels_come_back_from_disk(tmp_path):
    labels = label(episodes(), NORM, LabelRule())
    save_labels(labels, tmp_path / "labels.parquet", {"made": "here"})
    back = load_indicator(tmp_path / "labels.parquet")
    assert list(back) == list(labels.indicator)
    for name in back:
        np.testing.assert_array_equal(back[name], labels.indicator[name])


def _as_before(data, norm, rule):
    """The rule of the first labels, episode by episode, as a definition."""
    whole = {e.episode: n_step_advantages(e.values, e.success, len(e.values), norm) for e in data}
    ahead = whole
    if rule.lookahead:
        ahead = {
            e.episode: n_step_advantages(e.values, e.success, rule.lookahead, norm, e.correction)
            for e in data
        }
    judged = [e for e in data if e.sets_threshold]

    def autonomous(column):
        return np.concatenate([column[e.episode][~e.correction] for e in judged])

    may = {e.episode: np.ones(len(e.values), bool) for e in data}
    for e in data:
        if rule.whole_episode_quantile is not None:
            least = float(np.quantile(autonomous(whole), rule.whole_episode_quantile))
            may[e.episode] &= whole[e.episode] > least
        if not e.success:
            may[e.episode][-(rule.lookahead or 1) :] = False
    allowed = autonomous(may)
    share = min(1.0, rule.positive_fraction * len(allowed) / allowed.sum())
    threshold = float(np.quantile(autonomous(ahead)[allowed], 1 - share))
    return {e.episode: ((ahead[e.episode] > threshold) & may[e.episode]) | e.correction for e in data}


@pytest.mark.parametrize("rule", [
    LabelRule(lookahead=0, positive_fraction=0.3),
    LabelRule(lookahead=50, positive_fraction=0.4),
    LabelRule(lookahead=50, positive_fraction=0.4, whole_episode_quantile=0.3),
    LabelRule(lookahead=120, positive_fraction=0.1),
])  # fmt: skip
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_labels_are_those_of_the_definition(rule, kind):
    data = [replace(e, values=e.values.astype(kind)) for e in episodes(correction=True)]
    found, wanted = label(data, NORM, rule), _as_before(data, NORM, rule)
    for name, indicator in wanted.items():
        np.testing.assert_array_equal(found.indicator[name], indicator)


def test_a_small_case_by_hand():
    """T_max = 10, scale 20, N = 2, half of 8 frames positive. A success of 5 ticks, a failure of 3.

    success: V_t = −0.3, −0.1, −0.2, 0, 0 → A = −2/20 + V_{t+2} − V_t = 0, 0, 0.1; then −1/20 − 0, 0 − 0
    failure: V_t = −0.6, −0.5, −0.9 → A_0 = −0.1 − 0.9 + 0.6 = −0.4; its last two look at the end: negative
    Of 6 allowed frames 4 of 8 may lie above: A > the quantile 1 − 4/6 of {−0.4, −0.05, 0, 0, 0, 0.1} = −0.017
    """
    won = EpisodeValues("won", np.array([-0.3, -0.1, -0.2, 0, 0]), True, np.zeros(5, bool), True)
    lost = EpisodeValues("lost", np.array([-0.6, -0.5, -0.9]), False, np.zeros(3, bool), True)
    labels = label([won, lost], Normalizer(10), LabelRule(lookahead=2, positive_fraction=0.5))
    np.testing.assert_allclose(labels.advantage["won"], [0, 0, 0.1, -0.05, 0], atol=1e-7)
    assert labels.advantage["lost"][0] == pytest.approx(-0.4)
    assert labels.threshold == pytest.approx(-0.05 + 0.05 * 2 / 3, abs=1e-6)
    assert labels.indicator["won"].tolist() == [True, True, True, False, True]
    assert not labels.indicator["lost"].any()


def test_tasks_have_their_own_thresholds_normalizers_and_rules():
    lift = [replace(e, task="lift") for e in episodes()]
    stack = [replace(e, episode=f"s{e.episode}", task="stack") for e in episodes(correction=True)]
    norms = {"lift": NORM, "stack": Normalizer(900)}
    rules = {"lift": LabelRule(50, 0.4), "stack": LabelRule(lookahead=20, positive_fraction=0.1)}
    mixed = [e for pair in zip(lift, stack, strict=True) for e in pair]
    together = label(mixed, norms, rules)
    for task, own in (("lift", lift), ("stack", stack)):
        alone = label(own, norms[task], rules[task])
        assert together.thresholds[task] == alone.thresholds[task]
        for e in own:
            np.testing.assert_array_equal(together.indicator[e.episode], alone.indicator[e.episode])
    with pytest.raises(ValueError, match="no rule for task 'stack', found lift"):
        label(mixed, norms, {"lift": rules["lift"]})


def test_a_threshold_can_be_given_and_one_that_leaves_nothing_is_refused():
    data = episodes()
    labels = label(data, NORM, LabelRule(threshold=0.01))
    rows = np.concatenate([labels.advantage[e.episode] for e in data])
    assert labels.threshold == 0.01 and 0 < labels.positive_fraction <= np.mean(rows > 0.01)
    with pytest.raises(ValueError, match=r"no autonomous frame lies above the threshold 0.9, the greatest"):
        label(data, NORM, LabelRule(threshold=0.9))


def test_a_constant_value_leaves_no_positive_and_says_so():
    data = [EpisodeValues(f"e{i}", np.full(200, -0.7), False, np.zeros(200, bool), True) for i in range(4)]
    with pytest.raises(ValueError, match="the value function says nothing"):
        label(data, NORM, LabelRule())


def test_only_short_failures_leave_no_positive_and_say_so():
    data = [replace(e, success=False, values=e.values[:40], correction=e.correction[:40]) for e in episodes()]
    with pytest.raises(ValueError, match="every autonomous frame is ruled out, 40 of 40 attempts failed"):
        label(data, NORM, LabelRule(lookahead=50))


def test_data_without_failures_is_labelled():
    data = [replace(e, success=True) for e in episodes()]
    labels = label(data, NORM, LabelRule(lookahead=0, positive_fraction=0.3))
    judged = np.concatenate([labels.indicator[e.episode] for e in data if e.sets_threshold])
    assert judged.mean() == pytest.approx(0.3, abs=0.01)


def test_what_is_forced_can_be_chosen():
    data = episodes(correction=True)
    everything = label(data, NORM, LabelRule(force="all"))
    assert everything.positive_fraction == 1.0 and everything.flat["forced"].all()
    nobody_judged = [replace(e, sets_threshold=False) for e in data]
    assert label(nobody_judged, NORM, LabelRule(force="all")).positive_fraction == 1.0
    natural, forced = label(data, NORM, LabelRule(force="none")), label(data, NORM, LabelRule())
    assert not natural.flat["forced"].any()
    autonomous = ~forced.ticks.correction
    np.testing.assert_array_equal(natural.flat["indicator"][autonomous], forced.flat["indicator"][autonomous])
    assert natural.flat["indicator"][~autonomous].mean() < 1


def test_words_and_shares_that_are_wrong_are_refused():
    for wrong, told in (
        ({"end": "mean"}, "end is 'mean', wanted one of sum, bootstrap"),
        ({"force": "some"}, "force is 'some', wanted one of corrections, all, none"),
        ({"failure_point": "guess"}, "failure_point is 'guess'"),
        ({"speed": "fast"}, "speed is 'fast', wanted one of expected, given_success"),
        ({"positive_fraction": 1.5}, "positive fraction 1.5"),
        ({"lookahead": -1}, "lookahead is -1"),
    ):
        with pytest.raises(ValueError, match=told):
            LabelRule(**wrong)


def test_a_failure_condemns_only_what_followed_its_point():
    """A failure of 200 ticks lost at 120: before that it is judged as if it had been cut there."""
    rng = np.random.default_rng(1)
    data = episodes()
    values = np.clip(-0.4 + np.cumsum(rng.normal(0, 0.01, 200)), -1, 0)
    lost = EpisodeValues("lost", values, False, np.zeros(200, bool), True, failed_at=120)
    rule = LabelRule(lookahead=50, whole_episode_quantile=0.3)
    after = replace(rule, failure_point="marked")
    blamed = label([*data, lost], NORM, rule)
    spared = label([*data, lost], NORM, after)
    assert not spared.indicator["lost"][120:].any()
    t = np.array([0, 60, 80, 100, 119])
    until = np.minimum(t + 50, 120)
    wanted = -(until - t) / NORM.scale + values[until] - values[t]
    np.testing.assert_allclose(spared.advantage["lost"][t], wanted, atol=1e-6)
    # the outcome rules out most of it as a whole; what came before the point is not condemned
    assert spared.indicator["lost"].sum() > blamed.indicator["lost"].sum()
    won = replace(lost, success=True)
    np.testing.assert_array_equal(
        label([*data, won], NORM, rule).indicator["lost"], label([*data, won], NORM, after).indicator["lost"]
    )


def test_the_point_of_failure_is_where_failure_became_and_stayed_probable():
    chance = np.concatenate([np.full(30, 0.2), np.full(10, 0.8), np.full(40, 0.4), np.full(120, 0.9)])
    failed = np.stack([chance, -0.8 * chance], 1).astype(np.float32)
    values = np.random.default_rng(2).uniform(-0.5, -0.3, 200)
    plain = EpisodeValues("lost", values, False, np.zeros(200, bool), True)
    rule = LabelRule(lookahead=20, failure_point="estimated")
    estimated = label([replace(plain, failed=failed)], NORM, rule)
    marked = label([replace(plain, failed_at=80)], NORM, replace(rule, failure_point="marked"))
    np.testing.assert_array_equal(estimated.indicator["lost"], marked.indicator["lost"])
    with pytest.raises(ValueError, match="they cannot be estimated from values"):
        label([plain], NORM, rule)


def success_or_not(name: str, pace: float, success: bool, seed: int) -> EpisodeValues:
    """An attempt of 200 ticks that comes `pace` ticks nearer to success in each, while its chance of failure
    jumps about. The value mixes both, as a distribution's mean does."""
    rng, left = np.random.default_rng(seed), 300 - pace * np.arange(200)
    chance = np.repeat(rng.uniform(0.1, 0.6, 20), 10)
    of_failure = -chance * 0.9
    values = of_failure - (1 - chance) * left / NORM.scale
    failed = np.stack([chance, of_failure], 1)
    return EpisodeValues(name, values, success, np.zeros(200, bool), True, failed=failed)


def test_speed_given_success_is_not_drowned_by_the_chance_of_failure():
    paces = [0.9, 0.95, 1.05, 1.1]
    data = [success_or_not(f"{pace}", pace, True, seed) for seed, pace in enumerate(paces)]
    rule = LabelRule(lookahead=40, positive_fraction=0.4)
    expected, given_success = (
        label(data, NORM, replace(rule, speed=s)) for s in ("expected", "given_success")
    )
    for pace in paces:
        wanted = 40 * (pace - 1) / NORM.scale
        np.testing.assert_allclose(given_success.advantage[f"{pace}"][:150], wanted, atol=1e-5)

    def told_apart(labels) -> float:
        slow, fast = ([labels.advantage[f"{p}"][:150] for p in some] for some in (paces[:2], paces[2:]))
        return float(np.mean(np.concatenate(fast)[:, None] > np.concatenate(slow)))

    assert told_apart(given_success) == 1.0 and told_apart(expected) < 0.75


@pytest.mark.parametrize("lookahead", [0, 40])
def test_given_success_a_failure_is_not_taken_for_one_at_its_end(lookahead):
    data = [success_or_not("won", 1.0, True, 0), success_or_not("lost", 2.0, False, 1)]
    labels = label(data, NORM, LabelRule(lookahead=lookahead, positive_fraction=0.3, speed="given_success"))
    assert not labels.indicator["lost"][-(lookahead or 200) :].any()
    assert labels.indicator["lost"].any() == bool(lookahead)  # before that it was fast
    with pytest.raises(ValueError, match="speed given success cannot be told from values"):
        label(episodes(), NORM, labels.rule)


def test_speed_given_success_does_not_depend_on_the_price_of_failure():
    data = [success_or_not(f"e{i}", 1 + 0.05 * i, i % 2 == 0, i) for i in range(6)]
    rule = LabelRule(lookahead=40, speed="given_success")
    before = label(data, NORM, rule)
    ticks = before.ticks.under({"": replace(NORM, fail_ratio=3.0)})
    after = label_ticks(ticks, rule)
    same = before.flat["advantage"] * NORM.scale / ticks.norms[""].scale
    np.testing.assert_allclose(after.flat["advantage"], same, atol=1e-6)


@given(st.floats(0.05, 0.95), st.integers(0, 80), st.sampled_from([None, 0.2]), st.integers(0, 2**31))
def test_never_more_than_the_wanted_share_is_positive_and_forced_ones_are(share, lookahead, whole, seed):
    rng = np.random.default_rng(seed)
    data = []
    for index in range(5):
        steps = int(rng.integers(100, 200))
        values, corrected = rng.uniform(-1, 0, steps), rng.random(steps) < 0.1
        data.append(EpisodeValues(f"e{index}", values, index % 2 == 0, corrected, True))
    labels = label(data, NORM, LabelRule(lookahead, share, whole))
    corrected = labels.ticks.correction
    assert labels.flat["indicator"][corrected].all()
    assert labels.flat["indicator"][~corrected].mean() <= share + 1 / (~corrected).sum()


def _sidecar(tmp_path, with_failed=True):
    rng = np.random.default_rng(3)
    data = []
    for e in episodes(correction=True):
        true = monte_carlo_returns(len(e.values), e.success, NORM)
        values = np.clip(true + rng.normal(0, 0.02, len(true)), -1, 0).astype(np.float32)
        chance = np.full(len(true), 0.2 if e.success else 0.9)
        failed = np.stack([chance, np.minimum(values * chance, -0.5 * chance)], 1).astype(np.float32)
        source = "rollout" if e.sets_threshold else "demonstration"
        data.append(
            replace(e, values=values, failed=failed if with_failed else None, task="lift", source=source)
        )
    labels = label(data, {"lift": NORM}, LabelRule())
    save_labels(labels, tmp_path / "labels.parquet", {"frames": 7, "episodes": ["e0"]})
    return data, labels


def test_a_sidecar_holds_all_that_labels_are_made_from(tmp_path):
    _, labels = _sidecar(tmp_path)
    ticks, rules, about = load_ticks(tmp_path / "labels.parquet")
    assert rules == {"lift": LabelRule()} and about["frames"] == 7 and ticks.norms == {"lift": NORM}
    for name in ("episode", "task", "source"):
        assert getattr(ticks, name) == getattr(labels.ticks, name)
    for name in ("success", "sets_threshold", "failed_at", "starts", "value", "correction", "failed"):
        np.testing.assert_array_equal(getattr(ticks, name), getattr(labels.ticks, name))


def test_relabelling_gives_what_labelling_by_that_rule_gives(tmp_path):
    data, before = _sidecar(tmp_path)
    rule = LabelRule(lookahead=100, positive_fraction=0.1, whole_episode_quantile=0.2)
    old, new = relabel(
        tmp_path / "labels.parquet", tmp_path / "labels.strict.parquet", lambda task, found: rule
    )
    wanted = label(data, {"lift": NORM}, rule)
    np.testing.assert_array_equal(new.flat["indicator"], wanted.flat["indicator"])
    np.testing.assert_array_equal(old.flat["indicator"], before.flat["indicator"])
    back = load_indicator(tmp_path / "labels.strict.parquet")
    np.testing.assert_array_equal(np.concatenate(list(back.values())), new.flat["indicator"])
    assert load_ticks(tmp_path / "labels.strict.parquet")[2]["episodes"] == ["e0"]


def test_relabelling_by_another_c_fail_needs_the_chance_of_failure(tmp_path):
    _sidecar(tmp_path)
    path, out = tmp_path / "labels.parquet", tmp_path / "labels.costly.parquet"

    def costly(norm):
        return replace(norm, fail_ratio=3.0)

    _, new = relabel(path, out, lambda task, rule: rule, costly)
    # V' = −(L_s + L_f + C'·p) / scale', by hand for one tick: p, F and V under C = T_max = 400, scale 800
    ticks = load_ticks(path)[0]
    v, (p, f) = float(ticks.value[5]), ticks.failed[5].astype(float)
    wanted = -(-(v - f) * 800 + (-f * 800 - 400 * p) + 1200 * p) / 1600
    assert new.flat["value"][5] == pytest.approx(wanted, abs=1e-6)
    assert new.ticks.norms["lift"].fail_cost == 1200
    _sidecar(tmp_path, with_failed=False)
    with pytest.raises(ValueError, match="kept without the probability of failure"):
        relabel(path, out, lambda task, rule: rule, costly)


def test_relabelling_reads_what_people_say_now(tmp_path, frames):
    store = Store(tmp_path / "episodes")
    for episode in frames.episodes:
        store.add(episode)
    data = [
        EpisodeValues(
            e.info.id, np.linspace(-0.8, -0.1, len(e)).astype(np.float32) ** 3, e.info.success, e.correction,
            True, e.info.task.name,
        )
        for e in frames.episodes
    ]  # fmt: skip
    task = data[0].task
    save_labels(label(data, {task: Normalizer(750)}, LabelRule()), tmp_path / "labels.parquet", {})
    say(store.folder, "ana", "e0", "outcome", outcome="success")
    say(store.folder, "ana", "e1", "outcome", outcome="discarded")
    say(store.folder, "ana", "e2", "failed", tick=100)
    _, new = relabel(
        tmp_path / "labels.parquet", tmp_path / "labels.said.parquet",
        lambda name, rule: replace(rule, failure_point="marked"), store=store, tag="said",
    )  # fmt: skip
    assert new.ticks.success[0] and "e1" not in new.ticks.episode
    assert not new.indicator["e2"][100:].any() and new.indicator["e2"].any()
    assert store.tags() == ["said"] and store.load_labels("said", "e1") is None
    np.testing.assert_array_equal(store.load_labels("said", "e2")["indicator"], new.indicator["e2"])
    with pytest.raises(ValueError, match="holds no labels of task 'fold'"):
        relabel(tmp_path / "labels.parquet", tmp_path / "x.parquet", lambda name, rule: rule, task="fold")


def test_a_file_that_is_no_sidecar_is_refused(tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match="not labels that can be made anew"):
        load_ticks(tmp_path / "labels.parquet")
    with pytest.raises(FileNotFoundError, match="wanted the labels of a run"):
        load_ticks(tmp_path / "absent.parquet")


def test_values_that_are_no_numbers_or_of_other_lengths_are_refused():
    data = episodes()
    with pytest.raises(ValueError, match="e3: a value is no number"):
        label([*data[:3], replace(data[3], values=data[3].values * np.nan)], NORM, LabelRule())
    with pytest.raises(ValueError, match="e0: 3 values, "):
        label([replace(data[0], values=np.zeros(3))], NORM, LabelRule())
    with pytest.raises(ValueError, match="no episode to label"):
        label([], NORM, LabelRule())


def test_a_million_frames_are_labelled_in_seconds():
    """`benchmarks/labels.py` measures; here a bound that any machine keeps."""
    rng = np.random.default_rng(0)
    values, corrected = rng.uniform(-1, 0, (2000, 500)).astype(np.float32), rng.random((2000, 500)) < 0.05
    data = [EpisodeValues(f"e{i}", values[i], i % 3 > 0, corrected[i], True) for i in range(2000)]
    begin = time.process_time()
    label(data, NORM, LabelRule(whole_episode_quantile=0.3))
    assert time.process_time() - begin < 5
