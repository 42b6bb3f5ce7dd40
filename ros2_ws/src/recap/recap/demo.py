"""`./recap demo`: the whole loop of RECAP once round, small, on a laptop.

Demonstrations → pre-trained value and policy → SFT → live attempts over ROS 2 with takeovers → more
rollouts, headless → episodes → value → advantage → RECAP policy → both policies on the same unseen seeds.
Every stage can be resumed; `summary.json` holds every number and `report.html` shows them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from recap.live import run_live
from recap.rollout import Rollouts, load_attempts, run_attempts, save_attempts, summarize
from recap.stages import Report, Runner, Stage, code_version
from recap_learner.episodes import SUFFIX as EPISODE_SUFFIX
from recap_learner.improve import Improvement
from recap_learner.iteration import fit_policy, fit_value, gather_frames, make_labels
from recap_learner.labels import LabelRule
from recap_learner.policy_training import PolicyTraining
from recap_learner.statistics import paired_difference_interval
from recap_learner.value_training import ValueTraining
from recap_learner.vision_training import VisionTraining, train_vision
from recap_policy.chunks import EXECUTE_STEPS
from recap_station.files import write_json

Work = Callable[[Report], dict[str, Any]]

# Ranges of start-state seeds; evaluation seeds are used for nothing else.
DEMONSTRATION_SEEDS, ROLLOUT_SEEDS, LIVE_SEEDS, EVALUATION_SEEDS = 0, 10_000, 20_000, 90_000


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
    demo = _Demo(run, config)
    runner = Runner(run, console)
    runner.run(demo.stages())
    summary = demo.summary(runner)
    write_json(run / "summary.json", summary)
    from recap.report import write_report

    write_report(run)
    return summary


class _Demo:
    """The stages, and where each keeps its files (design, section 8)."""

    def __init__(self, run: Path, config: DemoConfig) -> None:
        self.run, self.config = run, config
        self.pretrain, self.sft, self.first = run / "pretrain", run / "iteration_00", run / "iteration_01"
        self.vision = self.pretrain / "vision"

    def stages(self) -> list[Stage]:
        c, better = self.config, self.config.improvement
        world = [c.station, c.task, c.seed]
        rollouts = [c.rollouts, c.watched, c.execute_steps]
        live = [c.live_attempts, c.live_takeovers]
        # name, title, settings, after, work, seconds on two cores
        rows: list[tuple[str, str, Any, tuple[str, ...], Work, float]] = [
            ("demonstrations", "Demonstrations", [c.demonstrations, c.styles], (), self.demonstrate, 55),
            ("vision", "Vision pre-training", c.vision, (), self.see, 150),
            ("episodes", "Demonstrations to episodes", [], ("demonstrations", "vision"), self.convert, 50),
            ("pretrain_value", "Pre-train value", c.value, ("episodes",), self.pretrain_value, 60),
            (
                *("pretrain_policy", "Pre-train policy", [c.policy, c.rule]),
                *(("pretrain_value",), self.pretrain_policy, 250),
            ),
            ("sft", "Supervised policy (SFT)", better.policy, ("pretrain_policy",), self.finetune, 100),
            ("live", "Live attempts over ROS 2", live, ("sft",), self.live, 100),
            ("rollouts", "Rollouts, headless", rollouts, ("sft",), self.roll_out, 100),
            ("value", "Value function", better.value, ("live", "rollouts"), self.value, 80),
            ("policy", "RECAP policy", better, ("value",), self.improve, 100),
            (
                *("evaluate", "Evaluation on unseen seeds", [c.evaluations, c.execute_steps]),
                *(("sft", "policy"), self.evaluate, 100),
            ),
        ]
        return [
            Stage(name, title, [world, settings], after, work, expect_s)
            for name, title, settings, after, work, expect_s in rows
        ]

    # Each stage: what it needs is on disk, what it makes goes to disk, its return goes to the summary.

    def demonstrate(self, report: Report) -> dict[str, Any]:
        bags = self._emptied(self.run / "demonstrations")
        c = self.config
        rollouts = Rollouts(c.station, c.task, styles=c.styles, bags=bags, source="demonstration")
        seeds = range(DEMONSTRATION_SEEDS, DEMONSTRATION_SEEDS + c.demonstrations)
        attempts = run_attempts(rollouts, seeds, progress=report)
        return {
            **summarize(attempts),
            "by_style": {
                style: summarize([a for a in attempts if a.style == style])
                for style in c.styles
                if any(a.style == style for a in attempts)
            },
        }

    def see(self, report: Report) -> dict[str, Any]:
        c = self.config
        error = train_vision(
            c.station, c.task, self.vision, c.vision, c.seed, {"seed": c.seed}, progress=report
        )
        return {"median_error_m": error}

    def convert(self, report: Report) -> dict[str, Any]:
        frames = self._frames([self.run / "demonstrations"], report)
        return {"episodes": len(frames.episodes), "frames": len(frames)}

    def pretrain_value(self, report: Report) -> dict[str, Any]:
        frames = self._frames([self.run / "demonstrations"])
        return fit_value(frames, self.pretrain, None, self.config.value, self.config.seed, report)

    def pretrain_policy(self, report: Report) -> dict[str, Any]:
        c = self.config
        frames = self._frames([self.run / "demonstrations"])
        store = self.run / "episodes"
        labels = make_labels(frames, self.pretrain, c.rule, judged_by=lambda info: True, store=store)
        losses = fit_policy(frames, self.pretrain, None, self.vision, c.policy, c.seed, report)
        return {"labels": labels, **losses}

    def finetune(self, report: Report) -> dict[str, Any]:
        how, start = self.config.improvement, self.pretrain / "policy"
        frames = self._frames([self.run / "demonstrations"])
        return fit_policy(
            frames, self.sft, start, self.vision, how.policy, how.seed, report, always_positive=True
        )

    def live(self, report: Report) -> dict[str, Any]:
        c = self.config
        return run_live(
            station=c.station,
            task=c.task,
            checkpoint=self.sft / "policy",
            value_checkpoint=self.pretrain / "value",
            bag_dir=self._emptied(self.first / "live"),
            attempts=c.live_attempts,
            takeovers=c.live_takeovers,
            seed=LIVE_SEEDS,
            log_dir=self.run / "logs",
            report=report,
        )

    def roll_out(self, report: Report) -> dict[str, Any]:
        c = self.config
        rollouts = Rollouts(
            c.station,
            c.task,
            checkpoint=self.sft / "policy",
            operator=c.watched,
            execute_steps=c.execute_steps,
            bags=self._emptied(self.first / "bags"),
        )
        seeds = range(ROLLOUT_SEEDS, ROLLOUT_SEEDS + c.rollouts)
        return summarize(run_attempts(rollouts, seeds, progress=report))

    def value(self, report: Report) -> dict[str, Any]:
        how, start = self.config.improvement, self.pretrain / "value"
        frames = self._frames(self._all_bags(), lambda f, note: report(0.5 * f, note))
        return fit_value(
            frames, self.first, start, how.value, how.seed, lambda f, note: report(0.5 + 0.5 * f, note)
        )

    def improve(self, report: Report) -> dict[str, Any]:
        how, start = self.config.improvement, self.pretrain / "policy"
        frames = self._frames(self._all_bags())
        labels = make_labels(
            frames,
            self.first,
            how.rule,
            judged_by=lambda info: info.source == "rollout",
            store=self.run / "episodes",
        )
        losses = fit_policy(frames, self.first, start, self.vision, how.policy, how.seed, report)
        return {"labels": labels, **losses}

    def evaluate(self, report: Report) -> dict[str, Any]:
        c = self.config
        seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + c.evaluations)
        found: dict[str, Any] = {}
        for index, (name, folder) in enumerate((("sft", self.sft), ("recap", self.first))):
            rollouts = Rollouts(
                c.station, c.task, checkpoint=folder / "policy", execute_steps=c.execute_steps
            )
            part = _part(report, index, 2, name)
            attempts = run_attempts(rollouts, seeds, progress=part)
            write_json(folder / "eval.json", save_attempts(attempts))
            found[name] = summarize(attempts)
        return found

    def summary(self, runner: Runner) -> dict[str, Any]:
        found = runner.results
        policies = found["evaluate"]
        return {
            "config": asdict(self.config),
            "code_version": code_version(Path(__file__).resolve().parents[4]),
            "live": found["live"],
            "policies": policies,
            "comparison": self._comparison(),
            "demonstrations": found["demonstrations"],
            "vision": found["vision"],
            "rollouts": found["rollouts"],
            "value": {"pretrain": found["pretrain_value"], "recap": found["value"]},
            "training": {name: found[name] for name in ("pretrain_policy", "sft", "policy")},
            "seconds": {**runner.seconds, "total": sum(runner.seconds.values())},
        }

    def _comparison(self) -> dict[str, Any]:
        """RECAP against SFT on the same seeds, and the verdict in words."""
        first, second = (
            list(load_attempts(json.loads((folder / "eval.json").read_text())))
            for folder in (self.sft, self.first)
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

    def _frames(self, bags: Sequence[Path], report: Report | None = None) -> Any:
        return gather_frames(bags, self.run / "episodes", self.vision, report)

    def _emptied(self, folder: Path) -> Path:
        """The folder, without the bags that an earlier or interrupted try left, nor their episodes."""
        if folder.exists():
            for bag in folder.iterdir():
                (self.run / "episodes" / f"{bag.name}{EPISODE_SUFFIX}").unlink(missing_ok=True)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def _all_bags(self) -> list[Path]:
        return [self.run / "demonstrations", self.first / "live", self.first / "bags"]


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
    lines.append(
        f"Live over ROS 2: {live['attempts']} attempts, {live['takeovers']} takeovers, "
        f"{live['rate_hz']:.2f} Hz, period p99 {live['period_p99_ms']:.1f} ms, "
        f"{live['missed_ticks']} missed ticks"
    )
    return lines


def _part(report: Report, index: int, count: int, name: str) -> Callable[[float, str], None]:
    return lambda fraction, note: report((index + fraction) / count, f"{name}: {note}")
