"""A loaded policy: how a chunk goes on from the last, how often a sub-task is predicted, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recap_policy.checkpoint import save_policy
from recap_policy.chunks import Ahead
from recap_policy.interface import Sampling
from recap_policy.runtime import Policy
from recap_policy.sampling import Sample
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA
from recap_station.contract import ContractError, load_station

STATION = load_station("aloha")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runtime")
    save_policy(VLA(vla_config("tiny")), folder / "policy", {}, station=STATION)
    return Policy.load(folder / "policy", threads=1)


@pytest.fixture
def policy(loaded: Policy) -> Policy:
    loaded.reset(0)
    return loaded


def _images() -> dict[str, np.ndarray]:
    return {c.name: np.full((c.height, c.width, 3), 90, np.uint8) for c in STATION.cameras}


def test_a_chunk_goes_on_from_the_last_in_either_way(policy: Policy) -> None:
    ahead = Ahead(np.repeat(STATION.home[None] + 0.01, 30, 0).clip(STATION.lower, STATION.upper), 4)

    def chunk(rtc: str, ahead: Ahead | None = ahead, beta: float = 1.0) -> np.ndarray:
        policy.reset(3)
        how = Sampling(beta, rtc=rtc)
        return policy.infer(_images(), STATION.home, "insert the peg", how, ahead).positions

    off, trained, painted = (chunk(rtc) for rtc in ("off", "trained", "inpainting"))
    assert np.array_equal(off, chunk("auto", None))  # nothing to go on from
    assert np.array_equal(trained, chunk("auto"))  # tiny is trained to
    for found in (trained, painted, chunk("inpainting", beta=1.5)):
        np.testing.assert_allclose(found[:4], ahead.positions[:4], atol=1e-6)
    assert np.abs(off[:4] - ahead.positions[:4]).max() > 0.01
    # In-painting is drawn to all that is known, what is trained only to what is frozen.
    rest = [np.abs(found[4:10] - ahead.positions[4:10]).mean() for found in (painted, trained)]
    assert rest[0] < 0.5 * rest[1]
    few = Ahead(ahead.positions[:2], 2)
    np.testing.assert_allclose(chunk("inpainting", few)[:2], few.positions, atol=1e-6)


def test_a_policy_that_was_not_trained_to_go_on_is_painted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_policy(VLA(replace(vla_config("tiny"), committed=0)), tmp_path / "p", {}, station=STATION)
    policy = Policy.load(tmp_path / "p", threads=1)
    ahead = Ahead(np.repeat(STATION.home[None], 30, 0), 4)
    policy.reset(3)
    auto = policy.infer(_images(), STATION.home, "insert the peg", Sampling(), ahead).positions
    np.testing.assert_allclose(auto[:4], ahead.positions[:4], atol=1e-6)
    with pytest.raises(ContractError, match=r"rtc is 'trained', but policy \w+ was not trained to"):
        policy.infer(_images(), STATION.home, "insert the peg", Sampling(rtc="trained"))


def test_metadata_and_the_rate_of_subtasks_reach_the_model(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def sample(self: VLA, features: Tensor, *_: Any, **how: Any) -> Sample:
        asked.append(how)
        return Sample(torch.zeros(1, 50, 14), how["subtask"] or ["reach"])

    monkeypatch.setattr(VLA, "sample", sample)
    for _ in range(4):
        policy.infer(_images(), STATION.home, "insert", Sampling(metadata="fast", subtask_every=3))
    assert [how["metadata"] for how in asked] == [["fast"]] * 4
    assert [how["subtask"] for how in asked] == [None, ["reach"], ["reach"], None]
    assert [how["guess"] for how in asked] == [None, None, None, ["reach"]]
    policy.reset()
    policy.infer(_images(), STATION.home, "insert")
    assert asked[-1]["subtask"] is asked[-1]["guess"] is asked[-1]["metadata"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beta": -1.0}, "beta is -1.0, wanted 0 .. 10"),
        ({"beta": float("nan")}, "beta is nan, wanted 0 .. 10"),
        ({"steps": 0}, "steps is 0, wanted 1 .. 100"),
        ({"subtask_every": 0}, "subtask_every is 0, wanted 1 .. 1000"),
        ({"indicator": "good"}, "indicator is 'good', wanted one of"),
        ({"rtc": "inpaint"}, "rtc is 'inpaint', wanted one of"),
    ],
)
def test_sampling_that_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        Sampling(**given)


def test_a_robot_with_fewer_cameras_than_the_model_is_served(tmp_path: Path) -> None:
    """Four slots, three cameras: what stands in the fourth is masked."""
    torch.manual_seed(0)
    config = vla_config("tiny")
    model = VLA(replace(config, prefix=replace(config.prefix, cameras=4)))
    save_policy(model, tmp_path / "p", {}, station=STATION)
    policy = Policy.load(tmp_path / "p", threads=1)
    chunk = policy.infer(_images(), STATION.home, "insert the peg").positions
    assert chunk.shape == (50, 14) and np.isfinite(chunk).all()
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "camera" in name:
                parameter[3] = 9.0  # of the slot that is masked
    policy.reset(0)
    assert np.array_equal(chunk, policy.infer(_images(), STATION.home, "insert the peg").positions)
