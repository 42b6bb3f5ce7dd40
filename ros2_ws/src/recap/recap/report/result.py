"""First part of the report: is the second policy better than the first?"""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from typing import Any

from recap.report import figures, page
from recap.report.run import Run

# Reasons that attempts end for, in words.
REASONS = {"failure": "beyond recovery", "time limit": "out of time"}


def head(run: Run) -> str:
    """Title, verdict and what this is about."""
    config = run.summary.get("config") or {}
    about = [f"run {run.folder.resolve().name}"]
    about += [f"{name} {config[name]}" for name in ("task", "station", "seed") if name in config]
    if version := run.summary.get("code_version"):
        about.append(f"code {version}")
    about.append(time.strftime("%Y-%m-%d %H:%M"))
    verdict = (run.summary.get("comparison") or {}).get("verdict")
    if not verdict:
        verdict = "This run is not finished: what follows is what it has so far."
    return (
        f'<h1>RECAP, once round</h1><div class="verdict">{escape(verdict)}</div>'
        f'<p class="muted">{escape(" · ".join(about))}</p>'
        "<p>A policy learned from demonstrations (<b>SFT</b>) attempted the task while a person, here a "
        "scripted one, corrected it. A <b>value function</b> learned from all attempts how far from success "
        "each moment is. Moments after which things went better than it had expected were labelled "
        "<i>positive</i>, and a second policy (<b>RECAP</b>) was trained to act as in those. Below: whether "
        "that helped, and what lies behind it.</p>"
    )


def show(run: Run) -> str:
    policies, compare = run.need("policies"), run.need("comparison")
    numbers = []
    for name in ("sft", "recap"):
        p, title = policies[name], figures.POLICY_NAME[name]
        low_high = page.interval(p["success_ci95"], 100)
        beside = f"95 % interval {low_high} %"
        numbers.append((f"{title}: success", page.percent(p["success"]), beside, name == "recap"))
        beside = f"95 % interval {page.interval(p['throughput_ci95'])}"
        speed = f"{p['throughput_per_hour']:.0f} an hour"
        numbers.append((f"{title}: throughput", speed, beside, name == "recap"))
    low, high = (100 * v for v in compare["success_difference_ci95"])
    changes = [
        f"Over {policies['sft']['attempts']} start states, success changed by "
        f"<b>{100 * compare['success_difference']:+.1f} points</b> (95 % interval {low:+.1f} to {high:+.1f}, "
        "paired by start state)"
    ]
    if compare.get("throughput_ratio") is not None:
        changes.append(f"throughput is <b>{compare['throughput_ratio']:.2f} times</b> that of SFT")
    if compare.get("failure_ratio") is not None:
        changes.append(f"failures are <b>{compare['failure_ratio']:.2f} times</b> as many")
    changed = "; ".join(changes).replace("-", "−")
    return (
        page.tiles(numbers)
        + f"<p>{changed}.</p>"
        + page.pair(
            _rates(policies) + page.part(lambda: _durations(run), "How long the attempts took"),
            page.part(lambda: _seed_by_seed(run), "The same start state, both policies")
            + page.part(lambda: _reasons(run), "Why attempts failed"),
        )
    )


def _rates(policies: dict[str, Any]) -> str:
    return page.picture(
        figures.rates({name: policies[name] for name in ("sft", "recap")}),
        "Bars of success and throughput with error bars",
        "Both policies on the same start states, which no training has seen. Whiskers: 95 % interval. "
        "Throughput is successes per hour of attempting: it rewards speed and success together.",
        "Success and throughput",
    )


def _evaluations(run: Run) -> dict[str, list[dict[str, Any]]]:
    return {"sft": run.attempts("iteration_00"), "recap": run.attempts("iteration_01")}


def _seed_by_seed(run: Run) -> str:
    won = {name: {r["seed"]: r["success"] for r in rows} for name, rows in _evaluations(run).items()}
    shared = [seed for seed in won["sft"] if seed in won["recap"]]
    counts = Counter((won["sft"][seed], won["recap"][seed]) for seed in shared)
    rows = [
        ("both succeeded", counts[True, True], figures.SKY),
        ("only RECAP", counts[False, True], figures.BLUE),
        ("only SFT", counts[True, False], figures.ORANGE),
        ("neither", counts[False, False], figures.GREY),
    ]
    return page.picture(
        figures.bars([(name, n, color, str(n)) for name, n, color in rows], "start states"),
        "Bars of start states by which policy succeeded",
        f"Of {len(shared)} start states, RECAP alone won {counts[False, True]} and SFT alone "
        f"{counts[True, False]}: only these tell the policies apart.",
        "The same start state, both policies",
    )


def _durations(run: Run) -> str:
    return page.picture(
        figures.durations(_evaluations(run)),
        "Share of attempts that had succeeded by each time, and all durations",
        "A curve that rises earlier is faster; one that ends higher succeeds more often. "
        "Each dot is a success, each cross a failure.",
        "How long the attempts took",
    )


def _reasons(run: Run) -> str:
    rows = []
    for name, attempts in _evaluations(run).items():
        lost = Counter(r["reason"] for r in attempts if not r["success"])
        for reason in sorted(lost):
            title = f"{figures.POLICY_NAME[name]}: {REASONS.get(reason, reason)}"
            text = f"{lost[reason]} of {len(attempts)}"
            rows.append((title, lost[reason] / len(attempts), figures.POLICY_COLOR[name], text))
    if not rows:
        return "<p>No attempt of either policy failed.</p>"
    return page.picture(
        figures.bars(rows, "share of the policy's attempts", share=True),
        "Bars of reasons for failure",
        "“Beyond recovery” is the simulator's own judgement, for example a part that fell where no arm "
        "reaches it; “out of time” is an attempt that the time limit ended.",
        "Why attempts failed",
    )
