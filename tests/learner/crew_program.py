"""What test_distributed.py has done by one process or several: trainings of made-up frames, one after the
other. It is asked for FOLDER JOB ... (forks.py).

A job is NAME:KIND:STRATEGY:ACCUMULATION. A fifth word, "die", has it kill itself at its 21st step, "broken"
makes an episode's images no numbers, "cuda" trains on GPUs.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import make_frames
from forks import serve

from recap_learner.training.distributed import crew, join
from recap_learner.training.policy_training import PolicyTraining, train_policy
from recap_learner.training.training import Schedule
from recap_learner.value.value_training import ValueTraining, train_value
from recap_policy.sizes import VALUE_CONFIGS

STEPS = 22
DIES_AT = 20


def without_dropout() -> None:
    """Dropout alone depends on how a batch is split."""
    tiny = VALUE_CONFIGS["value-tiny"]
    VALUE_CONFIGS["value-tiny"] = replace(tiny, backbone=replace(tiny.backbone, dropout=0.0))


def run(folder: Path, job: str) -> None:
    name, kind, strategy, accumulation, *rest = job.split(":")
    frames, dies = make_frames(folder / "vision"), rest == ["die"]
    device = "cuda" if rest == ["cuda"] else "cpu"
    if rest == ["broken"]:
        frames.tokens[frames.episode == 4] = np.nan

    def progress(fraction: float, _note: str) -> None:
        if dies and fraction >= (DIES_AT + 1) / STEPS:
            os.kill(os.getpid(), signal.SIGKILL)

    schedule = Schedule(STEPS, 12, 2e-3, warmup=4, save_every_s=0.0 if dies else 1e6)
    shared = {"schedule": schedule, "device": device, "precision": "float32", "strategy": strategy}
    shared["accumulation"] = int(accumulation)
    out = folder / name / "model"
    if kind == "policy":
        how = PolicyTraining(**shared, checkpointing=True)
        indicator = (np.arange(len(frames)) % 2).astype(np.int8)
        train_policy(frames, indicator, out, None, folder / "vision", how, 3, {}, progress)
    else:
        value = ValueTraining(**shared, check_every=8, folds=2)
        values = train_value(frames, out, None, value, 3, {}, progress).values
        if crew().first:
            (folder / name / "values.json").write_text(json.dumps({k: v.tolist() for k, v in values.items()}))


def work(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    without_dropout()
    with join():
        for job in words[1:]:
            run(Path(words[0]), job)


if __name__ == "__main__":
    serve(work)
