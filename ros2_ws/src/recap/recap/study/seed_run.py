"""The study's policies for one training seed, as stages of Algorithm 1: what is there is not made again."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from recap.sim_cell import SimCell
from recap.study.policies import POLICIES, Asked, Entry
from recap.study.settings import StudySettings
from recap_learner.evaluation.evaluation import Attempt, read_evaluation
from recap_learner.rounds import Rounds
from recap_learner.stages import Made, Report, Stages
from recap_learner.training.policy_training import PolicyTraining
from recap_policy.interface import Sampling


class SeedRun:
    """Makes what a policy needs when it is asked for: data, values and labels of an iteration once."""

    def __init__(self, stages: Stages, cell: SimCell, task: str, how: StudySettings, seed: int) -> None:
        self.stages, self.cell, self.task, self.how, self.seed = stages, cell, task, how, seed
        self.do = Rounds(stages, cell, [task])
        self._made: dict[str, Made] = {}

    def evaluate(self, name: str) -> Made:
        """Train the policy, if it is not there, and try it out beside what follows."""
        entry = POLICIES[name]
        policy = self.policy(entry.of if isinstance(entry, Asked) else name)
        return self._evaluation(name, policy, entry.sampling)

    def attempts(self, name: str) -> list[Attempt]:
        """Those of a policy that was tried out."""
        return list(read_evaluation(self._file(name)).attempts)

    def policy(self, name: str) -> Made:
        entry = POLICIES[name]
        assert isinstance(entry, Entry)
        return self._once(f"policy {name}", lambda: self._policy(entry))

    # ---- what policies are made from ---------------------------------------------------------------

    @cached_property
    def demonstrations(self) -> Made:
        bags = self.do.demonstrations(self.task)
        self.do.vision(self.task, self.how.vision, self.seed)
        return self.do.episodes(self.task, 0, bags)

    @cached_property
    def v_pre(self) -> Made:
        return self.do.value(None, 0, [self.demonstrations], None, self.how.value, self.seed)

    @cached_property
    def l_pre(self) -> Made:
        return self.do.labels(None, 0, [self.demonstrations], self.v_pre, self.how.rule)

    @cached_property
    def pi_pre(self) -> Made:
        data = [self.demonstrations]
        return self.do.policy(None, 0, data, None, "recap", self.l_pre, self.how.policy, self.seed)

    def data(self, k: int) -> list[Made]:
        """Demonstrations, and the rollouts of k iterations."""
        if k == 0:
            return [self.demonstrations]
        return [*self.data(k - 1), self._once(f"rollouts {k}", lambda: self._collect(k))]

    def value(self, k: int) -> Made:
        return self._once(f"value {k}", lambda: self._value(k, self.v_pre))

    def labels(self, k: int) -> Made:
        rule = self.how.improvement.rule
        return self._once(
            f"labels {k}", lambda: self.do.labels(self.task, k, self.data(k), self.value(k), rule)
        )

    def _once(self, name: str, make: Any) -> Made:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _collect(self, k: int) -> Made:
        before = next(e for e in POLICIES.values() if isinstance(e, Entry) and e.own and e.iteration == k - 1)
        value = self.v_pre if k == 1 else self.value(k - 1)
        [made] = self.do.collect(self.task, k, self.policy(before.name), value)
        return made

    def _value(self, k: int, start: Made, beside: str = "") -> Made:
        how = self.how.improvement.value
        return self.do.value(self.task, k, self.data(k), start, how, self.seed, beside=beside)

    # ---- policies ----------------------------------------------------------------------------------

    def _policy(self, entry: Entry) -> Made:
        k, again = entry.iteration, self.how.improvement
        data, beside = self.data(k), "" if entry.own else entry.name
        labels, start, how = self._labels(entry, beside), self._start(entry), again.policy
        if entry.start == "scratch":  # all the steps that the others have had
            how = self._whole(self.how.policy, entry.config)
        before = None if k else self.l_pre
        return self.do.policy(self.task, k, data, start, entry.arm, labels, how, self.seed, beside, before)

    def _whole(self, how: PolicyTraining, config: str) -> PolicyTraining:
        steps = how.schedule.steps + self.how.improvement.policy.schedule.steps
        return replace(how.for_steps(steps), config=how.config + config)

    def _start(self, entry: Entry) -> Made | None:
        if entry.start == "scratch":
            return None
        if entry.start == "last":
            return self.policy(f"recap_{entry.iteration - 1}")
        return self.pi_pre

    def _labels(self, entry: Entry, beside: str) -> Made | None:
        k, rule = entry.iteration, self.how.improvement.rule
        if k == 0:
            return None
        if entry.start == "last":
            value = self._value(k, self.value(k - 1), beside)
            return self.do.labels(self.task, k, self.data(k), value, rule, beside)
        if entry.fraction not in (None, rule.positive_fraction):
            assert entry.fraction is not None
            other = replace(rule, positive_fraction=entry.fraction)
            return self.do.labels(self.task, k, self.data(k), self.value(k), other, beside)
        return self.labels(k)

    # ---- evaluations -------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.stages.folder / "evaluations" / f"{name}.json"

    def _evaluation(self, name: str, policy: Made, sampling: Sampling) -> Made:
        folder, out = self.do.policy_folder(policy), self._file(name)
        # More attempts of the same policy add to those that are there.
        journal = out.with_suffix(f".{self.stages.digest(policy)[:12]}.jsonl").name
        cell = self.cell

        def work(report: Report) -> dict[str, Any]:
            return cell.try_out(self.task, folder, sampling, out, journal, report).summary()

        return self.stages.stage(
            f"evaluate.{name}",
            f"Evaluation, {name}",
            work,
            settings=[self.task, cell.evaluations, cell.execute_steps, cell.first_evaluation, sampling],
            inputs=[policy],
            outputs=[out],
            beside=True,
        )
