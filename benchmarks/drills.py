"""Drills: one part of the cell fails at a random moment, time and again. The last line is JSON.

    python benchmarks/drills.py [--count 20] [--only killed] [--results drills.jsonl] [--out docs/drills.md]

Writes the table, or prints it. With `--results` every attempt's result goes to that file at once, and those
that it holds already are not run again: twenty times each may take several sittings. What fails and what is
expected stands in tests/system/drill.py, what misbehaves in tests/system/faults.py. Every time is an
attempt of its own over real ROS 2 in the simulated cell, with the arbiter's own time-outs: about six
seconds each. Exit 0 when every attempt went as expected, within the time stated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from policy_rate import untrained_policy

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/system"))
from drill import COUNTED, DRILLS, RIGS, Drill, Result, Rig, run_drill
from graph import end_on_signals

from recap_teleop.arbiter import ArbiterSettings

SETTINGS = ArbiterSettings()
HEARD_S = 0.005  # from the arbiter's tick to whoever hears of it
HEAD = """# Drills

Written by `{command}` on {cpus} cores ({load:.1f} processes ran on average before it began). Each time one part of the cell fails at a random moment of an attempt, over real ROS 2 in the simulated cell, with the arbiter's default time-outs, and is mended two seconds later (three for cameras).

- **within**: time-out and the tick that notices it; **measured**: from the fault to the first command that holds, median and largest [ms].
- **step**: largest step between two commands in a row, of what the joint's velocity limit allows in a tick; where the arbiter was away for a second, from the last command or from where the arms stood, whichever is less. All commands were finite and within the joints' limits, and so were the arms, unless a line below the table says otherwise.
- **bag**: whole: closed, and holds every command that was heard; recovered: the killed recorder's part opens and holds every command up to a second before, its successor's goes on; lost, and counted: commands are missing and the bag says how many (`recap.dropped`).
- **recovered**: how often all went on as before the fault when the part was back; the median time that it took, restart included [s].

| drill | expected | within | median | largest | step | bag | recovered | after | n |
|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def row(name: str, what: Drill, results: list[Result]) -> str:
    reached = [1e3 * r.reached_s for r in results if r.reached_s is not None]
    recovered = [r.recovered_s for r in results if r.recovered_s is not None]
    bags = sorted({_bag(r) for r in results})
    cells = [
        name,
        what.expected,
        f"{1e3 * what.within_s(SETTINGS):.0f} ms" if what.then == "hold" else "",
        f"{np.median(reached):.0f}" if reached else "",
        f"{max(reached):.0f}" if reached else "",
        f"{max(r.step_over_limit for r in results):.3f}",
        "; ".join(bags),
        f"{len(recovered)} of {len(results)}",
        f"{np.median(recovered):.1f}" if recovered else "",
        str(len(results)),
    ]
    return f"| {' | '.join(cells)} |\n"


def _bag(result: Result) -> str:
    if result.lost:
        return "lost, and counted" if COUNTED in result.bag else "lost"
    return result.bag or "none"


def missed(what: Drill, result: Result) -> list[str]:
    """What is only to be had on a machine that does nothing else, in words: in time, and nothing lost."""
    words = []
    within_s = what.within_s(SETTINGS) + HEARD_S
    if what.then == "hold" and result.reached_s is not None and result.reached_s > within_s:
        words.append("HOLD later than stated")
    if result.lost:
        words.append(f"the bag lacks commands that were heard ({result.bag})")
    return words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="times each")
    parser.add_argument("--only", default="", help="drills whose name holds this")
    parser.add_argument("--out", type=Path, help="file that gets the table; none: it is printed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--results", type=Path, help="file of results: gets them, and has those of before")
    given = parser.parse_args()
    chosen = {name: what for name, what in DRILLS.items() if given.only in name}
    if not chosen:
        parser.error(f"--only {given.only!r}: no such drill (there are: {', '.join(DRILLS)})")
    end_on_signals()
    load = os.getloadavg()[0]
    found = known(given.results, given.seed, chosen, given.count)
    for kind in RIGS:
        drills = {n: what for n, what in chosen.items() if what.rig == kind and len(found[n]) < given.count}
        if not drills:
            continue
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"clock": kind == "clock"}
            if kind == "real policy":
                options["checkpoint"] = untrained_policy(Path(folder) / "policy")
            with Rig(Path(folder), SETTINGS, **options) as rig, ExitStack() as stack:
                log = stack.enter_context(given.results.open("a")) if given.results else None

                def keep(name: str, result: Result, log: Any = log) -> None:
                    if log:
                        line = {"drill": name, "seed": given.seed, "result": asdict(result)}
                        print(json.dumps(line), file=log, flush=True)

                for name, what in drills.items():
                    repeat(rig, name, what, found[name], given.count, given.seed, keep)
    table, wrong = report(found, chosen, load)
    if given.out:
        given.out.write_text(table)
    else:
        print(table)
    holds = [1e3 * r.reached_s for r in found.get("policy killed", []) if r.reached_s is not None]
    result = {
        "drills": len(found),
        "attempts": sum(map(len, found.values())),
        "not_as_expected": len(wrong),
        "max_step_over_limit": round(max(r.step_over_limit for rs in found.values() for r in rs), 6),
        "policy_killed_max_ms": round(max(holds), 1) if holds else None,
        "recovered": sum(r.recovered_s is not None for rs in found.values() for r in rs),
        "count": given.count,
        "held": not wrong,
    }
    print(json.dumps(result))
    return 0 if not wrong else 1


def known(results: Path | None, seed: int, chosen: dict[str, Drill], count: int) -> dict[str, list[Result]]:
    """What a file holds already of these drills, in their order."""
    found: dict[str, list[Result]] = {name: [] for name in chosen}
    lines = results.read_text().splitlines() if results and results.exists() else ()
    for line in lines:
        said = json.loads(line)
        if said["drill"] in found and said["seed"] == seed:
            found[said["drill"]].append(Result(**said["result"]))
    return {name: results[:count] for name, results in found.items()}


def repeat(
    rig: Rig, name: str, what: Drill, results: list[Result], count: int, seed: int,
    keep: Callable[[str, Result], None],
) -> None:  # fmt: skip
    """Until there are `count` results."""
    for index in range(len(results), count):
        rng = np.random.default_rng([seed, list(DRILLS).index(name), index])
        result = run_drill(rig, what, rng, during_s=3.0 if what.rig == "real policy" else 2.0)
        results.append(result)
        keep(name, result)
        for bag in rig.bags.iterdir():  # it was looked at
            rig.forget(bag)
    wrong = sum(bool(r.unsafe or r.problems or missed(what, r)) for r in results)
    print(f"{name}: {len(results) - wrong} of {len(results)} as expected", file=sys.stderr, flush=True)


def report(found: dict[str, list[Result]], chosen: dict[str, Drill], load: float) -> tuple[str, list[str]]:
    """The page, and what did not go as expected, in words."""
    command = " ".join(["python benchmarks/drills.py", *sys.argv[1:]])
    table = HEAD.format(command=command, cpus=os.cpu_count(), load=load)
    wrong = []
    for name, results in found.items():
        table += row(name, chosen[name], results)
        for result in results:
            for text in [*result.unsafe, *result.problems, *missed(chosen[name], result)]:
                wrong.append(f"{name}: {text}")
    if wrong:
        table += "\nNot as expected:\n\n"
        table += "".join(f"- {text} ({wrong.count(text)} times)\n" for text in dict.fromkeys(wrong))
    return table, wrong


if __name__ == "__main__":
    sys.exit(main())
