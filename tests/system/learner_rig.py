"""A learning run small enough for seconds: made-up bags whose joints and pictures tell progress and outcome,
and models pre-trained on a few of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from recap_learner.rounds import Rounds
from recap_learner.stages import Stages
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.training.training import Schedule
from recap_learner.value.labels import LabelRule
from recap_learner.value.value_training import ValueTraining
from recap_policy.checkpoint import save_vision
from recap_policy.sizes import vla_config
from recap_policy.vision import VisionTower
from recap_station import topics
from recap_station.bags import BagWriter, compressed_image, joint_state
from recap_station.contract import load_station, load_task

STATION = load_station("aloha")
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 20_000_000
FEW = Schedule(steps=20, batch=16, warmup=4)


def make_task(folder: Path, name: str = "quick") -> Path:
    """A task whose attempts take 3 s at most, so that returns spread over short bags. name: of one that is
    simulated, where policies shall be tried."""
    about = load_task("handover_insert").to_dict()
    about |= {"name": name, "time_limit_s": 3.0, "max_episode_s": 3.0, "stages": list(about["stages"])}
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(about))
    return path


def attempt(
    bag: Path,
    task: Path | str,
    seed: int,
    outcome: str = "success",
    source: str = "rollout",
    close: bool = True,
) -> BagWriter:
    """One attempt's bag. outcome: "" for none; close False: its recorder is still at it."""
    rng, won = np.random.default_rng(seed), outcome == "success"
    ticks = 150 if not won else int(rng.integers(80, 130))
    writer = BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED)
    about = {
        "recap.task": json.dumps(load_task(task).to_dict()),
        "recap.station": json.dumps(STATION.to_dict()),
        "recap.source": source,
        "recap.seed": str(seed),
    }
    writer.set_metadata({**about, **({"recap.outcome": outcome} if outcome else {})})
    for tick in range(ticks):
        now = START_NS + seed * 10**10 + tick * PERIOD_NS
        state = STATION.home + rng.normal(0, 0.01, STATION.dof)
        state[:4] += 0.4 * tick / ticks  # progress, and whether it goes wrong, can be told from everything
        state[7:11] += 0.0 if won else 0.4
        cdr = joint_state(now, STATION.joint_names, state, "policy")
        for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
            writer.write(topic, now, cdr)
        if tick % 5 == 0:
            colour = (60 + 150 * tick // ticks, 100, 30 if won else 220)
            jpeg = cv2.imencode(".jpg", np.full((96, 96, 3), colour, np.uint8))[1].tobytes()
            for camera in STATION.camera_names:
                writer.write(topics.image_topic(camera), now, compressed_image(now, jpeg))
    if close:
        writer.close()
    return writer


def attempts(folder: Path, task: Path | str, seeds: Sequence[int], **how: Any) -> None:
    """Bags of which every second one, of an odd seed, is a failure."""
    for seed in seeds:
        outcome = how.get("outcome", "failure" if seed % 2 else "success")
        attempt(folder / f"attempt_{seed:03d}", task, seed, **{**how, "outcome": outcome})


def pretrain(run: Path, task: Path | str) -> None:
    """Tower, value and policy of a run, from four demonstrations; of each as little as there can be."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for seed in range(4):
        attempt(run / "demonstrations" / f"demo_{seed}", task, seed, source="demonstration")
    config, vision = vla_config("tiny"), run / "pretrain" / "vision"
    save_vision(VisionTower(config.vision), config, vision, {})
    value, policy = ValueTraining(schedule=FEW), PolicyTraining(schedule=FEW, draws=1)
    with Stages(run) as stages:
        do = Rounds(stages, None, [""])
        do.take(stages.given("tower", [vision]))
        data = [do.episodes("", 0, stages.given("demonstrations", [run / "demonstrations"]))]
        v = do.value(None, 0, data, None, value, 0)
        labels = do.labels(None, 0, data, v, LabelRule(lookahead=0, positive_fraction=0.3))
        pi = do.policy(None, 0, data, None, "recap", labels, policy, 0)
        do.policy("", 0, data, pi, "sft", None, replace(policy, schedule=replace(FEW, steps=2)), 0)
