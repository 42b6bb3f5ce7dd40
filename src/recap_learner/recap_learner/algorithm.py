"""Algorithm 1 of π*0.6, whole: `algorithm_1` reads as it is printed; every call is a stage of `Rounds`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recap_learner.arms import arm
from recap_learner.improve import Improvement
from recap_learner.lesson import STARTS
from recap_learner.rounds import Rounds
from recap_learner.stages import Made
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.training.vision_training import VisionTraining
from recap_learner.value.gates import Gates
from recap_learner.value.labels import LabelRule
from recap_learner.value.value_training import ValueTraining


@dataclass(frozen=True)
class Algorithm:
    """Settings of a run of Algorithm 1.

    vision, value, policy, rule: of pre-training (paper: whole-episode advantage, 30 % positive);
    improvement: of SFT and every iteration. iterations: K. start: what value and policy of an iteration begin
    from, "pretrained" (paper: less drift) or "last", the iteration before. extraction: the arm by which
    iterations make a policy; gates: what value functions must reach for the run to go on, None: it goes on
    whatever they reach (V⁰, which no label needs, never ends it); captions: Parquet file that value functions
    are co-trained on; compare: arms that are trained on the last iteration's data too, from the same
    start, with as many steps. first_value: also train V⁰ (step 4), which no label needs. generalist: in the
    end a policy from scratch on all tasks' data under their last labels.

    Raises ValueError on unknown words.
    """

    vision: VisionTraining = VisionTraining()
    value: ValueTraining = ValueTraining()
    policy: PolicyTraining = PolicyTraining()
    rule: LabelRule = LabelRule(lookahead=0, positive_fraction=0.3)
    improvement: Improvement = Improvement()
    iterations: int = 1
    start: str = "pretrained"
    extraction: str = "recap"
    gates: Gates | None = Gates()
    captions: Path | None = None
    compare: tuple[str, ...] = ()
    first_value: bool = True
    generalist: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start is {self.start!r}, wanted {' or '.join(STARTS)}")
        if self.iterations < 0 or (self.compare and not self.iterations):
            raise ValueError(f"{self.iterations} iterations, wanted at least {int(bool(self.compare))}")
        for name in (self.extraction, *self.compare):
            arm(name)


def algorithm_1(do: Rounds, tasks: Sequence[str], how: Algorithm) -> dict[str, Made]:
    """π*0.6, Algorithm 1 → the last policy of each task, and "generalist" where there is one.

    Where torch's threads leave cores free, evaluations run beside what follows, and demonstrations beside the
    pre-training of the tower.
    """
    demonstrations = {task: do.demonstrations(task) for task in tasks}
    do.vision(tasks[0], how.vision, how.seed)
    demos = {task: do.episodes(task, 0, bags) for task, bags in demonstrations.items()}
    everything = list(demos.values())

    text = how.captions
    v_pre = do.value(None, 0, everything, None, how.value, how.seed, how.gates, text)  # 1. V_pre, eq. 1
    l_pre = do.labels(None, 0, everything, v_pre, how.rule)
    pi_pre = do.policy(None, 0, everything, None, "recap", l_pre, how.policy, how.seed)  # 2. π_pre, eq. 3

    again, policies, labels, data = (
        how.improvement,
        dict[str, Made](),
        dict[str, Made](),
        dict[str, list[Made]](),
    )
    for task in tasks:
        data[task] = [demos[task]]  # 3. D_ℓ ← its demonstrations
        v = v_pre
        if how.first_value:
            v = do.value(task, 0, data[task], v_pre, again.value, again.seed, None, text)  # 4. V⁰ from V_pre
        pi = do.policy(task, 0, data[task], pi_pre, "sft", None, again.policy, again.seed)  # 5. π⁰, I = True
        for k in range(1, how.iterations + 1):  # 6.
            data[task] += do.collect(task, k, pi, v)
            do.evaluate(task, k - 1, pi)
            first = how.start == "pretrained" or k == 1
            before = v_pre if first else v
            v = do.value(task, k, data[task], before, again.value, again.seed, how.gates, text)
            labels[task] = do.labels(task, k, data[task], v, again.rule)
            start = pi_pre if first else pi
            pi = do.policy(task, k, data[task], start, how.extraction, labels[task], again.policy, again.seed)
        do.evaluate(task, how.iterations, pi)
        policies[task] = pi
        for name in how.compare:  # other arms: the same data, start and steps
            other = do.policy(
                *(task, how.iterations, data[task], pi_pre, name, labels[task], again.policy, again.seed),
                beside=name, pretrained=l_pre,
            )  # fmt: skip
            do.evaluate(task, how.iterations, other, name)
    if how.generalist:
        seen = [part for task in tasks for part in data[task]]
        final = list(labels.values()) or [l_pre]
        policies["generalist"] = do.generalist(seen, final, how.policy, how.seed)
        for task in tasks:
            do.evaluate(task, how.iterations, policies["generalist"], "generalist")
    return policies
