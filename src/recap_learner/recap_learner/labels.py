"""From advantages to the indicator: per-task thresholds, forced positives, sidecar columns.

Labels never touch the episodes: each labelling run writes one Parquet file under its tag, so another
threshold relabels without moving data or running a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_learner.returns import Normalizer, n_step_advantages
from recap_station.files import replace_file


@dataclass(frozen=True)
class LabelRule:
    """How frames become positive.

    lookahead: N of the advantage in ticks (paper, post-training: 50 = 1 s; pre-training: the whole
    episode, given as 0). positive_fraction: share of the threshold's frames that lie above it (paper:
    0.4 of the iteration's autonomous frames, 0.3 of demonstrations in pre-training, 0.1 where
    demonstrations are good but slow). whole_episode_quantile: if set, a frame must also lie above
    this quantile of the whole-episode advantage: speed is judged among frames that the outcome does
    not condemn (our addition; failures often show later than N).
    """

    lookahead: int = 50
    positive_fraction: float = 0.4
    whole_episode_quantile: float | None = None


@dataclass(frozen=True)
class EpisodeValues:
    """What labelling needs of one episode. values: (T,) normalised; correction: (T,) bool."""

    episode: str
    values: np.ndarray
    success: bool
    correction: np.ndarray
    sets_threshold: bool  # its autonomous frames are those the threshold is a quantile of


@dataclass(frozen=True)
class Labels:
    """Indicator of every tick of every episode, with what it was made from."""

    rule: LabelRule
    threshold: float
    whole_threshold: float | None
    indicator: dict[str, np.ndarray]  # episode → (T,) bool
    advantage: dict[str, np.ndarray]  # episode → (T,) float32
    value: dict[str, np.ndarray]
    forced: dict[str, np.ndarray]

    def by_episode(self) -> dict[str, dict[str, np.ndarray]]:
        """Episode → column → (T,), as `Store.save_labels` takes them."""
        names = ("value", "advantage", "indicator", "forced")
        return {e: {name: getattr(self, name)[e] for name in names} for e in self.indicator}

    @property
    def positive_fraction(self) -> float:
        return float(np.mean(np.concatenate(list(self.indicator.values()))))


def label(episodes: Sequence[EpisodeValues], norm: Normalizer, rule: LabelRule) -> Labels:
    """I_t = [A_t > ε_ℓ], with ε_ℓ the task's quantile (eq. 3 and section IV-B); corrections are True.

    A frame of a failure whose lookahead reaches its end is negative: the return there is −C_fail whatever
    came before, so that a value which rightly expected worse would call failing good news.
    All episodes belong to one task. Raises ValueError if no frame can set the threshold.
    """
    advantage: dict[str, np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    for episode in episodes:
        whole[episode.episode] = n_step_advantages(episode.values, episode.success, len(episode.values), norm)
        advantage[episode.episode] = (
            n_step_advantages(episode.values, episode.success, rule.lookahead, norm, episode.correction)
            if rule.lookahead
            else whole[episode.episode]
        )
    judged = [e for e in episodes if e.sets_threshold]
    whole_threshold = None
    if rule.whole_episode_quantile is not None:
        whole_threshold = float(np.quantile(_autonomous(judged, whole), rule.whole_episode_quantile))
    allowed: dict[str, np.ndarray] = {}
    for episode in episodes:
        may = np.ones(len(episode.values), bool)
        if whole_threshold is not None:
            may &= whole[episode.episode] > whole_threshold
        if not episode.success:
            may[-(rule.lookahead or 1) :] = False
        allowed[episode.episode] = may
    threshold = _threshold(
        _autonomous(judged, advantage), _autonomous(judged, allowed), rule.positive_fraction
    )
    indicator, forced = {}, {}
    for episode in episodes:
        name = episode.episode
        forced[name] = episode.correction.astype(bool)
        indicator[name] = ((advantage[name] > threshold) & allowed[name]) | forced[name]
    values = {e.episode: e.values for e in episodes}
    return Labels(rule, threshold, whole_threshold, indicator, advantage, values, forced)


def save_labels(labels: Labels, path: Path, lineage: Mapping[str, object]) -> None:
    """Write one sidecar: a row per tick with episode, tick, value, advantage, indicator, forced."""
    names = list(labels.indicator)
    lengths = [len(labels.indicator[name]) for name in names]
    table = pa.table(
        {
            "episode": pa.array(np.repeat(names, lengths)).dictionary_encode(),
            "tick": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            "value": np.concatenate([labels.value[name] for name in names]).astype(np.float32),
            "advantage": np.concatenate([labels.advantage[name] for name in names]),
            "indicator": np.concatenate([labels.indicator[name] for name in names]),
            "forced": np.concatenate([labels.forced[name] for name in names]),
        }
    )
    about = {
        "rule": asdict(labels.rule),
        "threshold": labels.threshold,
        "whole_threshold": labels.whole_threshold,
        **lineage,
    }
    table = table.replace_schema_metadata({"recap.labels": json.dumps(about)})
    replace_file(path, lambda temporary: pq.write_table(table, temporary))


def load_indicator(path: Path) -> dict[str, np.ndarray]:
    """Read back episode → (T,) bool from a label sidecar."""
    table = pq.read_table(path, columns=["episode", "indicator"])
    names = np.asarray(table["episode"].to_pylist())
    indicator = table["indicator"].to_numpy()
    return {name: indicator[names == name] for name in dict.fromkeys(names.tolist())}


def _autonomous(episodes: Sequence[EpisodeValues], column: Mapping[str, np.ndarray]) -> np.ndarray:
    """A column over all frames of `episodes` that no person commanded, end to end."""
    frames = [column[e.episode][~e.correction.astype(bool)] for e in episodes]
    pooled = np.concatenate(frames) if frames else np.empty(0)
    if not len(pooled):
        raise ValueError("no autonomous frame to set the threshold from")
    return pooled


def _threshold(advantage: np.ndarray, allowed: np.ndarray, fraction: float) -> float:
    """ε such that `fraction` of all frames are allowed and lie above it; as many as there are, if fewer."""
    share = min(1.0, fraction * len(allowed) / max(1, int(allowed.sum())))
    return float(np.quantile(advantage[allowed], 1.0 - share)) if allowed.any() else float(np.inf)
