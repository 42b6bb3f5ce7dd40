"""Frames of a few made-up attempts, whose image tokens tell how far the attempt has come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recap_learner.data.episodes import Episode, EpisodeInfo
from recap_learner.data.frames import Frames
from recap_policy.checkpoint import save_vision, vision_identity
from recap_policy.sizes import vla_config
from recap_policy.vision import VisionTower
from recap_station.contract import load_station, load_task

TICKS = 300


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision(tmp_path_factory.mktemp("vision") / "vision")


@pytest.fixture(scope="session")
def frames(vision: Path) -> Frames:
    return make_frames(vision)


def make_vision(folder: Path) -> Path:
    """The folder of a tower that has learnt nothing."""
    torch.manual_seed(0)
    config = vla_config("tiny")
    save_vision(VisionTower(config.vision), config, folder, {})
    return folder


def make_frames(vision: Path) -> Frames:
    rng = np.random.default_rng(0)
    episodes = [_episode(index, rng) for index in range(6)]
    tick = np.tile(np.arange(0, TICKS, 5), len(episodes))
    episode = np.repeat(np.arange(len(episodes)), TICKS // 5)
    way = rng.normal(size=(2, 96)) / 4
    tokens = rng.normal(size=(len(tick), 3, 2, 96)) * 0.3 + (tick / TICKS)[:, None, None, None] * way
    state = np.stack([episodes[e].state[t] for e, t in zip(episode, tick, strict=True)])
    return Frames(episodes, vision_identity(vision), tokens.astype(np.float16), state, episode, tick)


def _episode(index: int, rng: np.random.Generator) -> Episode:
    station = load_station("aloha")
    outcome = "success" if index % 2 else "failure"
    info = EpisodeInfo(
        f"e{index}", "", outcome, "", "rollout", "", index, load_task("handover_insert"), station
    )
    command = (station.home + np.cumsum(rng.normal(0, 0.01, (TICKS, station.dof)), 0)).astype(np.float32)
    nothing = np.full_like(command, np.nan)
    return Episode(
        info=info,
        time_ns=np.arange(TICKS) * 20_000_000,
        state=command,
        command=command,
        policy_command=command,
        teleop_command=nothing,
        source=np.full(TICKS, "policy"),
        correction=np.zeros(TICKS, bool),
        stage=np.where(np.arange(TICKS) < TICKS // 2, "reach", "insert"),
        gap=np.zeros(TICKS, bool),
    )
