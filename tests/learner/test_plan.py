"""The plan: its FLOPs and bytes are those that torch counts, and its words are checked."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recap_learner.training.footprint import Lengths, Precision, Sample, activations, flops, lengths, weights
from recap_learner.training.plan import (
    Assumed,
    Job,
    Way,
    best,
    cost,
    find_config,
    find_gpus,
    fits,
    report,
    steps,
    ways,
)
from recap_learner.training.training import Computation
from recap_policy.config import ConfigError, VLAConfig
from recap_policy.prompt import Kind
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA, Batch

ROWS, DRAWS = 2, 2


def shape(name: str, layers: int | None = None) -> VLAConfig:
    """tiny whole; small at its widths, with some of its layers and the own vocabulary."""
    config = vla_config(name)
    if name == "tiny":
        return config
    return replace(config, backbone=replace(config.backbone, layers=layers or 3, vocabulary=None))


def made(config: VLAConfig) -> tuple[VLA, Batch]:
    torch.manual_seed(0)
    tokenizer = TinyTokenizer.fit(
        ["insert the peg", "reach"], config.prefix.word_slots, config.prefix.action_codes
    )
    model = VLA(config, tokenizer)
    for parameter in model.expert.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)  # the gates open
    model.vision.requires_grad_(False)
    state = torch.rand(ROWS, 14) - 0.5
    actions = state[:, None] + torch.linspace(0, 1, 50)[None, :, None] ** 2 * torch.randn(ROWS, 1, 14)
    model.fit_normalizers(actions, state, torch.zeros(14, dtype=torch.bool))
    features = torch.randn(ROWS, 3, config.vision.tokens, config.vision.width)
    texts = ["insert the peg"] * ROWS, ["reach"] * ROWS
    return model, Batch(features, state, *texts, torch.ones(ROWS, dtype=torch.int64), actions)


def measured(model: VLA, batch: Batch) -> Lengths:
    prefix = model.prefix(batch.image_features, batch.state, model._examples(batch, batch.indicator))
    kinds = {kind: int((prefix.kinds == kind).sum(1).max()) for kind in Kind}
    actions, text = kinds[Kind.ACTION], kinds[Kind.SUBTASK]
    read = text + (kinds[Kind.ADVANTAGE] + kinds[Kind.ACTION_CUE] + actions if actions else 0)
    whole = prefix.x.shape[1]
    return Lengths(whole, whole - actions - kinds[Kind.ACTION_CUE], read, text + actions)


def test_lengths_are_those_of_the_prompt() -> None:
    for name in ("tiny", "small"):
        config = shape(name)
        model, batch = made(config)
        found = measured(model, batch)
        fast = found.learnt - 2 - 1 if config.prefix.action_codes else 0
        expected = lengths(config, Sample(3, prompt=4, subtask=1, fast=fast, draws=DRAWS))
        for name in ("prefix", "seen", "read", "learnt"):
            assert abs(getattr(expected, name) - getattr(found, name)) <= 4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_flops_are_those_that_torch_counts(name: str, checkpointing: bool) -> None:
    config = shape(name)
    model, batch = made(config)
    Computation(device="cpu", checkpointing=checkpointing).prepare(model)
    drawn = model.draw(ROWS, torch.Generator().manual_seed(0), DRAWS, 0.0)
    expected = flops(config, Sample(3, 0, 0, 0, DRAWS), measured(model, batch))
    # The counter knows no flops of the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model.loss(batch, drawn=drawn)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    assert ROWS * expected.trained == pytest.approx(forward, rel=0.005)
    assert ROWS * expected.step(checkpointing, tower=False) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def kept(model: VLA, batch: Batch, half: bool) -> int:
    """Bytes that a loss leaves for its backward pass, but for weights and their copies."""
    parameters = list(model.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    shapes = {tuple(p.shape) for p in parameters} | {tuple(p.shape[::-1]) for p in parameters}

    def alive() -> dict[int, Tensor]:
        # What checkpointing keeps are arguments of functions, which no hook sees.
        gc.collect()
        found = [o for o in gc.get_objects() if type(o) is Tensor]
        return {tensor.untyped_storage().data_ptr(): tensor for tensor in found}

    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    drawn = model.draw(ROWS, torch.Generator().manual_seed(0), DRAWS, 0.0)
    before = set(alive())
    seen = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), seen:
        loss = model.loss(batch, drawn=drawn)["loss"]
    saved |= {place: tensor for place, tensor in alive().items() if place not in before}
    assert loss.requires_grad  # still there, and with it what it keeps
    return sum(
        tensor.untyped_storage().nbytes()
        for place, tensor in saved.items()
        if place not in own and tuple(tensor.shape) not in shapes
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_activations_are_those_that_the_backward_pass_is_left(name: str, half: bool) -> None:
    config = shape(name)
    model, batch = made(config)
    Computation(device="cpu").prepare(model)
    sample, how = Sample(3, 0, 0, 0, DRAWS), Precision(2 if half else 4, norms=2)
    expected = ROWS * activations(config, sample, how, False, measured(model, batch))
    found = kept(model, batch, half)
    print(f"{name}, {'bfloat16' if half else 'float32'}: {found / 1e6:.2f} MB, planned {expected / 1e6:.2f}")
    assert expected == pytest.approx(found, rel=0.12)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("half", [False, True])
def test_checkpointing_keeps_what_the_plan_says_for_each_layer(half: bool) -> None:
    """Of one layer more: the rest of what is planned is one layer computed again, which is over by then."""
    found, expected = [], []
    sample, how = Sample(3, 0, 0, 0, DRAWS), Precision(2 if half else 4, norms=2)
    for layers in (2, 4):
        config = shape("small", layers)
        model, batch = made(config)
        Computation(device="cpu", checkpointing=True).prepare(model)
        found.append(kept(model, batch, half))
        expected.append(ROWS * activations(config, sample, how, True, measured(model, batch)))
    assert expected[1] - expected[0] == pytest.approx(found[1] - found[0], rel=0.15)


def test_state_takes_twenty_bytes_a_trained_parameter_shared_out_by_fsdp_alone() -> None:
    assumed = Assumed()
    job = Job(vla_config("pi06"), "h100", 8, 256, True, 4)
    parts = ("weights", "gradients", "moments", "averages")
    trained = weights(job.config).trained
    ddp, fsdp = (cost(job, Way(strategy, True), assumed) for strategy in ("ddp", "fsdp"))
    assert sum(ddp.memory_gb[part] for part in parts) == pytest.approx(20 * trained / 1e9)
    assert sum(fsdp.memory_gb[part] for part in parts) == pytest.approx(20 * trained / 8e9)
    lean = cost(job, Way("ddp", True), replace(assumed, average=0))
    assert sum(lean.memory_gb[part] for part in parts) == pytest.approx(16 * trained / 1e9)


def test_the_way_chosen_fits_and_is_nearly_the_fastest_that_does() -> None:
    assumed = Assumed()
    for name, count, card in (
        ("pi06", 8, "h100"),
        ("small", 8, "h100"),
        ("tiny", 1, "a100"),
        ("pi06", 64, "a100"),
    ):
        job = Job(find_config(name), card, count, 256, True, 3)
        found = best(job, assumed)
        assert found is not None and fits(found, job)
        others = [cost(job, way, assumed) for way in ways(job)]
        assert found.step_s <= 1.05 * min(one.step_s for one in others if fits(one, job))
    assert best(Job(find_config("value-670m"), "a100", 8, 256, True, 3), assumed).way == Way("ddp", False)
    with pytest.raises(ConfigError, match=r"pi06 does not fit on 1 H100 of 80 GB: 1\d\d GB a GPU at least"):
        report(Job(find_config("pi06"), "h100", 1, 64, True, 4), 1, None, assumed)


def test_twice_the_work_is_twice_the_time_and_half_the_reach_too() -> None:
    assumed, way = Assumed(), Way("fsdp", True)
    job = Job(vla_config("pi06"), "h100", 8, 256, True, 4)
    once = cost(job, way, assumed)
    assert cost(replace(job, batch=512), way, assumed).compute_s == pytest.approx(2 * once.compute_s)
    assert cost(job, way, replace(assumed, of_flops=0.2)).compute_s == pytest.approx(2 * once.compute_s)
    assert cost(replace(job, images=False), way, assumed).compute_s < once.compute_s
    far = cost(replace(job, gpus=64), way, replace(assumed, node_link_gb_s=5.0))
    assert far.exposed_s > 0 and cost(replace(job, gpus=64), way, assumed).exposed_s < far.exposed_s
    assert steps(hours=10, epochs=2, batch=100, assumed=assumed) == 7200


def test_small_models_wait_for_launches() -> None:
    job = Job(vla_config("tiny"), "h100", 1, 128, False, 3)
    assert cost(job, Way("one", False), Assumed()).compute_s == pytest.approx(8 * 120 * 5e-6)


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda: find_gpus("8xV100"), "gpus is '8xV100', wanted like 8xH100, of H100, H200, A100"),
        (lambda: find_gpus("0xH100"), "gpus is '0xH100'"),
        (lambda: find_gpus("eightxH100"), "wanted like 8xH100"),
        (lambda: find_config("pi6"), "did you mean 'pi06'"),
        (lambda: Assumed().changed(["of_flop=0.3"]), "did you mean 'of_flops'"),
        (lambda: Assumed().changed(["of_flops=3"]), "of_flops is 3, wanted a share in 0 .. 1"),
        (lambda: Assumed().changed(["draws=two"]), "draws is 'two', wanted a whole number"),
        (lambda: Assumed().changed(["frame_hz=-1"]), "frame_hz is -1, wanted 0 or more"),
    ],
)
def test_what_is_not_known_is_refused(ask, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("(", r"\(")):
        ask()


def test_assumptions_are_changed_by_name() -> None:
    assert find_gpus("h200") == (1, "h200") and find_gpus("16xA100") == (16, "a100")
    assert Assumed().changed(["of_flops=0.3", "draws=4"]) == Assumed(of_flops=0.3, draws=4)
