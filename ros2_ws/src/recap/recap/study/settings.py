"""With how much data and training the study works, on states and on images.

Chosen on development start states and training seed 0, then frozen; docs/study.md has what was tried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from recap.sim_cell import SimCell
from recap_learner.improve import Improvement
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.training.training import Schedule
from recap_learner.training.vision_training import VisionTraining
from recap_learner.value.labels import LabelRule
from recap_learner.value.value_training import ValueTraining

DEVELOPMENT, EVALUATION = 40_000, 50_000  # first start states of evaluations
DEVELOPMENT_SEED, MOST_SEED = 0, 6  # of training
_DEMONSTRATIONS, _ROLLOUTS, _FIRST_ROLLOUT = 1000, 4000, 10_000  # start states that a training seed has


@dataclass(frozen=True)
class StudySettings:
    """vision, value, policy, rule: of pre-training; improvement: of SFT and of everything that learns from
    rollouts; demonstrations with the odds of their styles; rollouts an iteration, of which the scripted
    operator watches a share; attempts of each evaluation, from start state first_evaluation on."""

    observation: str
    vision: VisionTraining = VisionTraining()
    value: ValueTraining = ValueTraining()
    policy: PolicyTraining = PolicyTraining()
    rule: LabelRule = LabelRule(lookahead=0, positive_fraction=0.3)
    improvement: Improvement = Improvement()
    demonstrations: int = 240
    styles: dict[str, float] = field(default_factory=lambda: {"fast": 0.2, "slow": 0.4, "sloppy": 0.4})
    rollouts: int = 200
    watched: float = 0.4
    attempts: int = 200
    first_evaluation: int = EVALUATION

    def cell(self, seed: int, workers: int = 0) -> SimCell:
        """The cell of a training seed: its demonstrations and rollouts have start states of their own, the
        evaluations those of all seeds. Raises ValueError where there are none left for it."""
        if not 0 <= seed <= MOST_SEED:
            raise ValueError(f"training seed {seed}, wanted 0 .. {MOST_SEED}: others have no start states")
        if self.demonstrations > _DEMONSTRATIONS or 2 * self.rollouts > _ROLLOUTS:
            raise ValueError(
                f"{self.demonstrations} demonstrations and {self.rollouts} rollouts an iteration, wanted at "
                f"most {_DEMONSTRATIONS} and {_ROLLOUTS // 2}: start states of training seeds would overlap"
            )
        return SimCell(
            demonstrations_count=self.demonstrations,
            styles=self.styles,
            rollouts=self.rollouts,
            watched=self.watched,
            evaluations=self.attempts,
            observation=self.observation,
            workers=workers or len(os.sched_getaffinity(0)),
            first_demonstration=_DEMONSTRATIONS * seed,
            first_rollout=_FIRST_ROLLOUT + _ROLLOUTS * seed,
            first_evaluation=self.first_evaluation,
        )

    def scaled(self, share: float) -> StudySettings:
        """With that share of the data and of the training steps, not of the attempts that are counted."""
        if share == 1:
            return self
        found = self.for_steps(
            round(share * self.policy.schedule.steps),
            round(share * self.improvement.policy.schedule.steps),
            round(share * self.value.schedule.steps),
        )
        counts = {name: round(share * getattr(self, name)) for name in ("demonstrations", "rollouts")}
        return replace(found, **counts)

    def for_steps(self, policy: int, finetune: int, value: int) -> StudySettings:
        again = self.improvement
        again = replace(again, value=again.value.for_steps(value), policy=again.policy.for_steps(finetune))
        own = self.policy.for_steps(policy)
        return replace(self, policy=own, value=self.value.for_steps(value), improvement=again)


def study_settings(observation: str) -> StudySettings:
    """Raises ValueError on an unknown observation."""
    if observation == "images":
        return StudySettings("images")
    if observation != "state":
        raise ValueError(f"observation is {observation!r}, wanted state or images")
    value = ValueTraining(
        config="value-tiny-state",
        schedule=Schedule(
            steps=400, batch=128, learning_rate=1e-3, warmup=30, weight_decay=0.05, save_every_s=10.0
        ),
    )
    policy = PolicyTraining(
        config="tiny-state", schedule=Schedule(2500, batch=64, learning_rate=2e-3, save_every_s=10.0), draws=1
    )
    # Four of five samples are what the policy will be asked for: nearly as many as a policy has that clones
    # the best alone.
    finetuning = replace(
        policy, schedule=replace(policy.schedule, steps=3000, learning_rate=7e-4), draws=2,
        positive_share=0.9, indicator_dropout=0.1,
    )  # fmt: skip
    rule = replace(Improvement().rule, positive_fraction=0.15, lookahead=150, speed="given_success")
    return StudySettings(
        "state",
        vision=VisionTraining(config="tiny-state"),
        value=value,
        policy=policy,
        improvement=Improvement(value=value, policy=finetuning, rule=rule),
    )


def quick(settings: StudySettings) -> StudySettings:
    """Everything once, too small to learn anything."""
    small = replace(settings, demonstrations=12, rollouts=8, attempts=min(settings.attempts, 4))
    vision = replace(settings.vision, scenes=200).for_steps(20)
    return replace(small.for_steps(policy=12, finetune=8, value=12), vision=vision)
