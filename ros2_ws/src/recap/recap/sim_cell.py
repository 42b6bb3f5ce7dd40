"""The simulated cell as Algorithm 1 asks it: scripted demonstrations, rollouts, live ones, evaluations.

Attempts are noted one by one as they end, so that a run which is killed goes on with those it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from recap.evaluate import EVALUATION_SEED, entrants, evaluate
from recap.journal import Journal
from recap.live import run_live
from recap.rollout import Attempt, Rollouts, run_attempts, summarize
from recap_learner.cell import Assessment, Collection, Order
from recap_learner.data.episodes import SUFFIX, convert_bags
from recap_learner.evaluation.evaluation import Evaluation
from recap_learner.evaluation.sequential import Stopping
from recap_learner.stages import Report
from recap_policy.chunks import EXECUTE_STEPS
from recap_policy.interface import Sampling

# Ranges of start-state seeds. Iterations take consecutive ones; those from EVALUATION_SEED on are used for
# nothing else.
DEMONSTRATION_SEEDS, ROLLOUT_SEEDS, LIVE_SEEDS = 0, 10_000, 20_000


@dataclass(frozen=True)
class SimCell:
    """demonstrations: attempts of the scripted expert, or `given`: task → folder of bags that are there.
    rollouts: headless attempts an iteration, of which the scripted operator watches a share `watched`;
    live_attempts: over ROS 2, at least so many and until a person has taken over `live_takeovers` times;
    evaluations: attempts on seeds that nothing else uses, 0: none. observation: "images" or "state", see
    `Rollouts`. first_demonstration, first_rollout, first_evaluation: where their start states begin."""

    station: str = "aloha"
    demonstrations_count: int = 180
    styles: dict[str, float] = field(default_factory=lambda: {"fast": 0.45, "slow": 0.3, "sloppy": 0.25})
    given: dict[str, Path] = field(default_factory=dict)
    rollouts: int = 120
    watched: float = 0.4
    live_attempts: int = 0
    live_takeovers: int = 0
    evaluations: int = 100
    execute_steps: int = EXECUTE_STEPS
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    logs: Path = Path("logs")
    observation: str = "images"
    first_demonstration: int = DEMONSTRATION_SEEDS
    first_rollout: int = ROLLOUT_SEEDS
    first_evaluation: int = EVALUATION_SEED

    def demonstrations(self, task: str) -> Collection:
        if task in self.given:
            return _given(self.given[task])
        settings = [self.demonstrations_count, self.styles, *self._begins(self.first_demonstration)]
        return Collection("demonstrations", "", "Demonstrations", settings, self._demonstrate)

    def collections(self, task: str, iteration: int) -> Sequence[Collection]:
        """Live before headless ones: what keeps time goes first, while nothing else is at work."""
        live = [self.live_attempts, self.live_takeovers]
        headless = [self.rollouts, self.watched, self.execute_steps, *self._begins(self.first_rollout)]
        ways = [
            Collection("live", "live", "Live attempts over ROS 2", live, self._live, alone=True),
            Collection("rollouts", "bags", "Rollouts, headless", headless, self._roll_out),
        ]
        counts = (self.live_attempts, self.rollouts)
        return [way for way, count in zip(ways, counts, strict=True) if count]

    def evaluation(self, task: str, policy: Path, store: Path) -> Assessment | None:
        settings = [self.evaluations, self.execute_steps, self.first_evaluation]
        return Assessment(settings, partial(self._evaluate, task)) if self.evaluations else None

    def _evaluate(self, task: str, policy: Path, asked: str, out: Path, report: Report) -> dict[str, Any]:
        return self.try_out(task, policy, Sampling(indicator=asked), out, "", report).summary()

    def try_out(
        self, task: str, policy: Path, sampling: Sampling, out: Path, noted: str, report: Report
    ) -> Evaluation:
        """A policy that is asked as `sampling` says on the evaluation's start states, also written to `out`.
        noted: name of the journal beside it, "" for its own; attempts that are in it are not made again."""
        how = Rollouts(self.station, task, checkpoint=policy, execute_steps=self.execute_steps)
        [entrant] = entrants([policy], [sampling], how, out.parent)
        seeds = range(self.first_evaluation, self.first_evaluation + self.evaluations)
        entrant = replace(entrant, file=out.name, noted=noted)
        [found] = evaluate([entrant], seeds, Stopping(), self.workers, progress=report)
        return found

    def _demonstrate(self, order: Order, report: Report) -> dict[str, Any]:
        how = Rollouts(
            *(self.station, order.task), styles=self.styles, bags=order.bags, source="demonstration",
            observation=self.observation,
        )  # fmt: skip
        attempts = self._attempts(how, order, self.first_demonstration, self.demonstrations_count, report)
        by_style = {style: [a for a in attempts if a.style == style] for style in self.styles}
        shown = {style: summarize(some) for style, some in by_style.items() if some}
        return {**summarize(attempts), "by_style": shown}

    def _roll_out(self, order: Order, report: Report) -> dict[str, Any]:
        how = Rollouts(
            *(self.station, order.task), checkpoint=order.policy, operator=self.watched,
            execute_steps=self.execute_steps, bags=order.bags, observation=self.observation,
        )  # fmt: skip
        first = self.first_rollout + (order.iteration - 1) * self.rollouts
        return summarize(self._attempts(how, order, first, self.rollouts, report))

    def _attempts(self, how: Rollouts, order: Order, first: int, count: int, report: Report) -> list[Attempt]:
        """Attempts, each converted and noted when it is over; those that are noted are not made again."""
        order.bags.mkdir(parents=True, exist_ok=True)
        with Journal(order.bags.with_suffix(".jsonl"), _key(how)) as journal:
            known = {a.seed: a for a in journal.attempts.values() if (order.bags / Path(a.bag).name).exists()}
            kept = {Path(a.bag).name for a in known.values()}
            for bag in order.bags.iterdir():
                if bag.name not in kept:  # of an attempt that was broken off
                    _remove_attempt(bag, order.store)

            def each(attempt: Attempt) -> None:
                if self.observation == "images":
                    convert_bags([Path(attempt.bag)], order.store)
                journal.add(attempt)

            seeds = range(first, first + count)
            left = [seed for seed in seeds if seed not in known]
            made = run_attempts(how, left, self.workers, report, each) if left else []
        known |= {a.seed: a for a in made}
        return [known[seed] for seed in seeds]

    def _begins(self, first: int) -> list[Any]:
        """As a stage's setting; nothing where it is as it always was."""
        usual = self.observation == "images" and first in (DEMONSTRATION_SEEDS, ROLLOUT_SEEDS)
        return [] if usual else [self.observation, first]

    def _live(self, order: Order, report: Report) -> dict[str, Any]:
        assert order.policy is not None
        if order.bags.exists():  # a graph that was broken off: its attempts are made again
            for bag in order.bags.iterdir():
                _remove_attempt(bag, order.store)
        order.bags.mkdir(parents=True, exist_ok=True)
        return run_live(
            station=self.station,
            task=order.task,
            checkpoint=order.policy,
            value_checkpoint=order.value,
            bag_dir=order.bags,
            attempts=self.live_attempts,
            takeovers=self.live_takeovers,
            seed=LIVE_SEEDS + (order.iteration - 1) * 1000,
            log_dir=self.logs,
            report=report,
        )


def _key(how: Rollouts) -> str:
    """What attempts depend on, wherever the run lies; the checkpoint is the stage's business."""
    how = replace(how, bags=None, checkpoint=None)
    return hashlib.sha256(json.dumps(asdict(how), sort_keys=True).encode()).hexdigest()


def _remove_attempt(bag: Path, store: Path) -> None:
    (store / f"{bag.name}{SUFFIX}").unlink(missing_ok=True)
    if bag.is_dir():
        shutil.rmtree(bag)
    else:
        bag.unlink()


def _given(bags: Path) -> Collection:
    """Bags that somebody recorded: linked to, never touched."""

    def fill(bags: Path, order: Order, report: Report) -> dict[str, Any]:
        if not bags.is_dir() or not any(bags.iterdir()):
            raise FileNotFoundError(f"{bags}: wanted a folder of bags, found none")
        order.bags.parent.mkdir(parents=True, exist_ok=True)
        if order.bags.exists() and order.bags.resolve() != bags.resolve():
            raise FileExistsError(
                f"{order.bags} holds other demonstrations than {bags}; wanted another --run"
            )
        if not order.bags.exists():
            order.bags.symlink_to(bags.resolve(), target_is_directory=True)
        return {"bags": str(bags)}

    return Collection("demonstrations", "", "Demonstrations", str(bags), partial(fill, bags), ours=False)
