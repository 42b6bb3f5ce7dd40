"""Thresholds, forced positives and the sidecar."""

import numpy as np
import pytest

from recap_learner.labels import EpisodeValues, LabelRule, label, load_indicator, save_labels
from recap_learner.returns import Normalizer
from recap_learner.store import Store

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
    data = [EpisodeValues(f"e{i}", np.full(200, -0.7), False, np.zeros(200, bool), True) for i in range(4)]
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
