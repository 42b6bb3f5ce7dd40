"""`./recap demo`: the whole loop of RECAP once round, small, on a laptop.

Demonstrations → pre-trained value and policy → SFT → live attempts over ROS 2 with takeovers → more
rollouts, headless → episodes → value → advantage → RECAP policy → both policies on the same unseen seeds:
Algorithm 1 (`recap_learner.algorithm`) with one iteration, in the simulated cell. Every stage can be resumed;
`summary.json` holds every number and `report.html` shows them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from recap.rollout import summarize
from recap.sim_cell import SimCell
from recap.stages import Shown, about_code
from recap_learner.algorithm import Algorithm, algorithm_1
from recap_learner.evaluation.evaluation import read_evaluation
from recap_learner.evaluation.statistics import paired_difference_interval
from recap_learner.improve import Improvement
from recap_learner.rounds import Rounds
from recap_learner.stages import Stages
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.training.vision_training import VisionTraining
from recap_learner.value.gates import warnings
from recap_learner.value.labels import LabelRule
from recap_learner.value.value_training import ValueTraining
from recap_policy.chunks import EXECUTE_STEPS
from recap_station.files import write_json

# Stages as recap_learner.rounds names them → seconds on two cores.
STAGES = {
    "demonstrations": 55.0,
    "vision": 150.0,
    "episodes": 50.0,
    "pretrain_value": 60.0,
    "pretrain_labels": 1.0,
    "pretrain_policy": 250.0,
    "iteration_00.sft": 100.0,
    "iteration_01.live": 100.0,
    "iteration_01.rollouts": 100.0,
    "iteration_01.episodes": 50.0,
    "iteration_00.evaluate": 50.0,
    "iteration_01.value": 80.0,
    "iteration_01.labels": 1.0,
    "iteration_01.policy": 100.0,
    "iteration_01.evaluate": 50.0,
}


@dataclass(frozen=True)
class DemoConfig:
    """All settings of a demo run."""

    station: str = "aloha"
    task: str = "handover_insert"
    seed: int = 1
    demonstrations: int = 180
    styles: dict[str, float] = field(default_factory=lambda: {"fast": 0.45, "slow": 0.3, "sloppy": 0.25})
    vision: VisionTraining = VisionTraining()
    value: ValueTraining = ValueTraining()  # pre-training
    policy: PolicyTraining = PolicyTraining()  # pre-training
    rule: LabelRule = LabelRule(lookahead=0, positive_fraction=0.3)  # pre-training (paper: 30 %, N = T)
    improvement: Improvement = Improvement()  # SFT and the RECAP iteration
    live_attempts: int = 6  # at least; more, until a person has taken over live_takeovers times
    live_takeovers: int = 2
    rollouts: int = 120
    watched: float = 0.4  # share of headless rollouts that the scripted operator corrects
    evaluations: int = 100
    execute_steps: int = EXECUTE_STEPS

    @property
    def algorithm(self) -> Algorithm:
        """Its settings for learning. V⁰ is left out: no label needs it. Gates warn: who looks for the first
        time shall see the loop to its end, and in the report what a value function that fails is worth."""
        return Algorithm(
            *(self.vision, self.value, self.policy, self.rule, self.improvement),
            first_value=False, gates=None, seed=self.seed,
        )  # fmt: skip

    def cell(self, run: Path) -> SimCell:
        return SimCell(
            station=self.station,
            demonstrations_count=self.demonstrations,
            styles=self.styles,
            rollouts=self.rollouts,
            watched=self.watched,
            live_attempts=self.live_attempts,
            live_takeovers=self.live_takeovers,
            evaluations=self.evaluations,
            execute_steps=self.execute_steps,
            logs=run / "logs",
        )


def _quick() -> DemoConfig:
    """Every stage, too small to learn anything."""
    improvement = Improvement()
    improvement = replace(
        improvement, value=improvement.value.for_steps(40), policy=improvement.policy.for_steps(20)
    )
    return DemoConfig(
        demonstrations=12,
        vision=VisionTraining(scenes=200).for_steps(20),
        value=ValueTraining().for_steps(40),
        policy=PolicyTraining().for_steps(20),
        improvement=improvement,
        live_attempts=2,
        live_takeovers=0,
        rollouts=8,
        evaluations=6,
    )


QUICK = _quick()


def run_demo(run: Path, config: DemoConfig, console: Console) -> dict[str, Any]:
    """Run, or go on with, the demo in folder `run` → the summary. Raises what a stage raises."""
    run.mkdir(parents=True, exist_ok=True)
    about = about_code(Path(__file__).resolve().parents[4])
    with Shown(console, STAGES) as shown, Stages(run, shown, about) as stages:
        algorithm_1(Rounds(stages, config.cell(run), [config.task]), [config.task], config.algorithm)
        stages.wait()
    for line in shown.times():
        console.print(line, highlight=False, markup=False)
    found = {name: made.result for name, made in stages.made.items()}
    summary = summarize_run(run, config, found, shown.seconds, about["code_version"])
    write_json(run / "summary.json", summary)
    from recap.report import write_report

    write_report(run)
    return summary


def summarize_run(
    run: Path, config: DemoConfig, found: dict[str, Any], seconds: dict[str, float], code_version: str
) -> dict[str, Any]:
    """Every number of a finished run. found: results of its stages by name."""
    found = {short(name): result for name, result in found.items()}
    training = {
        "pretrain_policy": {"labels": found["pretrain_labels"], **found["pretrain_policy"]},
        "sft": found["sft"],
        "policy": {"labels": found["labels"], **found["policy"]},
    }
    return {
        "config": asdict(config),
        "code_version": code_version,
        "live": found["live"],
        "policies": {"sft": found["evaluate_sft"], "recap": found["evaluate"]},
        "comparison": comparison(run),
        "demonstrations": found["demonstrations"],
        "vision": found["vision"],
        "rollouts": found["rollouts"],
        "value": {"pretrain": found["pretrain_value"], "recap": found["value"]},
        "training": training,
        "seconds": {**{short(name): s for name, s in seconds.items()}, "total": sum(seconds.values())},
    }


def short(stage: str) -> str:
    """What the summary calls a stage of the only iteration."""
    if stage == "iteration_00.evaluate":
        return "evaluate_sft"
    if stage == "iteration_01.episodes":
        return "rollout_episodes"
    return stage.rpartition(".")[2]


def comparison(run: Path) -> dict[str, Any]:
    """RECAP against SFT on the same seeds, and the verdict in words."""
    first, second = (
        read_evaluation(run / folder / "eval.json").attempts for folder in ("iteration_00", "iteration_01")
    )
    low, high = paired_difference_interval(
        [float(a.success) for a in first], [float(a.success) for a in second]
    )
    before, after = summarize(first), summarize(second)
    gain = after["success"] - before["success"]
    ratio = (
        after["throughput_per_hour"] / before["throughput_per_hour"]
        if before["throughput_per_hour"]
        else None
    )
    failures = 1 - before["success"]
    if low > 0:
        verdict = "The RECAP policy succeeds more often than the supervised one."
    elif high < 0:
        verdict = "The RECAP policy succeeds LESS often than the supervised one."
    else:
        verdict = "No difference in success can be told from this many attempts."
    return {
        "success_difference": gain,
        "success_difference_ci95": (low, high),
        "throughput_ratio": ratio,
        "failure_ratio": (1 - after["success"]) / failures if failures else None,
        "verdict": verdict,
    }


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """What the demo prints at its end."""
    lines = []
    for name, title in (("sft", "Supervised (SFT)"), ("recap", "RECAP")):
        p = summary["policies"][name]
        low, high = p["success_ci95"]
        slow, fast = p["throughput_ci95"]
        lines.append(
            f"{title:17} success {p['success']:5.1%} [{low:.1%}, {high:.1%}]   "
            f"throughput {p['throughput_per_hour']:4.0f} an hour [{slow:.0f}, {fast:.0f}]   "
            f"({p['attempts']} attempts)"
        )
    compare, live = summary["comparison"], summary["live"]
    if compare["throughput_ratio"] is not None:
        lines.append(f"{'RECAP / SFT':17} throughput × {compare['throughput_ratio']:.2f}")
    lines.append(compare["verdict"])
    for name, value in summary["value"].items():
        lines += warnings(value, f"Note: the value function of {name}")
    lines.append(
        f"Live over ROS 2: {live['attempts']} attempts, {live['takeovers']} takeovers, "
        f"{live['rate_hz']:.2f} Hz, period p99 {live['period_p99_ms']:.1f} ms, "
        f"{live['missed_ticks']} missed ticks"
    )
    return lines
