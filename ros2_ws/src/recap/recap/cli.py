"""`./recap <verb>`: the command line. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

from recap.eval_verb import evaluate
from recap.exchange_verbs import export_app, import_app
from recap.iterate_verb import iterate
from recap.label_verb import label_app
from recap.output import Json, Ray, Workers
from recap.output import bar as _bar
from recap.output import console as _console
from recap.output import tell as _tell
from recap.plan_verb import plan
from recap.relabel_verb import relabel
from recap.report_verb import report
from recap.study_verb import study
from recap.up_verb import up

NO_TESTS = 5  # pytest's exit status where none was selected

app = typer.Typer(
    name="recap",
    help="RECAP for ROS 2: robot policies that learn from their own attempts and from corrections.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(label_app, name="label")
app.add_typer(export_app, name="export")
app.add_typer(import_app, name="import")
app.command()(relabel)
app.command()(plan)
app.command()(iterate)
app.command()(study)
app.command(name="eval")(evaluate)
app.command(name="report")(report)
app.command()(up)

Task = Annotated[str, typer.Option(help="Task: a name in config/tasks, or a path to a YAML.")]
Station = Annotated[str, typer.Option(help="Robot cell: a name in config/stations, or a path to a YAML.")]


def _root() -> Path:
    """The checkout: where runs/ and bags/ are and tests/ live."""
    return Path(os.environ.get("RECAP_ROOT") or Path(__file__).resolve().parents[4])


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what was found on this machine, and what is missing.

    Example: `./recap doctor`
    """
    from recap.doctor import as_json as to_json
    from recap.doctor import examine, failed, show

    findings = examine()
    if as_json:
        print(to_json(findings))
    else:
        show(findings, Console())
    raise typer.Exit(1 if failed(findings) else 0)


@app.command()
def test(
    match: Annotated[str, typer.Option("-k", help="Only tests whose names match, as pytest has it.")] = "",
    every: Annotated[bool, typer.Option("--all", help="The slow tests too.")] = False,
    as_json: Json = False,
) -> None:
    """Check the code (ruff, mypy) and run the tests: one a core, then one by one those that mind the time.

    Example: `./recap test`, or `./recap test -k arbiter`
    """
    root, seconds, codes = _root(), {}, {}
    pytest = [sys.executable, "-m", "pytest", "-q", *(["-k", match] if match else [])]
    kind = "" if every else " and not slow"
    side_by_side = ["-n", str(len(os.sched_getaffinity(0))), "--dist", "loadfile"]
    steps = {
        "ruff": [sys.executable, "-m", "ruff", "check", "."],
        "mypy": [sys.executable, "-m", "mypy"],
        "pytest, side by side": [*pytest, *side_by_side, "-m", f"not alone{kind}"],
        "pytest, one by one": [*pytest, "-m", f"alone{kind}"],
    }
    for name, command in steps.items():
        begin = time.monotonic()
        print(f"== {name}", flush=True, file=sys.stderr if as_json else sys.stdout)
        output = sys.stderr if as_json else None
        codes[name] = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, stdout=output).returncode
        seconds[name] = round(time.monotonic() - begin, 1)
    tests = [name for name in steps if name.startswith("pytest")]
    if any(codes[name] == 0 for name in tests):  # of a -k that only one of the two has tests for
        codes |= {name: 0 for name in tests if codes[name] == NO_TESTS}
    wrong = [name for name, code in codes.items() if code != 0]
    if as_json:
        print(json.dumps({"ok": not wrong, "failed": wrong, "seconds": seconds}))
    elif wrong:
        print(f"recap test: failed: {'; '.join(wrong)}", file=sys.stderr)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def operate(
    namespace: Annotated[str, typer.Option(help="Namespace of the cell.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Print how the cell stands, once.")] = False,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a cell to be heard.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Watch a cell in this terminal, take over, and say how attempts end. q or Ctrl-C ends the view alone.

    space takes over and hands back; s success, f failure, d discard; n next attempt, u undo; x stop,
    r resume; e emergency stop. The person's motions come from a leader arm or another teleop source.

    Example: `./recap operate`, or `./recap operate --once --json` for a script
    """
    words = ["--namespace", namespace, "--wait", f"{wait:g}"]
    words += ["--once"] * once + ["--json"] * as_json
    # In place of this process: the terminal and its signals are the view's alone.
    os.execv(sys.executable, [sys.executable, "-m", "recap.nodes.operate_node", *words])


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on in it.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Every step, too small to learn anything.")] = False,
    as_json: Json = False,
) -> None:
    """The whole of RECAP once round in the simulated cell, to a report with pictures.

    Example: `./recap demo`
    """
    from recap.demo import QUICK, DemoConfig, run_demo, verdict_lines

    console = _console(as_json)
    summary = run_demo(run, QUICK if quick else DemoConfig(), console)
    for line in verdict_lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {escape(str(run / 'report.html'))}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"ok": True, "report": str(run / "report.html"), "summary": summary}))


@app.command()
def collect(
    bags: Annotated[Path, typer.Option(help="Folder for the bags.")] = Path("bags"),
    attempts: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Start state of the first attempt.")] = 0,
    style: Annotated[
        str, typer.Option(help="How the expert moves: fast, moderate, slow, sloppy or failing.")
    ] = "fast",
    station: Station = "aloha",
    task: Task = "handover_insert",
    as_json: Json = False,
) -> None:
    """Record demonstrations of the scripted expert in the simulated cell, faster than real time.

    Example: `./recap collect --attempts 20 --style sloppy --bags bags`
    """
    from recap.bringup import UsageError
    from recap.rollout import Rollouts, run_attempts, summarize
    from recap_station.sim.expert import STYLES

    if style not in STYLES:
        raise UsageError(f"--style: wanted {', '.join(STYLES)}, found {style!r}")
    what = Rollouts(station, task, styles={style: 1.0}, bags=bags, source="demonstration")
    with _bar("Demonstrations", as_json) as report:
        found = run_attempts(what, range(seed, seed + attempts), progress=report)
    _tell({"bags": [attempt.bag for attempt in found], **summarize(found)}, as_json)


@app.command()
def convert(
    bags: Annotated[list[Path], typer.Argument(help="Bags (folders or single files), or folders of bags.")],
    store: Annotated[Path, typer.Option(help="Folder for the episodes.")] = Path("episodes"),
    station: Annotated[
        str, typer.Option(help="Cell that bags of other recorders are of: a name, or a path to a YAML.")
    ] = "",
    task: Annotated[str, typer.Option(help="Their task, with --station: a name, or a path to a YAML.")] = "",
    workers: Workers = 1,
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Make episodes of bags: one row per 50 Hz tick, who commanded, which image.

    Bags are not changed. One that cannot be used is named with the reason; the others are converted. A
    damaged one is converted as far as it goes, and says what it lost. MCAP and sqlite3, of any recorder: with
    --station, whose `streams:` say which topics are meant. Bags and store may be at s3:// (docs/bags.md).

    Example: `./recap convert bags --store episodes`, or `./recap convert log.mcap --station my_cell.yaml`,
    or `./recap convert s3://lab/bags --store s3://lab/episodes --ray auto`
    """
    from recap.bringup import UsageError
    from recap_learner.data.episodes import OUTCOMES, convert_bags, load_cell, read_info

    if task and not station:
        raise UsageError("--task: wanted --station too")
    cell = load_cell(station, task) if station else None
    with _bar("Episodes", as_json) as report:
        files, problems = convert_bags(bags, store, report, cell, workers, unknown=True, ray=ray)
    for problem in problems:
        print(f"recap: {problem}", file=sys.stderr)
    damaged, unjudged = {}, []
    for file in files:
        info = read_info(file)
        if info.damage:
            damaged[str(file)] = info.damage
            print(f"recap: {file}: {info.damage}", file=sys.stderr)
        if info.outcome not in OUTCOMES:
            unjudged.append(str(file))
            if info.outcome != "unknown":
                wanted = f"outcome {info.outcome!r}, wanted {', '.join(OUTCOMES)}"
                print(f"recap: {file}: {wanted}", file=sys.stderr)
    if unjudged:
        count = len(unjudged)
        print(f"recap: {count} attempts have no outcome yet; ./recap label gives one", file=sys.stderr)
    told = {"damaged": damaged, "without_outcome": unjudged, "problems": problems}
    _tell({"episodes": [str(file) for file in files], **told}, as_json, ok=not problems)
    raise typer.Exit(1 if problems else 0)


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of episodes.")],
    html: Annotated[Path | None, typer.Option(help="The page; else inspection.html in the store.")] = None,
    fail_on: Annotated[
        str, typer.Option(metavar="KIND[,KIND]", help="Exit with 1 if one of these is found; or: any.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Look for what is wrong with recorded episodes: as text, and as a page with plots.

    Kinds: unlabelled, damage, gap, rate, stall, frozen, black, jump, limit, skew, duplicate, unreadable.

    Example: `./recap inspect episodes --fail-on black,frozen,duplicate`
    """
    from recap import store_verbs
    from recap_station import storage

    store = storage.path(store)
    with _bar("Episodes", as_json) as report:
        code = store_verbs.inspect(store, html or store / "inspection.html", fail_on, as_json, report)
    raise typer.Exit(code)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Benchmark; none: they are listed.")] = "",
    as_json: Json = False,
) -> None:
    """Measure one of the claims about speed and safety; its last line is JSON. Without a name, list them.

    What follows the name goes to the benchmark: `--minutes`, `--count` or `--seconds` shorten it.

    Example: `./recap bench takeover --count 50`
    """
    from recap.bench import find, run

    found = find(_root())
    if name:
        raise typer.Exit(run(found, name, context.args, as_json))
    if as_json:
        print(json.dumps({"ok": True, "benchmarks": {one.name: one.about for one in found}}))
        return
    for one in found:
        print(f"{one.name}\n    {one.about}")


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed with one line saying why, 2 wrong usage.

    With --json that line is on standard output too, as the last one: {"ok": false, "error": "..."}.
    """
    from recap.bringup import UsageError

    words = sys.argv[1:] if argv is None else argv
    code, line = 1, ""
    try:
        code = app(words, prog_name="recap", standalone_mode=False) or 0
        line = "interrupted; the same command goes on where a run was stopped" if code == 130 else ""
    except UsageError as error:
        code, line = 2, _line(error)
    except TyperException as error:
        code, line = 2, _line(error)
        if line and (context := getattr(error, "ctx", None)):
            line += f" (see {context.command_path} --help)"
    except Exception as error:
        if os.environ.get("RECAP_DEBUG"):
            traceback.print_exc()
        expected = isinstance(error, (ValueError, OSError, RuntimeError, FloatingPointError))
        kind = "" if expected else f"{type(error).__name__}: "
        hint = "" if expected or os.environ.get("RECAP_DEBUG") else " (RECAP_DEBUG=1 shows where)"
        line = f"{kind}{_line(error)}{hint}"
    if line:
        print(f"recap: {line}", file=sys.stderr)
        if "--json" in words:
            print(json.dumps({"ok": False, "error": line}))
    sys.exit(code)


def _line(error: Exception) -> str:
    """An error's text on one line: its name where it has none; nothing where help was shown instead."""
    if isinstance(error, TyperException):
        return " ".join(error.format_message().split()) if hasattr(error, "format_message") else ""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
