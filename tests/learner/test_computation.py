"""Where and in which numbers models are trained: near the same losses, exact restarts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recap_learner.data.frames import Frames
from recap_learner.training.policy_training import PolicyTraining, train_policy
from recap_learner.training.training import Computation, Schedule
from recap_learner.value.value_training import EarlyStop, ValueTraining, train_value
from recap_policy.checkpoint import load_policy, read
from recap_policy.sizes import value_config, vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vla import VLA, Batch
from recap_station.contract import ContractError

POLICY = PolicyTraining(schedule=Schedule(steps=24, batch=12, learning_rate=2e-3, warmup=4))
VALUE = ValueTraining(
    schedule=Schedule(steps=24, batch=24, learning_rate=3e-3, warmup=4), check_every=8, patience=2
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _policy(frames: Frames, vision: Path, out: Path, how: PolicyTraining, progress=None, start=None):
    indicator = (np.arange(len(frames)) % 2).astype(np.int8)
    return train_policy(frames, indicator, out, start, vision, how, 3, {}, progress)


def _value(frames: Frames, _vision: Path, out: Path, how: ValueTraining, progress=None):
    train_value(frames, out, None, how, 3, {}, progress)
    return json.loads((out.parent / "training" / f"{out.name}.fold0" / "log.json").read_text())


TRAININGS = pytest.mark.parametrize(("train", "how"), [(_policy, POLICY), (_value, VALUE)])


@TRAININGS
def test_training_in_bfloat16_learns_as_in_float32(frames, vision, tmp_path, train, how) -> None:
    logs = {
        precision: train(frames, vision, tmp_path / precision, replace(how, precision=precision))
        for precision in ("float32", "bfloat16")
    }
    for log in logs.values():
        assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    for wide, narrow in zip(logs["float32"], logs["bfloat16"], strict=True):
        assert narrow["loss"] == pytest.approx(wide["loss"], rel=0.05)
        assert narrow["loss"] != wide["loss"]
    assert read(tmp_path / "float32").identity != read(tmp_path / "bfloat16").identity


@TRAININGS
def test_a_killed_training_ends_in_the_same_checkpoint(frames, vision, tmp_path, train, how) -> None:
    """Noise, dropout and the early stop go on where they were."""
    how = replace(how, precision="bfloat16", checkpointing=True)
    each_step = replace(how, schedule=replace(how.schedule, save_every_s=0))

    notes = iter(range(9))

    def die(_fraction: float, _note: str) -> None:
        if next(notes) == 1:  # at step 20, which is not saved
            raise KeyboardInterrupt

    train(frames, vision, tmp_path / "whole" / "model", how)
    with pytest.raises(KeyboardInterrupt):
        train(frames, vision, tmp_path / "broken" / "model", each_step, die)
    assert list((tmp_path / "broken").rglob("state.pt"))
    train(frames, vision, tmp_path / "broken" / "model", how)
    whole, broken = (read(tmp_path / name / "model") for name in ("whole", "broken"))
    assert whole.identity == broken.identity


def test_the_early_stop_looks_without_dropout_and_remembers_the_best() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    looks = iter([3.0, 2.0, 4.0, 2.5, 1.0])

    def check() -> float:
        assert not model.training
        return next(looks)

    stop = EarlyStop(model, check, check_every=2, patience=2)
    for step in range(4):
        nn.init.constant_(model[0].weight, step)
        assert not stop(step)
    assert stop.least == 2.0 and float(stop.weights["0.weight"]) == 3.0 and model.training
    again = EarlyStop(model, check, check_every=2, patience=2)
    again.load_state_dict(stop.state_dict())
    assert [again(step) for step in range(4, 8)] == [False, False, False, True]


def _made() -> tuple[VLA, Batch]:
    torch.manual_seed(0)
    model = VLA(vla_config("tiny"), TinyTokenizer.fit(["insert the peg", "reach"], 128))
    for parameter in model.expert.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)  # the gates open, so that all reaches the actions
    state = torch.rand(8, 14) - 0.5
    batch = Batch(
        image_features=torch.randn(8, 3, 2, 96),
        state=state,
        prompt=["insert the peg"] * 8,
        subtask=["reach"] * 8,
        indicator=torch.arange(8) % 2,
        actions=state[:, None] + torch.randn(8, 50, 14).cumsum(1) * 0.01,
    )
    return model, batch


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(precision: str) -> None:
    found: dict[bool, tuple[dict[str, Tensor], int]] = {}
    for checkpointing in (False, True):
        model, batch = _made()
        config = model.config
        placement = Computation(device="cpu", precision=precision, checkpointing=checkpointing).prepare(model)
        assert model.config == config  # what is saved
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        half = placement.dtype != torch.float32
        seen = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", placement.dtype, enabled=half), seen:
            loss = model.loss(batch, torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        activations = sum(size for place, size in kept.items() if place not in weights)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[checkpointing] = gradients, activations
    (plain, all_kept), (again, few_kept) = found[False], found[True]
    print(f"{precision}: activations kept {all_kept / 1e6:.1f} MB, checkpointing {few_kept / 1e6:.1f} MB")
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
    assert few_kept < 0.5 * all_kept


def test_what_is_trained_is_float32_and_what_is_frozen_keeps_its_type() -> None:
    model, _ = _made()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    model.vision.requires_grad_(False)
    Computation(device="cpu", precision="bfloat16").prepare(model)
    assert {p.dtype for p in model.vision.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_checkpointing_reaches_the_value_function_too() -> None:
    model = ValueModel(value_config("value-tiny"))
    Computation(device="cpu", checkpointing=True).prepare(model)
    assert model.backbone.config.recompute and not model.config.backbone.recompute


def test_finetuning_keeps_the_tower_that_the_tokens_came_from(frames, vision, tmp_path) -> None:
    """Whatever the type it is stored in: its identity is what value function and policy share."""
    short = replace(POLICY, schedule=replace(POLICY.schedule, steps=2))
    _policy(frames, vision, tmp_path / "first", short)
    _policy(frames, vision, tmp_path / "next", replace(short, precision="bfloat16"), start=tmp_path / "first")
    assert read(tmp_path / "next").tower == frames.tower
    assert {p.dtype for p in load_policy(tmp_path / "next").parameters()} == {torch.float32}


def test_robots_with_fewer_cameras_than_the_model_are_trained_on(frames, vision, tmp_path) -> None:
    fewer = replace(frames, tokens=frames.tokens[:, :2])
    policy, value = (replace(how, schedule=replace(how.schedule, steps=2)) for how in (POLICY, VALUE))
    logs = _policy(fewer, vision, tmp_path / "policy", policy), _value(fewer, vision, tmp_path / "v", value)
    assert all(np.isfinite(log[-1]["loss"]) for log in logs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_auto_is_float32_on_the_cpu_without_a_gpu() -> None:
    placement = PolicyTraining().prepare(nn.Linear(1, 1))
    assert (placement.device.type, placement.dtype) == ("cpu", torch.float32)
    with pytest.raises(ContractError, match="device is 'cuda', but"):
        ValueTraining(device="cuda").prepare(nn.Linear(1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@TRAININGS
def test_training_on_the_gpu_is_near_the_one_on_the_cpu(frames, vision, tmp_path, train, how) -> None:
    logs = [
        train(frames, vision, tmp_path / device, replace(how, device=device, precision="float32"))
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*logs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.1)


def test_unknown_words_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ContractError, match="precision is 'fp16', wanted one of auto, float32, bfloat16"):
        PolicyTraining(precision="fp16")
    with pytest.raises(ContractError, match="device is 'tpu', wanted one of auto, cpu, cuda"):
        ValueTraining(device="tpu")
