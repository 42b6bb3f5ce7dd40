"""What the study compares, by name. All but the supervised ones start from the same pre-trained policy, and
all are given the same number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from recap_learner.arms import arm
from recap_learner.arms.base import Arm
from recap_learner.arms.recap import Recap
from recap_policy.interface import Sampling

ITERATIONS = 2  # of RECAP; every arm that learns from rollouts learns from those of both


@dataclass(frozen=True)
class Entry:
    """A policy that is trained. arm: how it learns; iteration: how many iterations' rollouts it learns from;
    start: "pretrained", "last" (the iteration before) or "scratch"; own: the iteration's own policy, which
    collects for the next; fraction: of autonomous frames that are positive, None: the study's; config: added
    to the name of the model's configuration."""

    name: str
    arm: Arm
    iteration: int
    start: str = "pretrained"
    own: bool = False
    fraction: float | None = None
    config: str = ""

    @property
    def sampling(self) -> Sampling:
        return Sampling(indicator=self.arm.asked)


@dataclass(frozen=True)
class Asked:
    """A policy that is there, asked otherwise."""

    name: str
    of: str
    sampling: Sampling


def _entries() -> list[Entry | Asked]:
    last = ITERATIONS
    return [
        Entry("offline_rl_sft", arm("sft"), 0, own=True),
        Entry("recap_1", arm("recap"), 1, own=True),
        Entry("recap_2", arm("recap"), last, own=True),
        Entry("filtered_bc", arm("clone_best"), last),
        Entry("awr", arm("awr"), last),
        Entry("ppo", arm("ppo"), last),
        Entry("bc_all", arm("clone_all"), last),
        Entry("clone_positive", arm("clone_positive"), last),
        Entry("hg_dagger", arm("hg_dagger"), last),
        Entry("rl_pretrained", arm("rl_pretrained"), 0),
        Entry("supervised_pi06", arm("supervised"), 0, start="scratch"),
        Entry("supervised_pi05", arm("supervised"), 0, start="scratch", config="-pi05"),
        Asked("recap_2_none", "recap_2", Sampling(indicator="")),
        Asked("recap_2_negative", "recap_2", Sampling(indicator="negative")),
        Asked("recap_2_beta_1.5", "recap_2", Sampling(beta=1.5)),
        Asked("recap_2_beta_2", "recap_2", Sampling(beta=2.0)),
        Asked("recap_2_beta_2.5", "recap_2", Sampling(beta=2.5)),
        Entry("recap_2_without_corrections", Recap(without="corrections"), last),
        Entry("recap_2_autonomous", Recap(without="corrected"), last),
        Entry("recap_2_threshold_10", arm("recap"), last, fraction=0.1),
        Entry("recap_2_threshold_40", arm("recap"), last, fraction=0.4),
        Entry("recap_2_from_last", arm("recap"), last, start="last"),
    ]


POLICIES: dict[str, Entry | Asked] = {one.name: one for one in _entries()}
ON_IMAGES = (
    "offline_rl_sft",
    "recap_1",
    "recap_2",
    "awr",
    "filtered_bc",
)  # what counts most, where it is dear


def chosen(words: str, observation: str) -> list[str]:
    """Names of policies from "all", "" (all, or on images the most important) or a list, in a fixed order.

    Raises ValueError on an unknown name.
    """
    names = [name for name in words.replace(",", " ").split() if name]
    if not names:
        names = list(ON_IMAGES if observation == "images" else POLICIES)
    if names == ["all"]:
        names = list(POLICIES)
    if unknown := sorted(set(names) - POLICIES.keys()):
        raise ValueError(f"no policy {unknown[0]!r} in the study (there are: {', '.join(POLICIES)})")
    return [name for name in POLICIES if name in names]
