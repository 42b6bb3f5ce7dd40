"""The named configurations: how large they are, and that the large ones run, at their shapes but smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recap_policy.backbone import window_mask
from recap_policy.config import (
    BackboneConfig,
    ConfigError,
    ValueConfig,
    VisionConfig,
    VLAConfig,
    to_dict,
    value_config,
    value_from_dict,
    vla_config,
    vla_from_dict,
)
from recap_policy.parameters import count, table
from recap_policy.tokens import FIRST_WORD, Tokenizer
from recap_policy.value import ValueModel
from recap_policy.vla import VLA, Batch

WORDS = Tokenizer.fit(["insert the peg", "reach", "lift"], 128)
HORIZON = 50


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def test_sizes_are_those_of_the_paper() -> None:
    print(table())
    assert count("pi06")["expert"] == pytest.approx(0.86e9, rel=0.02)
    assert count("pi06")["decoder"] + count("pi06")["table"] == pytest.approx(3.88e9, rel=0.01)
    assert count("value-670m")["all"] == pytest.approx(0.67e9, rel=0.05)
    assert count("small")["decoder"] + count("small")["table"] == pytest.approx(268e6, rel=0.01)
    assert count("tiny")["all"] < 2e6 and count("value-tiny")["all"] < 1e6


def test_shapes_of_pi06_are_those_of_the_model_card() -> None:
    config = vla_config("pi06")
    assert (config.prefix.cameras, config.vision.image_size, config.vision.tokens) == (4, 448, 256)
    assert (config.horizon, config.insulate, config.prefix.state) == (50, True, "bins")
    assert [layer for layer in range(34) if not config.backbone.is_local(layer)] == [5, 11, 17, 23, 29]


@pytest.mark.parametrize("name", ["tiny", "small", "pi06"])
def test_a_policys_configuration_survives_json(name: str) -> None:
    assert vla_from_dict(to_dict(vla_config(name))) == vla_config(name)


@pytest.mark.parametrize("name", ["value-tiny", "value-670m"])
def test_a_values_configuration_survives_json(name: str) -> None:
    assert value_from_dict(to_dict(value_config(name))) == value_config(name)


def test_local_layers_without_a_window_are_refused() -> None:
    with pytest.raises(ConfigError, match="global_every is 6 and window None"):
        replace(vla_config("pi06").backbone, window=None)


def test_a_tower_that_gives_other_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="1024 tokens of width 1152, wanted 64"):
        config = value_config("value-670m")
        assert config.vision
        replace(config, vision=replace(config.vision, pool=1))


def _backbone(whole: BackboneConfig) -> BackboneConfig:
    """Seven layers, of which the sixth is global; a window shorter than the prompt."""
    return replace(whole, width=48, layers=7, head_dim=16, mlp=64, window=8, vocabulary=FIRST_WORD + 200)


def _vision(whole: VisionConfig) -> VisionConfig:
    size = 4 * whole.patch
    return replace(whole, image_size=size, width=32, layers=2, heads=4, mlp=48, pool=min(whole.pool, 2))


def _policy(name: str) -> VLAConfig:
    whole = vla_config(name)
    return replace(
        whole,
        vision=_vision(whole.vision),
        backbone=_backbone(whole.backbone),
        expert=replace(whole.expert, width=32, mlp=48),
        max_text=12,
    )


def _value() -> ValueConfig:
    whole = value_config("value-670m")
    assert whole.vision
    own = _vision(whole.vision)
    return replace(
        whole,
        vision=own,
        vision_width=own.width,
        vision_tokens=own.tokens,
        backbone=_backbone(whole.backbone),
    )


def _model(name: str) -> VLA:
    model = VLA(_policy(name), WORDS)
    for parameter in model.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)  # the gates open, so that all reaches the actions
    return model


def _batch(model: VLA, fast: Tensor | None = None) -> Batch:
    config = model.config
    size = config.vision.image_size
    images = torch.randint(0, 256, (2, config.prefix.cameras, size, size, 3), dtype=torch.uint8)
    return Batch(
        image_features=model.encode_images(images).detach(),
        state=torch.rand(2, 14) - 0.5,
        prompt=["insert the peg", "lift"],
        subtask=["reach", "lift it up"],
        indicator=torch.tensor([1, -1]),
        actions=torch.rand(2, HORIZON, 14),
        fast=fast,
    )


def _losses(model: VLA, batch: Batch) -> dict[str, Tensor]:
    return model.loss(batch, torch.Generator().manual_seed(1), draws=2, indicator_dropout=0.0)


FAST = torch.tensor([[700, 701, 702, 703, 704], [700, 705, 706, 0, 0]])


@pytest.mark.parametrize("name", ["small", "pi06"])
def test_large_policies_train_and_sample(name: str) -> None:
    model = _model(name)
    batch = _batch(model, FAST)
    assert batch.image_features.shape == (2, model.config.prefix.cameras, 4, 32)
    losses = _losses(model, batch)
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert set(losses) == {"loss", "flow", "subtask", "fast"}
    assert all(parameter.grad is not None for parameter in model.expert.parameters())
    sample = model.eval().sample(
        batch.image_features, batch.state, batch.prompt, beta=1.5, steps=2, subtask=["reach", "lift"]
    )
    assert sample.actions.shape == (2, HORIZON, 14) and bool(sample.actions.isfinite().all())


@pytest.mark.parametrize("name", ["small", "pi06"])
def test_decoding_within_windows_equals_reading_at_once(name: str) -> None:
    model = _model(name).eval()
    batch = _batch(model)
    noise = torch.randn(2, HORIZON, 14)
    arguments = (batch.image_features, batch.state, batch.prompt)
    plain = model.sample(*arguments, noise=noise, steps=2, beta=1.5)
    guessed = model.sample(*arguments, noise=noise, steps=2, beta=1.5, guess=plain.subtask)
    assert guessed.subtask == plain.subtask
    torch.testing.assert_close(guessed.actions, plain.actions, atol=1e-5, rtol=1e-4)
    for row in range(2):  # one prompt is padded to the other's length
        one = slice(row, row + 1)
        alone = model.sample(*(a[one] for a in arguments), noise=noise[one], steps=2, beta=1.5)
        torch.testing.assert_close(alone.actions, plain.actions[one], atol=1e-5, rtol=1e-4)


def test_the_expert_is_blind_to_fast_tokens() -> None:
    model = _model("pi06")
    batch = _batch(model)
    without = _losses(model, batch)
    one, other = (_losses(model, replace(batch, fast=fast)) for fast in (FAST, FAST + (FAST != 0) * 7))
    assert one["flow"] == other["flow"] == pytest.approx(float(without["flow"]), abs=1e-6)
    assert one["subtask"] == other["subtask"] == pytest.approx(float(without["subtask"]), abs=1e-6)
    assert one["fast"] != other["fast"]


def test_padding_of_fast_tokens_changes_nothing() -> None:
    model = _model("pi06")
    batch = _batch(model)
    longer = torch.cat([FAST, torch.zeros(2, 3, dtype=torch.int64)], 1)
    one, other = (_losses(model, replace(batch, fast=fast)) for fast in (FAST, longer))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_fast_tokens_teach_the_backbone_and_the_flow_does_not() -> None:
    model = _model("pi06")
    model.config = replace(model.config, subtask_weight=0.0)
    weight = model.backbone.layers[0].attention.qkv.weight
    batch = _batch(model)
    _losses(model, batch)["loss"].backward()
    assert weight.grad is None or weight.grad.abs().max() == 0
    _losses(model, replace(batch, fast=FAST))["loss"].backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_fast_tokens_are_conditioned_on_the_indicator() -> None:
    model = _model("pi06")
    batch = _batch(model, FAST)
    positive, negative = (
        _losses(model, replace(batch, indicator=torch.full((2,), code))) for code in (1, 0)
    )
    assert positive["fast"] != negative["fast"] and positive["subtask"] == negative["subtask"]


def test_a_window_ends_behind_and_not_ahead() -> None:
    positions = torch.arange(5)[None]
    assert window_mask(positions, positions, 2)[0].int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_the_large_value_function_trains_on_its_own_tower() -> None:
    model = ValueModel(_value(), WORDS)
    assert model.vision
    size = model.vision.config.image_size
    images = torch.randint(0, 256, (2, 4, size, size, 3), dtype=torch.uint8)
    features = model.encode_images(images)
    losses = model.loss(features, torch.rand(2, 14), ["lift", "insert the peg"], torch.tensor([-0.2, -0.7]))
    losses["loss"].backward()
    assert model.vision.positions.grad is not None and model.vision.positions.grad.abs().max() > 0
    value = model.eval().value(features, torch.rand(2, 14), ["lift", "insert the peg"])
    assert value.shape == (2,) and bool(((value > -1) & (value < 0)).all())


def test_a_value_function_without_a_tower_says_so() -> None:
    with pytest.raises(ValueError, match="no tower of its own"):
        ValueModel(value_config("value-tiny")).encode_images(torch.zeros(1, 3, 96, 96, 3, dtype=torch.uint8))


def test_bfloat16_weights_train_and_sample_near_float32() -> None:
    model = _model("pi06").eval()
    batch = _batch(model, FAST)
    noise = torch.randn(2, HORIZON, 14)
    arguments = (batch.image_features, batch.state, batch.prompt)

    def run() -> tuple[Tensor, Tensor]:
        actions = model.sample(*arguments, noise=noise, steps=2, subtask=["reach", "lift"]).actions
        return _losses(model, batch)["loss"], actions

    loss, actions = run()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    rough, rough_actions = run()
    assert rough.dtype == rough_actions.dtype == torch.float32
    torch.testing.assert_close(rough, loss, rtol=0.05, atol=0.0)
    assert (rough_actions - actions).abs().max() < 0.1 * (actions - batch.state[:, None]).abs().max()
