"""`./recap label`: what people say of recorded attempts, kept beside the episodes; never in the recording."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from recap.output import Json, Ray, Workers, bar, tell

if TYPE_CHECKING:
    from recap_learner.data.episodes import Episode
    from recap_learner.data.judgements import Judgement
    from recap_learner.data.store import Store


class _PathsFirst(TyperGroup):
    """`label PATH… --outcome X` is `label bags PATH… --outcome X`; `label PATH` is `label list PATH`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = [*args]
        if words and words[0] not in self.commands and words[0] not in ("--help", "-h"):
            several = any(word.split("=")[0] in ("--outcome", "--reason") for word in words)
            words.insert(0, "bags" if several else "list")
        return super().parse_args(ctx, words)


label_app = typer.Typer(
    cls=_PathsFirst,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Say how attempts went, and see what was said: outcome, quality, stages, the moment of failure.

    What is said of a store is added to `judgements.jsonl` in it, with who and when; the newest word
    counts, `undo` takes it back, nothing is ever taken out, and training reads it. All take --json.

    Examples: `./recap label episodes` lists the episodes;
    `./recap label set episodes 20260101T120000_0001 failure --reason "peg dropped"`;
    `./recap label judge episodes 20260101T120000_0001 inserted=yes released=no`;
    `./recap label mark episodes 20260101T120000_0001 failed 7.4`;
    `./recap label undo episodes 20260101T120000_0001`.
    Bags that have no outcome yet: `./recap label bags/20260101T120000_0001 --outcome success`""",
)

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of episodes.")]
Name = Annotated[str, typer.Argument(metavar="EPISODE", help="Its name, or a beginning that no other has.")]
Who = Annotated[str, typer.Option(help="Who says so; else the name you are logged in by.")]


@label_app.command("list")
def list_(
    store: StoreFolder,
    outcome: Annotated[str, typer.Option("--only", help="Only those with this outcome.")] = "",
    as_json: Json = False,
) -> None:
    """List episodes with their outcomes and what people said.

    Example: `./recap label list episodes --only unknown`
    """
    from recap_learner.data.judgements import Judgement

    opened = _open(store)
    entries, problems = opened.index()
    said = opened.judgements()
    rows: list[dict[str, Any]] = []
    for entry in entries:
        judgement = said.get(entry.id, Judgement())
        person = judgement.outcome_for(json.loads(entry.rubric))
        rows.append(
            {
                "episode": entry.id,
                "outcome": person or entry.outcome,
                "by": list(judgement.by),
                "recorded": entry.outcome,
                "source": entry.source,
                "ticks": entry.ticks,
                "corrected": entry.corrected,
            }
        )
    rows = [row for row in rows if outcome in ("", row["outcome"])]
    if as_json:
        print(json.dumps({"ok": not problems, "episodes": rows, "problems": problems}))
    else:
        width = max((len(row["episode"]) for row in rows), default=7)
        for row in rows:
            who = f"  by {', '.join(row['by'])}" if row["by"] else ""
            corrected = f"  {100 * row['corrected'] / max(1, row['ticks']):.0f} % corrected"
            print(
                f"{row['episode']:{width}}  {row['outcome']:9}  {row['source']:13}  {row['ticks']:5} ticks"
                f"{corrected if row['corrected'] else ''}{who}"
            )
        for problem in problems:
            typer.echo(f"recap: {problem}", err=True)


@label_app.command()
def show(store: StoreFolder, episode: Name, as_json: Json = False) -> None:
    """Show one episode: outcome, the rubric's questions and answers, marks, and the log of who said what.

    Example: `./recap label show episodes 20260101T120000_0001`
    """
    _, loaded, judgement = _find(store, episode)
    rubric = loaded.info.task.rubric
    result = {
        "episode": loaded.info.id,
        "outcome": judgement.outcome_for(rubric) or loaded.info.outcome,
        "reason": judgement.reason or loaded.info.reason,
        "source": loaded.info.source,
        "duration_s": round(loaded.duration_s, 3),
        "criteria": judgement.criteria,
        "stages": [list(mark) for mark in judgement.stages],
        "failed_tick": judgement.failed_tick,
        "log": list(judgement.log),
    }
    if as_json:
        print(json.dumps({"ok": True, **result}))
        return
    step = loaded.info.station.step_s
    print(f"{loaded.info.id}: {result['outcome']}" + (f" ({result['reason']})" if result["reason"] else ""))
    print(f"  {loaded.info.source} of {loaded.info.task.name}, {loaded.duration_s:.2f} s")
    for name, question in (rubric.get("criteria") or {}).items():
        answer = {True: "yes", False: "no", None: "-"}[judgement.criteria.get(name)]
        needed = " (required)" if name in rubric.get("required", rubric["criteria"]) else ""
        print(f"  {name}: {answer}  {question}{needed}")
    for tick, stage in judgement.stages:
        print(f"  {stage} begins at {tick * step:.2f} s")
    if judgement.failed_tick is not None:
        print(f"  failed at {judgement.failed_tick * step:.2f} s")
    for entry in judgement.log:
        what = {k: v for k, v in entry.items() if k not in ("id", "when", "who", "episode", "kind")}
        undone = "  (undone)" if entry["id"] in judgement.undone else ""
        print(f"  {entry['id']:4}  {entry['when']}  {entry['who']}: {entry['kind']} {what}{undone}")


@label_app.command("set")
def set_(
    store: StoreFolder,
    episode: Name,
    outcome: Annotated[str, typer.Argument(help="success, failure or discarded.")],
    reason: Annotated[str, typer.Option(help="Why, for a person to read.")] = "",
    who: Who = "",
    as_json: Json = False,
) -> None:
    """Set an episode's outcome.

    Example: `./recap label set episodes 20260101T120000_0001 failure --reason "peg dropped"`
    """
    from recap_learner.data.judgements import say

    opened, loaded, _ = _find(store, episode)
    say(opened.folder, _who(who), loaded.info.id, "outcome", outcome=outcome, reason=reason)
    tell({"episode": loaded.info.id, "outcome": outcome}, as_json)


@label_app.command()
def judge(
    store: StoreFolder,
    episode: Name,
    answers: Annotated[list[str], typer.Argument(metavar="CRITERION=yes|no...", help="Of the rubric.")],
    who: Who = "",
    as_json: Json = False,
) -> None:
    """Answer the questions of the task's rubric; the answers add up to the outcome.

    Example: `./recap label judge episodes 20260101T120000_0001 inserted=yes released=yes smooth=no`
    """
    from recap.bringup import UsageError
    from recap_learner.data.judgements import say

    opened, loaded, _ = _find(store, episode)
    criteria = loaded.info.task.rubric.get("criteria") or {}
    met = {}
    for answer in answers:
        name, _, value = answer.partition("=")
        if name not in criteria:
            known = ", ".join(criteria) or "none, for its task has no rubric"
            raise UsageError(f"criterion {name!r}: wanted {known}")
        if value not in ("yes", "no"):
            raise UsageError(f"{name}: wanted {name}=yes or {name}=no, found {answer!r}")
        met[name] = value == "yes"
    for name, is_met in met.items():
        say(opened.folder, _who(who), loaded.info.id, "criterion", name=name, met=is_met)
    judgement = opened.judgements()[loaded.info.id]
    outcome = judgement.outcome_for(loaded.info.task.rubric) or "not settled yet"
    tell({"episode": loaded.info.id, "outcome": outcome, "criteria": judgement.criteria}, as_json)


@label_app.command()
def mark(
    store: StoreFolder,
    episode: Name,
    what: Annotated[str, typer.Argument(help="A stage of the task, which begins there, or: failed.")],
    at: Annotated[float, typer.Argument(min=0, help="Seconds from the episode's start.")],
    who: Who = "",
    as_json: Json = False,
) -> None:
    """Mark where a stage begins, or the moment at which the attempt was lost.

    Example: `./recap label mark episodes 20260101T120000_0001 lift 3.2`
    """
    from recap.bringup import UsageError
    from recap_learner.data.judgements import say

    opened, loaded, _ = _find(store, episode)
    stages = loaded.info.task.stages
    if what != "failed" and what not in stages:
        raise UsageError(f"{what!r}: wanted {', '.join(stages)} or failed")
    tick = round(at / loaded.info.station.step_s)
    if tick >= len(loaded):
        raise UsageError(f"{at} s: the episode ends after {loaded.duration_s:.2f} s")
    if what == "failed":
        say(opened.folder, _who(who), loaded.info.id, "failed", tick=tick)
    else:
        say(opened.folder, _who(who), loaded.info.id, "stage", stage=what, tick=tick)
    tell({"episode": loaded.info.id, "mark": what, "tick": tick}, as_json)


@label_app.command()
def undo(store: StoreFolder, episode: Name, who: Who = "", as_json: Json = False) -> None:
    """Take back what was said of an episode last.

    Example: `./recap label undo episodes 20260101T120000_0001`
    """
    from recap_learner.data import judgements

    opened, loaded, _ = _find(store, episode)
    entry = judgements.undo(opened.folder, _who(who), loaded.info.id)
    tell({"episode": loaded.info.id, "undone": entry["kind"], "said_by": entry["who"]}, as_json)


@label_app.command()
def bags(
    bags: Annotated[list[Path], typer.Argument(help="Bags, or folders of bags.")],
    outcome: Annotated[str, typer.Option(help="How the attempts ended: success, failure or discarded.")],
    reason: Annotated[str, typer.Option(help="Why, for a person to read.")] = "",
    workers: Workers = 1,
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Say how recorded attempts ended, in their bags' metadata; what was recorded stays as it is.

    For bags without an outcome, such as those of a recorder that was killed: without one they are not
    converted. `bags` may be left out.

    Example: `./recap label bags/20260101T120000_0001 --outcome failure --reason "peg dropped"`
    """
    from recap.bringup import UsageError
    from recap_learner.data.episodes import OUTCOMES, amend_bags

    if outcome not in OUTCOMES:
        raise UsageError(f"--outcome: wanted {', '.join(OUTCOMES)}, found {outcome!r}")
    said = {"recap.outcome": outcome, "recap.reason": reason or outcome}
    with bar("Bags", as_json) as report:
        done, problems = amend_bags(bags, said, report, workers, ray)
    for problem in problems:
        typer.echo(f"recap: {problem}", err=True)
    result = {"bags": [str(bag) for bag in done], "outcome": outcome}
    tell({**result, "problems": problems} if problems else result, as_json, ok=not problems)
    raise typer.Exit(1 if problems else 0)


def _open(folder: Path) -> Store:
    from recap_learner.data.store import Store

    store = Store(folder)
    if not store.files():
        raise FileNotFoundError(
            f"{folder}: holds no episode (./recap convert makes them of bags; "
            "a bag's own outcome: ./recap label BAG --outcome ...)"
        )
    return store


def _find(folder: Path, name: str) -> tuple[Store, Episode, Judgement]:
    """The store, the episode as converted, and what was said of it."""
    from recap_learner.data.episodes import load_episode
    from recap_learner.data.judgements import Judgement

    store = _open(folder)
    known = [entry.id for entry in store.index()[0]]
    fitting = [name] if name in known else [other for other in known if other.startswith(name)]
    if len(fitting) != 1:
        found = f"{len(fitting)} episodes begin with it" if fitting else "there is none"
        raise FileNotFoundError(f"{folder}: wanted one episode {name!r}, {found}")
    return store, load_episode(store.path(fitting[0])), store.judgements().get(fitting[0], Judgement())


def _who(given: str) -> str:
    return given or getpass.getuser()
