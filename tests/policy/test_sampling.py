"""The sampler: guidance, both forms of real-time chunking, batches, sub-tasks at their own rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recap_policy.config import ConfigError, VLAConfig
from recap_policy.expert import Commitment
from recap_policy.normalize import ActionCodec
from recap_policy.rtc import GREATEST_WEIGHT, Inpainting, Pull, pull_weight, soft_mask
from recap_policy.sampling import SubtaskMemory
from recap_policy.sizes import vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.vla import VLA, Batch

WORDS = TinyTokenizer.fit(["insert the peg", "reach", "lift", "pass it on"], 128)
DOF = 14
BASES = ["dct", "steps"]
FROZEN, KNOWN = 5, 30


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _config(basis: str) -> VLAConfig:
    tiny = vla_config("tiny")
    small = replace(tiny, backbone=replace(tiny.backbone, width=64, layers=2, mlp=96))
    return small if basis == "dct" else replace(small, action_basis="steps", action_tokens=small.horizon)


def _two_ways(rows: int = 8, seed: int = 0) -> Batch:
    """From one observation the data goes up or down along a curve, with nothing to tell which."""
    g = torch.Generator().manual_seed(seed)
    state = torch.zeros(rows, DOF)
    way = torch.where(torch.arange(rows) % 2 == 0, 0.4, -0.4)[:, None, None]
    pace = 0.8 + 0.4 * torch.rand(rows, 1, 1, generator=g)
    curve = torch.linspace(0, 1, 50)[None, :, None] ** pace
    return Batch(
        image_features=torch.randn(1, 3, 2, 96, generator=g).expand(rows, -1, -1, -1),
        state=state,
        prompt=["insert the peg"] * rows,
        subtask=["reach"] * rows,
        indicator=torch.arange(rows) // 2 % 2,
        actions=(way * (0.2 + curve)).expand(-1, -1, DOF),
    )


def _model(basis: str, seed: int = 0) -> VLA:
    """Untrained, with the expert's gates open, so that everything reaches the actions."""
    torch.manual_seed(seed)
    model = VLA(_config(basis), WORDS)
    batch = _two_ways()
    model.fit_normalizers(batch.actions, batch.state, torch.zeros(DOF, dtype=torch.bool))
    for parameter in model.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> dict[str, VLA]:
    found = {}
    for basis in BASES:
        torch.manual_seed(0)
        model = VLA(_config(basis), WORDS)
        batch = _two_ways()
        model.fit_normalizers(batch.actions, batch.state, torch.zeros(DOF, dtype=torch.bool))
        optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
        g = torch.Generator().manual_seed(0)
        for _ in range(160 if basis == "dct" else 80):  # its tokens are fewer, and what is told is less plain
            loss = model.loss(batch, g, draws=4 if basis == "dct" else 2)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        found[basis] = model.eval()
    return found


def _observation(batch: Batch, rows: slice = slice(None)) -> tuple[Tensor, Tensor, list[str]]:
    return batch.image_features[rows], batch.state[rows], list(batch.prompt)[rows]


def _noise(model: VLA, rows: int, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, model.config.action_tokens, DOF, generator=g)


# Guidance


def test_guidance_of_one_is_the_conditioned_branch_and_of_zero_the_other() -> None:
    batch, model = _two_ways(2), _model("dct")
    arguments, noise = _observation(batch), _noise(model, 2)
    conditioned = model.sample(*arguments, noise=noise).actions
    unconditioned = model.sample(*arguments, noise=noise, indicator="").actions
    assert not torch.allclose(conditioned, unconditioned, atol=1e-3)
    nearly = model.sample(*arguments, noise=noise, beta=1.0 + 1e-6).actions
    torch.testing.assert_close(nearly, conditioned, atol=1e-5, rtol=1e-4)
    without = model.sample(*arguments, noise=noise, beta=0.0).actions
    torch.testing.assert_close(without, unconditioned, atol=1e-5, rtol=1e-4)


def test_temperature_says_how_far_noise_spreads_the_chunks() -> None:
    batch = _two_ways(2)
    spread = {}
    for temperature in (0.0, 0.3, 1.0):
        model = _model("dct")
        model.config = replace(model.config, temperature=temperature)
        chunks = [model.sample(*_observation(batch), noise=_noise(model, 2, seed)).actions for seed in (1, 2)]
        spread[temperature] = float((chunks[0] - chunks[1]).abs().mean())
    assert spread[0.0] == 0.0 < spread[0.3] < spread[1.0]
    with pytest.raises(ConfigError, match="temperature is -1"):
        replace(model.config, temperature=-1)


def test_sampling_never_drops_the_indicator() -> None:
    batch, model = _two_ways(2), _model("dct")
    noise = _noise(model, 2)
    actions = [model.sample(*_observation(batch), noise=noise).actions for _ in range(8)]
    assert all(torch.equal(actions[0], other) for other in actions)


def test_unknown_indicator_is_refused() -> None:
    with pytest.raises(ValueError, match="indicator is 'good'"):
        _model("dct").sample(*_observation(_two_ways(2)), indicator="good")


# Batches and texts


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("chunking", ["none", "committed", "inpainting"])
def test_a_batch_gives_what_its_rows_give_one_by_one(basis: str, chunking: str) -> None:
    """Prompts of different length, guidance, and either form of real-time chunking."""
    batch, model = _two_ways(2), _model(basis)
    noise = _noise(model, 2)
    features, state, _ = _observation(batch)
    prompts = ["lift", "insert the peg, slowly"]

    def sampled(rows: slice) -> Tensor:
        last = batch.actions[rows, :KNOWN]
        how = {
            "none": {},
            "committed": {"committed": last[:, :FROZEN]},
            "inpainting": {"inpainting": Inpainting(last, FROZEN)},
        }[chunking]
        return model.sample(
            features[rows], state[rows], prompts[rows], beta=1.5, noise=noise[rows], **how
        ).actions

    both = sampled(slice(None))
    for row in (slice(0, 1), slice(1, 2)):
        torch.testing.assert_close(sampled(row), both[row], atol=1e-5, rtol=1e-4)


def test_a_guess_of_the_subtask_changes_nothing_but_the_time() -> None:
    batch, model = _two_ways(4), _model("dct")
    arguments, noise = _observation(batch), _noise(model, 4)
    plain = model.sample(*arguments, noise=noise, beta=1.5)
    for guess in (plain.subtask, ["lift"] * 4, ["", *plain.subtask[1:]]):
        guessed = model.sample(*arguments, noise=noise, beta=1.5, guess=guess)
        assert guessed.subtask == plain.subtask
        torch.testing.assert_close(guessed.actions, plain.actions, atol=1e-5, rtol=1e-4)


def test_text_that_is_too_long_is_refused() -> None:
    batch = _two_ways(2)
    with pytest.raises(ValueError, match="prompt of 62 tokens, wanted at most 50"):
        _model("dct").sample(batch.image_features, batch.state, ["x" * 60] * 2)


def test_a_recalled_subtask_gives_the_chunk_that_it_gave_when_predicted(trained: dict[str, VLA]) -> None:
    batch, model = _two_ways(1), trained["dct"]
    arguments, noise = _observation(batch), _noise(model, 1)
    predicted = model.sample(*arguments, noise=noise, beta=1.5)
    recalled = model.sample(*arguments, noise=noise, beta=1.5, subtask=predicted.subtask)
    assert predicted.subtask == recalled.subtask == ["reach"]
    torch.testing.assert_close(recalled.actions, predicted.actions, atol=1e-5, rtol=1e-4)


def test_a_subtask_serves_its_chunks() -> None:
    memory = SubtaskMemory()
    prompts, seen = ["lift"], []
    for _ in range(7):
        stands, _ = memory.recall(prompts, every=3)
        memory.keep(prompts, ["reach"], predicted=stands is None)
        seen.append(stands is None)
    assert seen == [True, False, False, True, False, False, True]
    assert memory.recall(prompts, every=3) == (["reach"], None)
    assert memory.recall(prompts) == (None, ["reach"])  # by default each chunk predicts: still a guess
    assert memory.recall(["insert the peg"], every=3) == (None, None)
    memory.clear()
    assert memory.recall(prompts, every=3) == (None, None)


# Real-time chunking: training-time form


def test_clean_tokens_are_flow_time_zero_and_bear_no_loss() -> None:
    """Where tokens are time steps, the first commands are given as they are."""
    batch, model = _two_ways(2), _model("steps")
    caught: list[tuple] = []
    hook = model.expert.register_forward_pre_hook(lambda _m, inputs: caught.append(inputs))
    model.loss(batch, torch.Generator().manual_seed(3), draws=2)
    hook.remove()
    noisy, time, cache, plan, commitment = caught[0]
    clean = commitment.clean
    assert clean is not None and 0 < int(clean.sum()) <= 2 * model.config.committed
    actions = model.codec.encode(batch.actions, batch.state)
    for row in range(2):
        count = int(clean[row].sum())
        assert clean[row, :count].all()
        torch.testing.assert_close(noisy[row, 0, :count], actions[row, :count])
        assert not torch.allclose(noisy[row, 0, count:], actions[row, count:], atol=0.1)
    error = torch.rand(2, 2, 50, DOF)
    spoiled = torch.where(clean[:, None, :, None], 1e6, error)
    torch.testing.assert_close(commitment.mean(spoiled), commitment.mean(error))
    velocity = model.expert(noisy, time, cache, plan, commitment)
    assert not torch.allclose(velocity, model.expert(noisy, time, cache, plan), atol=1e-3)
    # At time 0 for all, clean or not is the same.
    zero = torch.zeros_like(time)
    torch.testing.assert_close(
        model.expert(noisy, zero, cache, plan, commitment), model.expert(noisy, zero, cache, plan)
    )
    # Nothing clean is nothing told.
    none = Commitment(clean=torch.zeros_like(clean))
    torch.testing.assert_close(
        model.expert(noisy, time, cache, plan, none), model.expert(noisy, time, cache, plan)
    )


def test_more_committed_steps_than_trained_for_are_refused() -> None:
    batch = _two_ways(2)
    with pytest.raises(ValueError, match="11 committed steps, wanted at most the model's 10"):
        _model("dct").sample(*_observation(batch), committed=batch.actions[:, :11])


# Real-time chunking: in-painting


def test_the_soft_mask_is_the_papers() -> None:
    weight = soft_mask(4, 12, 16)
    assert weight[:4].tolist() == [1.0] * 4 and weight[12:].tolist() == [0.0] * 4
    c = (12 - 6) / (12 - 4 + 1)
    e = torch.e
    assert weight[6] == pytest.approx(c * (e**c - 1) / (e - 1), abs=1e-6)
    assert bool((weight.diff() <= 0).all())
    with pytest.raises(ValueError, match="13 frozen of 12 steps"):
        soft_mask(13, 12, 16)


def test_the_weight_is_the_papers_and_limited() -> None:
    assert pull_weight(1.0, GREATEST_WEIGHT) == GREATEST_WEIGHT
    for time in (0.8, 0.6, 0.4, 0.2):
        done = 1 - time
        r2 = time**2 / (done**2 + time**2)
        assert pull_weight(time, 100.0) == pytest.approx(time / (done * r2))


def test_the_pull_on_steps_is_the_mask_times_the_difference() -> None:
    batch, model = _two_ways(2), _model("steps")
    pull = Pull(model.codec, Inpainting(batch.actions[:, :KNOWN], FROZEN), batch.state)
    denoised = torch.randn(2, 50, DOF)
    target = model.codec.encode(batch.actions, batch.state)
    expected = soft_mask(FROZEN, KNOWN, 50)[:, None] * (target - denoised)
    torch.testing.assert_close(pull(denoised), expected, atol=2e-3, rtol=1e-3)


def test_the_pull_on_coefficients_brings_the_frozen_steps_about() -> None:
    """One pull from anywhere: the frozen steps are met, by the least change of the coefficients."""
    batch, model = _two_ways(2), _model("dct")
    codec: ActionCodec = model.codec
    known = codec.decode(torch.randn(2, 10, DOF), batch.state)
    pull = Pull(codec, Inpainting(known[:, :FROZEN], FROZEN), batch.state)
    start = torch.randn(2, 10, DOF)
    off = (codec.decode(start, batch.state) - known)[:, :FROZEN].abs().max()
    for met in (start + pull(start), pull.hold(start)):
        assert (codec.decode(met, batch.state) - known)[:, :FROZEN].abs().max() < 0.03 * off
        assert pull(met).abs().max() < 0.1 * pull(start).abs().max()


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_inpainting_goes_on_where_the_last_chunk_was_going(
    trained: dict[str, VLA], basis: str, beta: float
) -> None:
    """The data has two ways; the last chunk took one. Without in-painting half of the new chunks jump."""
    model, rows = trained[basis], 16
    batch = _two_ways(rows)
    arguments, noise = _observation(batch), _noise(model, rows)
    how = {"noise": noise, "beta": beta, "subtask": ["reach"] * rows}
    last = batch.actions[:, :KNOWN]
    plain = model.sample(*arguments, **how).actions
    painted = model.sample(*arguments, **how, inpainting=Inpainting(last, FROZEN)).actions
    assert torch.equal(painted[:, :FROZEN], last[:, :FROZEN])

    def seam(actions: Tensor) -> Tensor:
        return (actions[:, FROZEN] - last[:, FROZEN - 1]).abs().amax(1)

    print(f"{basis} β={beta}: seam {seam(plain).mean():.3f} rad, in-painted {seam(painted).mean():.3f} rad")
    assert seam(plain).max() > 0.1  # the other way
    assert seam(painted).mean() < 0.3 * seam(plain).mean()
    same_way = (painted[:, -1].mean(1) * last[:, -1].mean(1)) > 0
    assert same_way.float().mean() > 0.9


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_a_trained_commitment_goes_on_where_the_last_chunk_was_going(
    trained: dict[str, VLA], basis: str, beta: float
) -> None:
    model, rows = trained[basis], 16
    batch = _two_ways(rows)
    how = {"noise": _noise(model, rows), "beta": beta, "subtask": ["reach"] * rows}
    ahead = batch.actions[:, :FROZEN]
    plain = model.sample(*_observation(batch), **how).actions
    told = model.sample(*_observation(batch), **how, committed=ahead).actions
    assert torch.equal(told[:, :FROZEN], ahead)
    seams = [(found[:, FROZEN] - ahead[:, -1]).abs().amax(1).mean() for found in (plain, told)]
    print(f"{basis} β={beta}: seam {seams[0]:.3f} rad, told {seams[1]:.3f} rad")
    assert seams[1] < 0.7 * seams[0]


def test_inpainting_works_within_inference_mode_and_leaves_no_gradients() -> None:
    batch, model = _two_ways(2), _model("dct")
    painting = Inpainting(batch.actions[:, :KNOWN], FROZEN)
    arguments, noise = _observation(batch), _noise(model, 2)
    outside = model.sample(*arguments, noise=noise, inpainting=painting).actions
    with torch.inference_mode():
        made = [arguments[0].clone(), arguments[1].clone(), arguments[2]]
        inside = model.sample(*made, noise=noise, inpainting=painting).actions
    torch.testing.assert_close(inside, outside)
    assert not outside.requires_grad and all(p.grad is None for p in model.parameters())
