"""What `./recap eval` prints: numbers with their intervals, and comparisons in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recap_learner.evaluation.evaluation import Evaluation


def tell(found: Sequence[Evaluation], files: Sequence[Path], as_json: bool, said: Sequence[str] = ()) -> None:
    """Print evaluations, and each against the first. said: notes that were shown before."""
    from recap_learner.evaluation.evaluation import compare_all, finite, verdict

    comparisons = compare_all(found)
    if as_json:
        first = found[0].summary() if len(found) == 1 else {}
        print(
            json.dumps(
                finite(
                    {
                        "ok": True,
                        **first,
                        "policies": [_as_json(e, file) for e, file in zip(found, files, strict=True)],
                        "comparisons": [c | {"verdict": verdict(c)} for c in comparisons],
                    }
                )
            )
        )
        return
    for evaluation in found:
        for line in _lines(evaluation):
            print(line)
    for c in comparisons:
        print(_comparison_line(c))
        print(verdict(c))
    for note in dict.fromkeys(note for e in found for note in e.notes if note not in said):
        print(f"note: {note}")
    for file in files:
        print(f"results: {file}")


def _as_json(e: Evaluation, file: Path) -> dict[str, Any]:
    about: dict[str, Any] = {"name": e.name, "checkpoint": e.checkpoint, "identity": e.identity}
    about |= {"settings": dict(e.settings)}
    about |= {"reset_s": e.reset_s, "reset_from": e.reset_from, "count_reset": e.count_reset}
    return about | {"stopping": dict(e.stopping), "notes": list(e.notes), **e.summary(), "file": str(file)}


def _lines(e: Evaluation) -> list[str]:
    """One evaluation, for a person to read."""
    s = e.summary()

    def rate(name: str) -> str:
        low, high = s[f"{name}_ci95"]
        return f"{s[name]:.1%} [{low:.1%}, {high:.1%}]"

    def number(value: str, interval: str, unit: str = "", digits: int = 1) -> str:
        if s[value] is None:
            return "–"
        low, high = s[interval]
        return f"{s[value]:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"

    reset = f"{e.reset_s:.1f} s between attempts, {e.reset_from}, {'' if e.count_reset else 'not '}counted"
    lines = [
        f"{e.name}: {s['attempts']} attempts" + (f" ({e.stopping['why']})" if "why" in e.stopping else ""),
        f"  success         {rate('success')}"
        + (f" ({s['success_interval']})" if e.early else "")
        + (f", without help {rate('unaided_success')}" if s["takeovers"] else ""),
        f"  throughput      {number('throughput_per_hour', 'throughput_ci95', digits=0)} an hour ({reset})",
        f"  time            {number('mean_s', 'mean_s_ci95', ' s')}; "
        f"of a success {number('mean_success_s', 'mean_success_s_ci95', ' s')}",
    ]
    for stage, row in (s["stages"] or {}).items():
        low, high = row["ci95"]
        of = f"{row['passed']} of {row['entered']} that got there"
        lines.append(f"  passed {stage:8} {row['share']:.1%} [{low:.1%}, {high:.1%}]  ({of})")
    for kind in s["failures"]:
        low, high = kind["ci95"]
        where = f" in {kind['stage']}" if kind["stage"] else ""
        lines.append(
            f"  failed          {kind['share']:.1%} [{low:.1%}, {high:.1%}]  {kind['reason']}{where}"
        )
    if s["takeovers"]:
        low, high = s["correction_share_ci95"]
        lines.append(
            f"  corrected       {s['correction_share']:.1%} [{low:.1%}, {high:.1%}] of the time, "
            f"{number('takeovers_per_attempt', 'takeovers_per_attempt_ci95', digits=2)} takeovers an attempt"
        )
    return lines


def _comparison_line(c: dict[str, Any]) -> str:
    low, high = c["success_difference_ci95"]
    text = (
        f"{c['second']} − {c['first']}: success {100 * c['success_difference']:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}], {c['test']} p = {c['p']:.3g}"
    )
    if c["p_holm"] != c["p"]:
        text += f" (Holm: {c['p_holm']:.3g})"
    if c["throughput_ratio"] is not None:
        low, high = c["throughput_ratio_ci95"]
        text += f"; throughput × {c['throughput_ratio']:.2f} [{low:.2f}, {high:.2f}]"
    return text + ("; paired by start state" if c["paired"] else "; not paired")
