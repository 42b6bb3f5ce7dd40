"""Label sidecars: one Parquet file a labelling run, a row for each tick, and labels made anew from one.

Beside the labels it holds all that they were made from, so that another fraction, lookahead, threshold or
C_fail needs neither the episodes nor a model:

    columns   episode, tick, value, advantage, indicator, forced, correction; where they are known failure,
              failure_value (`returns.renormalize`'s two)
    metadata  recap.labels: rule, threshold, whole_threshold; rules, thresholds, normalizers by task; lineage.
              recap.episodes: of each episode task, source, success, sets_threshold, failed_at
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap_learner.data.store import Store
from recap_learner.value.labelling import LabelRule, Labels, label, label_ticks
from recap_learner.value.returns import Normalizer
from recap_learner.value.ticks import EpisodeValues, Ticks
from recap_station.files import replace_file

FILE = "labels.parquet"
__all__ = [
    "FILE", "EpisodeValues", "LabelRule", "Labels", "as_judged", "label", "label_ticks", "load_indicator",
    "load_ticks", "relabel", "save_labels", "save_to_store",
]  # fmt: skip


def save_labels(labels: Labels, path: Path, lineage: Mapping[str, Any]) -> None:
    """Write one sidecar, in one step."""
    ticks = labels.ticks
    number = np.repeat(np.arange(len(ticks.episode), dtype=np.int32), ticks.lengths)
    columns: dict[str, Any] = {
        "episode": pa.DictionaryArray.from_arrays(number, pa.array(ticks.episode)),
        "tick": (np.arange(ticks.starts[-1]) - ticks.spread(ticks.starts[:-1])).astype(np.int32),
        "value": labels.flat["value"].astype(np.float32),
        **{name: labels.flat[name] for name in ("advantage", "indicator", "forced")},
        "correction": ticks.correction,
    }
    if ticks.failed is not None:
        columns |= {"failure": ticks.failed[:, 0], "failure_value": ticks.failed[:, 1]}
    about = {
        "rule": asdict(labels.rule),
        "threshold": _plain(labels.threshold),
        "whole_threshold": labels.whole_threshold,
        "rules": {task: asdict(rule) for task, rule in labels.rules.items()},
        "thresholds": {
            task: {"advantage": _plain(t.advantage), "whole": t.whole}
            for task, t in labels.thresholds.items()
        },
        "normalizers": {task: norm.to_dict() for task, norm in ticks.norms.items()},
        **lineage,
    }
    episodes = {
        "task": ticks.task,
        "source": ticks.source,
        "success": ticks.success.tolist(),
        "sets_threshold": ticks.sets_threshold.tolist(),
        "failed_at": ticks.failed_at.tolist(),
    }
    table = pa.table(columns).replace_schema_metadata(
        {"recap.labels": json.dumps(about), "recap.episodes": json.dumps(episodes)}
    )
    replace_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def load_indicator(path: Path) -> dict[str, np.ndarray]:
    """Read back episode → (T,) bool from a label sidecar."""
    table = pq.read_table(path, columns=["episode", "indicator"])
    names, starts = _episodes(table["episode"])
    parts = np.split(table["indicator"].to_numpy(), starts[1:-1])
    return dict(zip(names, parts, strict=True))


def load_ticks(path: Path) -> tuple[Ticks, dict[str, LabelRule], dict[str, Any]]:
    """What labels were made from, their rules by task, and all that is said about them.

    Raises ValueError where the file is no sidecar, or one of before it kept that.
    """
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        about, of = json.loads(metadata[b"recap.labels"]), json.loads(metadata[b"recap.episodes"])
        norms = {task: Normalizer(**norm) for task, norm in about["normalizers"].items()}
        rules = {task: LabelRule(**rule) for task, rule in about["rules"].items()}
        names, starts = _episodes(table["episode"])
        failed = None
        if "failure" in table.column_names:
            failed = np.stack([table["failure"].to_numpy(), table["failure_value"].to_numpy()], 1)
        ticks = Ticks(
            tuple(names), tuple(of["task"]), tuple(of["source"]), np.array(of["success"], bool),
            np.array(of["sets_threshold"], bool), np.array(of["failed_at"], np.int64), starts,
            table["value"].to_numpy(), table["correction"].to_numpy(), failed, norms,
        )  # fmt: skip
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: wanted the labels of a run, found none") from None
    except (pa.ArrowException, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not labels that can be made anew ({type(error).__name__}: {error}): label from the "
            "run's values once more"
        ) from error
    if len(ticks.task) != len(names):
        raise ValueError(f"{path}: {len(names)} episodes of which {len(ticks.task)} are described")
    return ticks, rules, about


def relabel(
    path: Path,
    out: Path,
    change: Callable[[str, LabelRule], LabelRule],
    renorm: Callable[[Normalizer], Normalizer] = lambda norm: norm,
    store: Store | None = None,
    tag: str = "",
    task: str = "",
    progress: Callable[[float, str], None] | None = None,
) -> tuple[Labels, Labels]:
    """Labels of sidecar `path` by a changed rule, into sidecar `out` → (before, after). No model is run.

    change: a task's name and rule → its new rule; renorm: of each task's normaliser. task: refused unless
    the labels are of it. store: takes outcomes and marks of failure as people
    judge them now, without those discarded since, and gets the labels of each episode under `tag`.
    Raises what `label_ticks` and `load_ticks` do.
    """
    ticks, rules, about = load_ticks(path)
    if task and task not in rules:
        raise ValueError(f"{path}: holds no labels of task {task!r}, found {', '.join(sorted(rules))}")
    before = label_ticks(ticks, rules)
    if store is not None:
        ticks = as_judged(ticks, store)
    ticks = ticks.under({name: renorm(norm) for name, norm in ticks.norms.items()})
    after = label_ticks(ticks, {name: change(name, rule) for name, rule in rules.items()})
    made_here = ("rule", "threshold", "whole_threshold", "rules", "thresholds", "normalizers")
    lineage = {k: v for k, v in about.items() if k not in made_here} | {"relabelled_from": str(path)}
    save_labels(after, out, lineage)
    if store is not None:
        save_to_store(after, store, tag, {"labels": str(out)}, progress)
    return before, after


def save_to_store(
    labels: Labels,
    store: Store,
    tag: str,
    lineage: Mapping[str, Any],
    progress: Callable[[float, str], None] | None = None,
) -> None:
    """Give each episode its labels under `tag`, for the loader, exports and whoever looks."""
    parts = labels.by_episode()
    for index, (name, columns) in enumerate(parts.items()):
        task = labels.ticks.task[index]
        threshold = _plain(labels.thresholds[task].advantage)
        about = {"rule": asdict(labels.rules[task]), "threshold": threshold, **lineage}
        store.save_labels(tag, name, columns, about)
        if progress:
            progress((index + 1) / len(parts), f"{index + 1}/{len(parts)} episodes labelled")


def as_judged(ticks: Ticks, store: Store) -> Ticks:
    """With the outcomes and marks of failure that people have given since, and without what they discarded.

    Raises ValueError where an episode is not in the store, or nothing is left.
    """
    entries, said = {e.id: e for e in store.index()[0]}, store.judgements()
    success, failed_at = ticks.success.copy(), ticks.failed_at.copy()
    kept = np.ones(len(success), bool)
    for index, name in enumerate(ticks.episode):
        if name not in entries:
            raise ValueError(f"{store.folder}: no episode {name!r}, which the labels are of: give its store")
        if (judgement := said.get(name)) is None:
            continue
        outcome = judgement.outcome_for(json.loads(entries[name].rubric)) or entries[name].outcome
        kept[index], success[index] = outcome != "discarded", outcome == "success"
        failed_at[index] = -1 if judgement.failed_tick is None else judgement.failed_tick
    if not kept.any():
        raise ValueError(f"{store.folder}: all {len(kept)} labelled episodes were discarded since")
    return replace(ticks, success=success, failed_at=failed_at).part(kept)[0]


def _episodes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Names in order, and where each begins → (E + 1,). A sidecar holds its episodes one after the other."""
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    number = encoded.indices.to_numpy()
    changes = np.flatnonzero(np.diff(number)) + 1
    starts = np.concatenate([[0], changes, [len(number)]]) if len(number) else np.zeros(1, np.int64)
    return [encoded.dictionary[int(number[s])].as_py() for s in starts[:-1]], starts


def _plain(number: float) -> float | None:
    return number if np.isfinite(number) else None
