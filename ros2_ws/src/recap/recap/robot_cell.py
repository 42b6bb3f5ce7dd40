"""A cell in which people record the attempts: Algorithm 1 says what it waits for and goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recap.sim_cell import SimCell
from recap_learner.cell import Collection, Order
from recap_learner.data.episodes import find_bags
from recap_learner.stages import Report, StageError


@dataclass(frozen=True)
class RobotCell:
    """Demonstrations are those of `sim`, given or scripted; nothing is evaluated, a person does that."""

    sim: SimCell

    @property
    def station(self) -> str:
        return self.sim.station

    def demonstrations(self, task: str) -> Collection:
        return self.sim.demonstrations(task)

    def collections(self, task: str, iteration: int) -> Sequence[Collection]:
        return [Collection("rollouts", "bags", "Attempts on the robot", "robot", self._await, ours=False)]

    def evaluation(self, task: str) -> Any:
        return None

    def evaluate(self, task: str, policy: Path, asked: str, out: Path, report: Report) -> dict[str, Any]:
        raise NotImplementedError("a person evaluates on the robot")

    def _await(self, order: Order, report: Report) -> dict[str, Any]:
        order.bags.mkdir(parents=True, exist_ok=True)
        if not any(order.bags.iterdir()):
            raise StageError(
                f"iteration {order.iteration} waits for attempts of {order.policy}: record them into "
                f"{order.bags} (./recap up use_sim:=false checkpoint:={order.policy} bag_dir:={order.bags}), "
                "then give the same command again"
            )
        return {"bags": len(find_bags([order.bags]))}
