"""States of things in the place of images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recap_policy.checkpoint import load_vision, save_vision, tower_identity
from recap_policy.config import ObjectConfig
from recap_policy.objects import ObjectTower
from recap_policy.prefix import InputError
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA


def test_a_millimetre_can_be_told_in_the_tokens() -> None:
    tower = ObjectTower(ObjectConfig(features=14))
    here = torch.full((1, 14), 0.3)
    there = here + 0.001 / 0.4

    tokens, moved = tower(here), tower(there)

    assert tokens.shape == (1, 2, 117)
    assert float((tokens - moved).abs().max()) > 0.01
    assert float(tower(here * 0 + 1e-9).abs().max()) <= 1.0


def test_a_tower_is_told_from_that_of_another_task_and_read_back(tmp_path) -> None:
    one, other = (ObjectTower(ObjectConfig(n)) for n in (20, 21))
    assert tower_identity(one) != tower_identity(other)

    save_vision(one, replace(vla_config("tiny-state"), vision=one.config), tmp_path / "vision", {})
    found = load_vision(tmp_path / "vision")

    assert isinstance(found, ObjectTower) and found.config == one.config


def test_states_of_another_task_are_refused() -> None:
    model = VLA(replace(vla_config("tiny-state"), vision=ObjectConfig(20)))
    with pytest.raises(InputError, match=r"states of things \(2, 1, 19\), wanted \(examples, 1, 20\)"):
        model.encode_images(torch.zeros(2, 1, 19))
