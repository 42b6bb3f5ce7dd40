"""Which evaluations a run holds, and of what: task, iteration, method, and how the policy was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recap_learner.evaluation.evaluation import Evaluation, EvaluationError, read_evaluation

METHODS = {
    "sft": "SFT",
    "recap": "RECAP",
    "generalist": "generalist",
    "pretrained": "pre-trained",
    "awr": "AWR",
    "ppo": "PPO",
    "hg_dagger": "HG-DAgger",
    "rl_pretrained": "RL-pre-trained",
    "supervised": "supervised",
    "clone_all": "cloning everything",
    "clone_best": "cloning the best",
    "clone_positive": "cloning positives",
}
ASKED = "positive"  # what a policy is asked for unless its file says otherwise


@dataclass(frozen=True)
class Result:
    """One evaluation and its place in the run. old: the policy was trained anew since."""

    evaluation: Evaluation
    file: str
    task: str
    iteration: int | None
    method: str
    indicator: str
    beta: float
    asked: str
    old: bool

    @property
    def plain(self) -> bool:
        """Whether the policy was asked as it is on the robot, without guidance."""
        return self.indicator == self.asked and self.beta == 1.0

    @property
    def title(self) -> str:
        title = METHODS.get(self.method, self.method.replace("_", " "))
        return f"{title} {self.iteration}" if self.method == "recap" and self.iteration else title

    def with_stages(self, stages: tuple[str, ...]) -> Result:
        """With the task's stages where the file does not say them."""
        return (
            self
            if self.evaluation.stages
            else replace(self, evaluation=replace(self.evaluation, stages=stages))
        )

    @property
    def summary(self) -> dict[str, Any]:
        return self.evaluation.summary()


def find_results(run: Path) -> tuple[list[Result], list[str]]:
    """All evaluations in a run's folder, and a line for each file that is none.

    They are called eval.json or eval_<task>.json, or lie in a folder evaluations/.
    """
    found, problems = [], []
    for path in sorted({*_files(run)}):
        try:
            found.append(_result(run, path))
        except EvaluationError as error:
            problems.append(str(error).replace(f"{run}/", ""))
    return found, problems


def main_line(results: Sequence[Result]) -> list[Result]:
    """SFT and each iteration's policy, asked as on the robot, one each, in order."""
    best: dict[int, Result] = {}
    for r in results:
        if r.iteration is None or r.method not in ("sft", "recap") or not r.plain or r.old:
            continue
        before = best.get(r.iteration)
        if before is None or _rank(r) > _rank(before):
            best[r.iteration] = r
    return [best[k] for k in sorted(best)]


def arms(results: Sequence[Result]) -> list[Result]:
    """Ways to draw a policy from the same data: of the last iteration that has several, the best first."""
    per: dict[int, dict[str, Result]] = {}
    for r in results:
        if r.iteration and r.plain and not r.old:
            methods = per.setdefault(r.iteration, {})
            if r.method not in methods or _rank(r) > _rank(methods[r.method]):
                methods[r.method] = r
    several = [k for k, methods in per.items() if len(methods) > 1]
    if not several:
        return []
    return sorted(per[max(several)].values(), key=lambda r: -r.summary["throughput_per_hour"])


def conditions(results: Sequence[Result]) -> list[Result]:
    """One policy asked for positive, none and negative: of the last policy with more than one."""
    return _varied(
        [r for r in results if r.beta == 1.0], lambda r: ("positive", "none", "negative").index(r.indicator)
    )


def sweep(results: Sequence[Result]) -> list[Result]:
    """One policy under several β, by β."""
    return _varied([r for r in results if r.indicator == ASKED], lambda r: r.beta)


def _varied(results: Sequence[Result], key: Any) -> list[Result]:
    groups: dict[tuple[int, str], dict[Any, Result]] = {}
    for r in results:
        if r.old or r.evaluation.source != "simulation":
            continue
        group = groups.setdefault((r.iteration or 0, r.method), {})
        if key(r) not in group or _rank(r) > _rank(group[key(r)]):
            group[key(r)] = r
    several = [g for g, found in groups.items() if len(found) > 1]
    if not several:
        return []
    last = groups[max(several, key=lambda g: (g[0], g[1] == "recap"))]
    return [last[k] for k in sorted(last)]


def _rank(r: Result) -> tuple[bool, bool, int]:
    """Which of several evaluations of the same to show: the iteration's own, then the largest."""
    return r.evaluation.source != "bags", Path(r.file).name.startswith("eval"), len(r.evaluation.attempts)


def _files(run: Path) -> Iterator[Path]:
    """Not inside folders of bags or of episodes, which may hold a million files."""
    depth = ("", "*/", "*/*/", "*/*/*/", "*/*/*/*/")
    for at in depth:
        yield from run.glob(f"{at}eval.json")
        yield from run.glob(f"{at}eval_*.json")
        yield from run.glob(f"{at}evaluations/*.json")


def _result(run: Path, path: Path) -> Result:
    evaluation = read_evaluation(path)
    if not evaluation.attempts:
        raise EvaluationError(f"{path}: holds no attempt")
    parts = path.relative_to(run).parts[:-1]
    numbers = [p for p in parts if p.startswith("iteration_") and p[10:].isdigit()]
    iteration = evaluation.iteration
    if iteration is None and numbers:
        iteration = int(numbers[0][10:])
    before = parts[: parts.index(numbers[0])] if numbers else ()
    method = evaluation.method or _method(parts, iteration)
    policy = Path(evaluation.checkpoint).name if evaluation.checkpoint else "policy"
    folder = path.parent.parent if path.parent.name == "evaluations" else path.parent
    config = _config(folder / policy)
    asked = config.get("lineage", {}).get("arm", {}).get("asked", ASKED) or "none"
    settings = evaluation.settings
    known = str(config.get("identity") or "")
    old = bool(
        evaluation.source == "simulation" and evaluation.identity and known not in ("", evaluation.identity)
    )
    result = Result(
        evaluation,
        str(path.relative_to(run)),
        before[0] if before else "",
        iteration,
        method,
        str(settings.get("indicator", asked)),
        float(settings.get("beta", 1.0)),
        asked,
        old,
    )
    return replace(result, evaluation=replace(evaluation, name=result.title))


def _method(parts: Sequence[str], iteration: int | None) -> str:
    if "arms" in parts[:-1]:
        return parts[parts.index("arms") + 1]
    for name, method in (("generalist", "generalist"), ("pretrain", "pretrained")):
        if name in parts:
            return method
    return "recap" if iteration else "sft"


def _config(policy: Path) -> dict[str, Any]:
    try:
        found = json.loads((policy / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
