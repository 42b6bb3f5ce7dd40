"""Third and fourth part of the report: value function, advantage and labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from recap.report import figures, page
from recap.report.missing import Missing
from recap.report.run import Run
from recap_learner.data.episodes import Episode
from recap_learner.value.returns import monte_carlo_returns

# Entries of recap_learner.value.gates.ValueReport: (key, question, meaning).
_GATES = (
    ("spread", "Does it tell moments apart?", "standard deviation over ticks; 0 says nothing"),
    ("spearman", "Does it follow what came?", "rank correlation with the return; 1 is perfect, 0 chance"),
    ("spearman_success", "Does it see progress?", "the same within successes"),
    ("outcome_auc", "Does it see failures coming?", "told from successes 1 s before the end; 0.5 is chance"),
    ("fast_auc", "Does it see speed?", "faster half of successes told from the slower; 0.5 is chance"),
    ("correction_auc", "Does it see help?", "corrections told from what they corrected; 0.5 is chance"),
    (
        "fall_auc",
        "Does it see mistakes?",
        "falls at marked moments of failure told from others; 0.5 is chance",
    ),
    ("calibration", "Are its numbers right?", "mean distance from the return that came; 0 is perfect"),
)
_COLORS = {"policy": figures.BLUE, "demonstrations": figures.ORANGE, "corrections": figures.PURPLE}


def show_value(run: Run) -> str:
    intro = page.remark(
        "Every attempt is judged here by a value function that was not trained on it: none of this is memory."
    )
    return (
        intro
        + page.part(lambda: _value_curves(run), "Value over time, held out")
        + page.pair(
            page.part(lambda: _calibration(run), "Predicted against real"),
            page.part(lambda: _gates(run), "Can it be trusted?"),
        )
    )


def _held_out(run: Run) -> list[tuple[Episode, np.ndarray]]:
    values = run.values
    found = [(e, values[e.info.id]) for e in run.rollouts if e.info.id in values]
    if not found:
        raise Missing("No attempt of the policy has a value yet.")
    return found


def _value_curves(run: Run) -> str:
    found = _held_out(run)
    return page.picture(
        figures.values([(v, e.info.success) for e, v in found], found[0][0].info.station.step_s),
        "Value over time of successes and failures",
        f"{page.count(len(found), 'attempt')} of the policy, some of them helped by a person. Above the "
        "dotted line success is expected, below it failure. Where the two colours part, the value function "
        "knows. Medians are drawn while half of the attempts last.",
        "Value over time, held out",
        wide=True,
    )


def _calibration(run: Run) -> str:
    found = _held_out(run)
    true = [monte_carlo_returns(len(e), e.info.success, run.normalizer) for e, _ in found]
    return page.picture(
        figures.calibration(np.concatenate([v for _, v in found]), np.concatenate(true)),
        "Predicted value against the return that came",
        "Ticks with like predictions, and what came of them. On the dotted line, the prediction is right on "
        "average; the band is wide where the outcome is still open.",
        "Predicted against real",
    )


def _gates(run: Run) -> str:
    reports = run.value_reports
    problems = [(name, problem) for name, report in reports.items() for problem in report.get("problems", ())]
    rows = []
    for gate, question, meaning in _GATES:
        if all(report.get(gate) is None for report in reports.values()):
            continue
        cells = []
        for name, report in reports.items():
            failed = any(n == name and f"{gate} is" in problem for n, problem in problems)
            text = page.number(report.get(gate))
            cells.append(f'<span class="bad">{text} ✗</span>' if failed else text)
        rows.append([f"{question}<br><span class=muted>{meaning}</span>", *cells])
    heads = ["value function", *reports]
    shown = "<h3>Can it be trusted?</h3>" + page.table(heads, rows, frozenset(range(1, len(heads))))
    for name, problem in problems:
        shown += page.note(f"Value function {name}: {problem}", "problem")
    if not problems:
        shown += '<p><span class="good">✓</span> It passes every gate that is set for it.</p>'
    return shown


def show_advantage(run: Run) -> str:
    labels, about = run.labels
    threshold, groups = run.threshold(about), _groups(run)
    total = np.concatenate([columns.indicator for columns in labels.values()])
    end = page.remark(
        f"In all, {page.percent(float(total.mean()))} of {len(total):,} ticks in "
        f"{page.count(len(labels), 'attempt')} are labelled positive."
    )
    figures_ = page.pair(_histogram(run, groups, threshold), _shares(groups, threshold))
    return _rule(run, about) + figures_ + end


def _rule(run: Run, about: dict[str, Any]) -> str:
    rule = (about.get("rules") or {}).get(run.episodes[0].info.task.name) or about.get("rule") or {}
    ahead = rule.get("lookahead", 0) * run.episodes[0].info.station.step_s
    span = f"the next {ahead:g} s" if ahead else "the whole rest of the attempt"
    share = page.percent(rule.get("positive_fraction"))
    return page.remark(
        f"The advantage of a moment is how much better {span} went than the value function had expected. "
        f"What lies above the threshold is labelled positive; the threshold is set so that {share} of the "
        "ticks that the policy commanded itself are."
    )


def _histogram(run: Run, groups: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> str:
    merged: dict[str, np.ndarray] = {}
    for name, (advantage, _) in groups.items():
        kind = name.split(":")[0]
        merged[kind] = np.concatenate([merged.get(kind, advantage[:0]), advantage])
    seconds = f"The line is the threshold, {threshold * run.value_seconds:+.2f} s.".replace("-", "−")
    if not np.isfinite(threshold):
        seconds = "No tick is above the threshold."
    drawn = {kind: advantage for kind, advantage in merged.items() if len(advantage)}
    return page.picture(
        figures.advantages(drawn, threshold, run.value_seconds, _COLORS),
        "Histogram of advantages with the threshold",
        "Above zero, things went better than expected; far left is a mistake. "
        f"{seconds} To fail costs as much as a whole attempt's time. The outermost bars hold all that "
        "lies beyond.",
        "Advantage of every tick",
    )


def _shares(groups: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> str:
    bars = []
    for name, (_, indicator) in groups.items():
        if len(indicator):
            share = float(indicator.mean())
            bars.append((name, share, _COLORS[name.split(":")[0]], page.percent(share)))
    caption = "Share of ticks labelled positive."
    if len(forced := groups["corrections"][0]):
        alone = float((forced > threshold).mean())
        bars.append(("corrections, unforced", alone, figures.PURPLE, page.percent(alone)))
        caption += (
            f" Corrections always are. By their advantage alone, {page.percent(1 - alone)} of them would "
            "have been negative (hatched): a correction starts where things have already gone wrong."
        )
    return page.picture(
        figures.bars(bars, "labelled positive", share=True, hatched=frozenset({"corrections, unforced"})),
        "Share of ticks labelled positive by source",
        caption,
        "What was labelled positive",
    )


def _groups(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(advantages, indicators) of the ticks of each kind, in the order they are shown in."""
    labels, _ = run.labels
    kinds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        "policy: attempt succeeded": [],
        "policy: attempt failed": [],
        "demonstrations": [],
        "corrections": [],
    }
    for episode in run.episodes:
        if (found := labels.get(episode.info.id)) is None:
            continue
        if episode.info.source == "demonstration":
            kinds["demonstrations"].append((found.advantage, found.indicator))
            continue
        person, policy = found.forced, ~found.forced
        kinds["corrections"].append((found.advantage[person], found.indicator[person]))
        outcome = "succeeded" if episode.info.success else "failed"
        kinds[f"policy: attempt {outcome}"].append((found.advantage[policy], found.indicator[policy]))
    none = (np.empty(0, np.float32), np.empty(0, bool))
    return {
        name: (
            np.concatenate([a for a, _ in found or [none]]),
            np.concatenate([i for _, i in found or [none]]),
        )
        for name, found in kinds.items()
    }
