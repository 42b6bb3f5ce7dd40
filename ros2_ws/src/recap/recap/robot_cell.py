"""A cell in which people record the attempts: Algorithm 1 says what it waits for and goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recap.sim_cell import SimCell
from recap_learner.cell import Assessment, Collection, Order
from recap_learner.data.episodes import find_bags
from recap_learner.data.judgements import LOG as JUDGEMENTS
from recap_learner.evaluation.evaluation import EvaluationError
from recap_learner.evaluation.recorded_evaluation import evaluate_recorded
from recap_learner.stages import Report, StageError
from recap_policy.description import read


@dataclass(frozen=True)
class RobotCell:
    """Demonstrations are those of `sim`, given or scripted. A policy's evaluation is what was recorded of it:
    the attempts of the next iteration, and those that a person puts into `evaluation/` beside it."""

    sim: SimCell

    @property
    def station(self) -> str:
        return self.sim.station

    def demonstrations(self, task: str) -> Collection:
        return self.sim.demonstrations(task)

    def collections(self, task: str, iteration: int) -> Sequence[Collection]:
        return [Collection("rollouts", "bags", "Attempts on the robot", "robot", self._await, ours=False)]

    def evaluation(self, task: str, policy: Path, store: Path) -> Assessment | None:
        home, k = policy.parent.parent, policy.parent.name.removeprefix("iteration_")
        after = home / f"iteration_{int(k) + 1:02d}" / "bags" if k.isdigit() else home / "bags"
        bags = [folder for folder in (after, policy.parent / "evaluation") if folder.is_dir()]
        if not any(any(folder.iterdir()) for folder in bags):
            return None
        return Assessment("recorded", partial(self._recorded, store), [*bags, store / JUDGEMENTS])

    def _recorded(self, store: Path, policy: Path, asked: str, out: Path, report: Report) -> dict[str, Any]:
        """Outcomes are those of the store where it has the attempts: a person may have mended them."""
        own = policy.parent / "evaluation"
        paths = [store, *([own] if own.is_dir() else [])]
        try:
            [found], problems = evaluate_recorded(
                paths, progress=report, wanted={str(policy): read(policy).identity}
            )
        except EvaluationError as error:
            out.unlink(missing_ok=True)
            return {"notices": [f"{policy}: not evaluated: {error}"]}
        found.write(out)
        return {**found.summary(), "notices": problems}

    def _await(self, order: Order, report: Report) -> dict[str, Any]:
        order.bags.mkdir(parents=True, exist_ok=True)
        if not any(order.bags.iterdir()):
            raise StageError(
                f"iteration {order.iteration} waits for attempts of {order.policy}: record them into "
                f"{order.bags} (./recap up use_sim:=false checkpoint:={order.policy} bag_dir:={order.bags}), "
                "then give the same command again"
            )
        return {"bags": len(find_bags([order.bags]))}
