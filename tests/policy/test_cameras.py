"""Robots with fewer cameras than the model: what stands in an absent one's place is padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import gemma_backbone, gemma_policy, opened, siglip, tiny_policy
from torch import Tensor

from recap_policy.prefix import InputError, fill_slots
from recap_policy.sizes import value_config
from recap_policy.text import GemmaTokenizer, TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vla import VLA, Batch

pytestmark = pytest.mark.usefixtures("one_thread")
ABSENT = 1  # a camera in the midst, so that those behind it move up


@pytest.fixture(params=["tiny", "pi06"])
def make(request: pytest.FixtureRequest, gemma_file: Path) -> Callable[[int], VLA]:
    """A policy for so many cameras; weights depend on nothing else."""

    def made(cameras: int) -> VLA:
        torch.manual_seed(0)
        if request.param == "tiny":
            config = tiny_policy()
            tokenizer: TinyTokenizer | GemmaTokenizer = TinyTokenizer.fit(["insert the peg"], 128)
        else:
            config, tokenizer = gemma_policy("pi06"), GemmaTokenizer(gemma_file, 1000)
        return VLA(replace(config, prefix=replace(config.prefix, cameras=cameras)), tokenizer)

    return made


def _without(model: VLA | ValueModel, camera: int) -> dict[str, Tensor]:
    """The weights of the model with one camera less."""
    weights = dict(model.state_dict())
    places = weights["prefix.camera"]
    weights["prefix.camera"] = places[torch.arange(len(places)) != camera]
    return weights


def _pair(make: Callable[[int], VLA]) -> tuple[VLA, VLA, Batch]:
    """A model of four cameras, the same of three, and a batch for the larger, its second camera absent."""
    four, three = opened(make(4)), make(3)
    state = torch.rand(3, 14) - 0.5
    actions = state[:, None] + torch.randn(3, 1, 14) * 0.3 * torch.linspace(0, 1, 50)[:, None]
    four.fit_normalizers(actions, state, torch.zeros(14, dtype=torch.bool))
    three.load_state_dict(_without(four, ABSENT))
    three.fast = four.fast
    batch = Batch(
        image_features=torch.randn(3, *four.prefix.image_shape),
        state=state,
        prompt=["insert the peg", "pick up", "insert the peg"],
        subtask=["pick up", "pick up the peg", ""],
        indicator=torch.tensor([1, -1, 0]),
        actions=actions,
        camera_mask=(torch.arange(4) != ABSENT).expand(3, -1),
    )
    return four, three, batch


def _smaller(batch: Batch) -> Batch:
    there = torch.arange(4) != ABSENT
    return replace(batch, image_features=batch.image_features[:, there], camera_mask=None)


def _losses(model: VLA, batch: Batch) -> dict[str, Tensor]:
    losses = model.loss(batch, torch.Generator().manual_seed(1), draws=2)
    losses["loss"].backward()
    return losses


def test_a_model_with_an_absent_camera_is_the_model_without_that_camera(make: Callable[[int], VLA]) -> None:
    """Losses, gradients, written sub-tasks and chunks: positions close up behind it."""
    four, three, batch = _pair(make)
    one, other = _losses(four, batch), _losses(three, _smaller(batch))
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, msg=name)
    assert four.prefix.camera.grad is not None and not four.prefix.camera.grad[ABSENT].any()
    for found, wanted in zip(four.backbone.parameters(), three.backbone.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, atol=1e-5, rtol=1e-3)
    noise = torch.randn(3, four.config.action_tokens, 14)
    for subtask in (None, ["pick up", "peg", "insert"]):
        how = {"noise": noise, "beta": 1.5, "steps": 2, "subtask": subtask}
        large, small = (
            model.eval().sample(b.image_features, b.state, b.prompt, camera_mask=b.camera_mask, **how)
            for model, b in ((four, batch), (three, _smaller(batch)))
        )
        assert large.subtask == small.subtask
        torch.testing.assert_close(large.actions, small.actions, atol=1e-4, rtol=1e-3)


def test_what_an_absent_camera_sees_changes_nothing(make: Callable[[int], VLA]) -> None:
    four, _, batch = _pair(make)
    before = _losses(four, batch)
    for value in (7.0, torch.nan):
        features = batch.image_features.clone()
        features[:, ABSENT] = value
        after = _losses(four, replace(batch, image_features=features))
        assert all(torch.equal(after[name], value) for name, value in before.items())
    seen = _losses(four, replace(batch, camera_mask=None))
    assert seen["flow"] != before["flow"] and seen["subtask"] != before["subtask"]


def test_examples_of_different_robots_share_a_batch(make: Callable[[int], VLA]) -> None:
    four, _, batch = _pair(make)
    mask = torch.tensor([[True] * 4, [True, False, True, True], [False, True, True, False]])
    noise = torch.randn(3, four.config.action_tokens, 14)
    four.eval()

    def chunks(rows: slice) -> Tensor:
        features, state = batch.image_features[rows], batch.state[rows]
        how = {"noise": noise[rows], "steps": 2, "camera_mask": mask[rows]}
        return four.sample(features, state, batch.prompt[rows], **how).actions

    together = chunks(slice(None))
    for row in range(3):
        torch.testing.assert_close(chunks(slice(row, row + 1))[0], together[row], atol=1e-4, rtol=1e-3)


def test_a_value_function_knows_absent_cameras_too(gemma_file: Path) -> None:
    whole = value_config("value-670m")
    assert whole.vision
    own = siglip(whole.vision)
    config = replace(
        whole, vision=own, vision_width=own.width, vision_tokens=own.tokens,
        backbone=gemma_backbone(whole.backbone),
    )  # fmt: skip
    four, three = (
        ValueModel(
            replace(config, prefix=replace(config.prefix, cameras=cameras)), GemmaTokenizer(gemma_file, 1000)
        ).eval()
        for cameras in (4, 3)
    )
    three.load_state_dict(_without(four, 3))
    images = torch.randint(0, 256, (2, 3, own.image_size, own.image_size, 3), dtype=torch.uint8)
    features, state = four.encode_images(images), torch.rand(2, 14)
    prompts, returns = ["pick up", "insert the peg"], torch.tensor([-0.2, -0.7])
    padded, mask = fill_slots(features, 4)
    for name, wanted in three.loss(features, state, prompts, returns).items():
        found = four.loss(padded, state, prompts, returns, camera_mask=mask)[name]
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        four.value(padded, state, prompts, camera_mask=mask), three.value(features, state, prompts)
    )


def test_slots_are_filled_behind_the_robots_own_cameras() -> None:
    features = torch.rand(2, 3, 5, 7)
    padded, mask = fill_slots(features, 4)
    assert padded.shape == (2, 4, 5, 7) and torch.equal(padded[:, :3], features) and not padded[:, 3].any()
    assert mask is not None and mask.tolist() == [[True, True, True, False]] * 2
    assert fill_slots(features, 3)[1] is None and fill_slots(features, 3)[0] is features
    with pytest.raises(InputError, match="features of 3 cameras, wanted at most 2"):
        fill_slots(features, 2)


@pytest.mark.parametrize("mask", [torch.ones(3, 3).bool(), torch.ones(1, 4).bool(), torch.ones(3, 4)])
def test_masks_that_do_not_fit_are_refused(make: Callable[[int], VLA], mask: Tensor) -> None:
    four, _, batch = _pair(make)
    with pytest.raises(InputError, match=r"camera_mask is \(.*\) torch\..*, wanted \(3, 4\) torch.bool"):
        four.loss(replace(batch, camera_mask=mask))
