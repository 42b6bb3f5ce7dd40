"""Arms: ways to draw a policy from the same data, one a file. Another one is a file and a line here."""

from __future__ import annotations

from recap_learner.arms.awr import AWR
from recap_learner.arms.base import Arm, ArmError, Judged, Lesson
from recap_learner.arms.clone_all import CloneAll
from recap_learner.arms.clone_best import CloneBest
from recap_learner.arms.clone_positive import ClonePositive
from recap_learner.arms.hg_dagger import HGDAgger
from recap_learner.arms.ppo import PPO
from recap_learner.arms.recap import Recap
from recap_learner.arms.rl_pretrained import RLPretrained
from recap_learner.arms.sft import SFT
from recap_learner.arms.supervised import Supervised

__all__ = ["ARMS", "Arm", "ArmError", "Judged", "Lesson", "arm"]

_ALL: tuple[Arm, ...] = (
    Recap(),
    Supervised(),
    RLPretrained(),
    SFT(),
    AWR(),
    PPO(),
    CloneAll(),
    CloneBest(),
    ClonePositive(),
    HGDAgger(),
)
ARMS: dict[str, Arm] = {one.name: one for one in _ALL}


def arm(name: str) -> Arm:
    """The arm of that name, with its defaults. Raises ArmError with the names there are."""
    if name not in ARMS:
        raise ArmError(f"no arm {name!r} (there are: {', '.join(ARMS)})")
    return ARMS[name]
