"""Checkpoints come back as they were, and refuse to come back as anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recap_policy.checkpoint import (
    CheckpointError,
    load_policy,
    load_value,
    load_vision,
    read,
    save_policy,
    save_value,
    save_vision,
    tower_identity,
    vision_identity,
)
from recap_policy.config import ConfigError, value_config, vla_config
from recap_policy.runtime import ObservationError, Policy
from recap_policy.text import TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vla import VLA
from recap_station.contract import Camera, load_station

STATION = load_station("aloha")
WORDS = TinyTokenizer.fit(["insert the peg", "reach"], 128)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, VLA]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = VLA(vla_config("tiny"), WORDS)
    states = torch.rand(64, 14)
    chunks = states[:, None] + torch.randn(64, 50, 14).cumsum(1) * 0.01
    model.fit_normalizers(chunks, states, torch.from_numpy(STATION.is_gripper))
    save_policy(
        model, folder / "policy", {"parent": None, "steps": 3}, station=STATION, prompts=["insert the peg"]
    )
    critic = ValueModel(value_config("value-tiny"), WORDS)
    critic.fit_normalizers(states)
    save_value(critic, folder / "value", {}, station=STATION, tower=tower_identity(model.vision))
    return folder / "policy", folder / "value", model


def _images(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 255, (96, 96, 3), np.uint8) for name in STATION.camera_names}


def test_weights_statistics_and_vocabulary_come_back(saved: tuple[Path, Path, VLA]) -> None:
    folder, _, model = saved
    loaded, checkpoint = load_policy(folder, STATION), read(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.tokenizer.words == WORDS.words
    assert loaded.config == model.config
    assert checkpoint.prompts == ("insert the peg",)
    assert checkpoint.lineage == {"parent": None, "steps": 3}
    assert checkpoint.station == STATION


def test_saving_replaces_the_folder_and_leaves_nothing_else(
    saved: tuple[Path, Path, VLA], tmp_path: Path
) -> None:
    model = saved[2]
    first = save_policy(model, tmp_path / "p", {}, station=STATION)
    assert save_policy(model, tmp_path / "p", {}, station=STATION) == first
    assert save_policy(model, tmp_path / "p", {}, station=STATION, prompts=["other"]) != first
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_checkpoint_of_another_robot_is_refused(saved: tuple[Path, Path, VLA]) -> None:
    joints = (replace(STATION.joints[0], name="left_base"), *STATION.joints[1:])
    with pytest.raises(CheckpointError, match="found joint 'left_waist', wanted 'left_base'"):
        load_policy(saved[0], replace(STATION, joints=joints))
    cameras = (Camera("base_camera", 128, 96, 30.0), *STATION.cameras[1:])
    with pytest.raises(
        CheckpointError, match="found camera base_camera of 96x96, wanted base_camera of 128x96"
    ):
        load_policy(saved[0], replace(STATION, cameras=cameras))


def test_missing_damaged_and_mistaken_checkpoints_are_refused(
    saved: tuple[Path, Path, VLA], tmp_path: Path
) -> None:
    _, value, model = saved
    with pytest.raises(CheckpointError, match=r"no checkpoint there: wanted config\.json"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="checkpoint of a value, wanted a policy"):
        load_policy(value)
    save_policy(model, tmp_path / "p", {}, station=STATION)
    weights = tmp_path / "p" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged: contents hash to"):
        load_policy(tmp_path / "p")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_policy(tmp_path / "p")
    (tmp_path / "p" / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, wanted 1"):
        load_policy(tmp_path / "p")


def test_value_function_of_another_tower_is_refused(saved: tuple[Path, Path, VLA]) -> None:
    with pytest.raises(CheckpointError, match=r"image tower .* wanted the policy's 0123"):
        load_value(saved[1], STATION, tower="0123")


def test_loaded_policy_gives_chunks_within_the_limits_and_a_value(saved: tuple[Path, Path, VLA]) -> None:
    policy = Policy.load(saved[0], saved[1], STATION, threads=1)
    chunk = policy.infer(_images(), STATION.home, "insert the peg", beta=1.5)
    assert chunk.positions.shape == (50, 14)
    assert chunk.positions.dtype == np.float64
    assert (chunk.positions >= STATION.lower).all() and (chunk.positions <= STATION.upper).all()
    assert chunk.value is not None and -1 <= chunk.value <= 0
    policy.reset(7)
    once = policy.infer(_images(), STATION.home, "insert the peg").positions
    policy.reset(7)
    assert np.array_equal(once, policy.infer(_images(), STATION.home, "insert the peg").positions)


def test_observations_that_do_not_fit_are_refused(saved: tuple[Path, Path, VLA]) -> None:
    policy = Policy.load(saved[0], threads=1)
    images = _images()
    with pytest.raises(ObservationError, match="no image of camera left_wrist_camera"):
        policy.infer({"base_camera": images["base_camera"]}, STATION.home, "insert the peg")
    wrong = {**images, "base_camera": np.zeros((48, 96, 3), np.uint8)}
    with pytest.raises(
        ObservationError, match=r"image of base_camera is \(48, 96, 3\) uint8, wanted \(96, 96, 3\)"
    ):
        policy.infer(wrong, STATION.home, "insert the peg")
    state = STATION.home.copy()
    state[3] = np.nan
    with pytest.raises(ObservationError, match="state of joint left_forearm_roll is nan"):
        policy.infer(images, state, "insert the peg")
    with pytest.raises(ObservationError, match=r"states are \(1, 7\), wanted \(1, 14\)"):
        policy.infer(images, STATION.home[:7], "insert the peg")


def test_misspelt_configuration_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        vla_config("tinny")


def test_a_tower_is_the_same_alone_and_in_its_policy(saved: tuple[Path, Path, VLA], tmp_path: Path) -> None:
    folder, _, model = saved
    save_vision(model.vision, model.config, tmp_path / "vision", {})
    assert vision_identity(tmp_path / "vision") == vision_identity(folder) == vision_identity(saved[1])
    tower = load_vision(tmp_path / "vision")
    images = torch.from_numpy(np.stack(list(_images().values())))
    with torch.no_grad():
        torch.testing.assert_close(tower(images), model.vision(images))
