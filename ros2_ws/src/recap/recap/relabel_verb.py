"""`./recap relabel`: labels by another rule, from the values that were kept with the old ones."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recap.output import Json, bar, tell

if TYPE_CHECKING:
    from recap_learner.value.labels import LabelRule
    from recap_learner.value.returns import Normalizer


def relabel(
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="A run's iteration, or its labels.parquet.")
    ],
    tag: Annotated[str, typer.Option(help="Name of the new labels: labels.TAG.parquet beside the old.")],
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder of episodes that get the labels too, under the tag; outcomes and marks of failure "
            "are taken from what people say of them now."
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="Change the rule of this task alone.")] = "",
    fraction: Annotated[
        float | None, typer.Option(help="Share of the judged frames to be positive (paper: 0.3, 0.4, 0.1).")
    ] = None,
    lookahead: Annotated[
        int | None, typer.Option(min=0, help="N of the advantage in ticks; 0: to the end of the episode.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The advantage above which frames are positive, in place of a share.")
    ] = None,
    whole_quantile: Annotated[
        float | None,
        typer.Option(help="Frames must lie above this quantile of the whole-episode advantage too; 0: no."),
    ] = None,
    end: Annotated[str | None, typer.Option(help="Lookaheads past the end: sum or bootstrap.")] = None,
    force: Annotated[
        str | None, typer.Option(help="Positive whatever the advantage: corrections, all or none.")
    ] = None,
    failure_point: Annotated[
        str | None, typer.Option(help="Failures condemn what follows this: marked, estimated, or none.")
    ] = None,
    speed: Annotated[
        str | None, typer.Option(help="What a lookahead asks the value for: expected or given_success.")
    ] = None,
    fail_ratio: Annotated[
        float | None, typer.Option(min=0, help="C_fail as a multiple of the task's maximum length.")
    ] = None,
    fail_rule: Annotated[
        str | None, typer.Option(help="How C_fail is normalised: ordered or clipped.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Label again by another rule; what is not given stays as it was. No model is run.

    The old labels stay. Give a store and the tag is what the loader trains on (LoaderConfig.tag).

    Example: `./recap relabel runs/demo/iteration_01 --tag strict --fraction 0.1 --store runs/demo/episodes`
    """
    from recap.bringup import UsageError
    from recap_learner.data.store import Store
    from recap_learner.value.labels import FILE
    from recap_learner.value.labels import relabel as make

    if not tag or "/" in tag or tag.startswith("."):
        raise UsageError(f"--tag: wanted a name without '/' that starts with no '.', found {tag!r}")
    if fraction is not None and threshold is not None:
        raise UsageError("--fraction and --threshold: wanted one of them")
    path = labels / FILE if labels.is_dir() else labels
    out = path.with_name(f"labels.{tag}.parquet")
    if store is not None and not store.is_dir():
        raise FileNotFoundError(f"{store}: wanted a folder of episodes, found none")
    given: dict[str, Any] = {
        "lookahead": lookahead,
        "positive_fraction": fraction,
        "threshold": threshold,
        "end": end,
        "force": force,
        "failure_point": "" if failure_point == "none" else failure_point,
        "speed": speed,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if whole_quantile is not None:
        changes["whole_episode_quantile"] = whole_quantile or None
    if fraction is not None:
        changes["threshold"] = None

    def change(name: str, rule: LabelRule) -> LabelRule:
        return replace(rule, **changes) if task in ("", name) else rule

    def renorm(norm: Normalizer) -> Normalizer:
        ratio = norm.fail_ratio if fail_ratio is None else fail_ratio
        return replace(norm, fail_ratio=ratio, fail_rule=fail_rule or norm.fail_rule)

    begin = time.perf_counter()
    with bar("Labels", as_json) as report:
        made = make(path, out, change, renorm, Store(store) if store else None, tag, task, report)
    before, after = made
    kept = after.ticks.episode == before.ticks.episode
    changed = (before.flat["indicator"] != after.flat["indicator"]).mean() if kept else None
    summary = after.summary()
    result: dict[str, Any] = {
        "labels": str(out),
        "episodes": len(after.ticks.episode),
        "frames": len(after.ticks.value),
        "positive_before": before.positive_fraction,
        **summary,
        "changed": None if changed is None else float(changed),
        "seconds": round(time.perf_counter() - begin, 3),
    }
    if not as_json:
        shares = result.pop("positive_by_source")
        result |= {f"positive of {source}s": share for source, share in shares.items()}
    tell(result, as_json)
