"""Tokens, normalisers, value bins, tower and chunk buffer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recap_policy.chunks import Chunk, ChunkBuffer
from recap_policy.expert import draw_time, time_features
from recap_policy.normalize import ActionCodec, StateNormalizer, dct_matrix
from recap_policy.prompt import state_bins
from recap_policy.sizes import value_config, vla_config
from recap_policy.text import TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vision import LocalizeHead, VisionTower
from recap_station.contract import ContractError


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = TinyTokenizer.fit(["insert the peg", "insert it"], 4)
    for text in ["insert the peg", "  insert  peg", "Büchse öffnen, 50 %", ""]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("insert the")) == 2
    assert len(TinyTokenizer().encode("insert")) == 6


def test_dct_rows_are_orthonormal() -> None:
    matrix = dct_matrix(50)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(50), atol=1e-5, rtol=0)


def test_smooth_chunks_decode_to_themselves() -> None:
    g = torch.Generator().manual_seed(0)
    states = torch.rand(200, 14, generator=g)
    smooth = (
        torch.randn(200, 10, 14, generator=g) * torch.tensor([1.0, 0.5, 0.2, 0.1] + [0.02] * 6)[None, :, None]
    )
    chunks = dct_matrix(50)[:10].T @ smooth + states[:, None]
    codec = ActionCodec(14, 50, 10)
    is_gripper = torch.arange(14) % 7 == 6
    codec.fit(chunks, states, is_gripper)
    coefficients = codec.encode(chunks, states)
    torch.testing.assert_close(codec.decode(coefficients, states), chunks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.clamp(coefficients), coefficients)
    torch.testing.assert_close(coefficients.std(0), torch.ones(10, 14), atol=0.02, rtol=0)


def test_arms_move_with_the_state_and_grippers_do_not() -> None:
    states = torch.randn(50, 14)
    chunks = torch.randn(50, 50, 14)
    is_gripper = torch.arange(14) % 7 == 6
    codec = ActionCodec(14, 50, 10)
    codec.fit(chunks, states, is_gripper)
    coefficients = codec.encode(chunks, states)
    moved = codec.decode(coefficients, states + 0.5) - codec.decode(coefficients, states)
    torch.testing.assert_close(moved[0, 0], torch.where(is_gripper, 0.0, 0.5), atol=1e-5, rtol=0)


def test_a_still_joint_is_not_blown_up() -> None:
    states = torch.zeros(20, 14)
    codec = ActionCodec(14, 50, 10)
    codec.fit(torch.zeros(20, 50, 14), states, torch.zeros(14, dtype=torch.bool))
    noise = codec.decode(codec.clamp(torch.randn(20, 10, 14)), states)
    assert noise.abs().max() == 0


def test_state_bins_cover_the_range_and_keep_the_order() -> None:
    normalizer = StateNormalizer(2)
    normalizer.fit(torch.stack([torch.linspace(-1, 1, 1001), torch.full((1001,), 0.3)], 1))
    place = torch.stack([torch.linspace(-3, 3, 301), torch.linspace(0.0, 0.6, 301)], 1)
    bins = state_bins(normalizer.scaled(place).numpy())
    assert bins.min() == 0 and bins.max() == 255
    assert (np.diff(bins, axis=0) >= 0).all()


def test_two_hot_targets_have_the_return_as_their_mean() -> None:
    model = ValueModel(value_config("value-tiny"))
    returns = torch.tensor([-1.0, -0.9999, -0.5, -0.12345, -0.001, 0.0])
    targets = model.two_hot(returns)
    torch.testing.assert_close(targets @ model.centres, returns, atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert ((targets > 1e-6).sum(1) <= 2).all()
    with pytest.raises(ValueError, match=r"wanted -1 \.\. 0"):
        model.two_hot(torch.tensor([0.1]))


def test_value_is_read_from_no_padding_token() -> None:
    torch.manual_seed(0)
    model = ValueModel(value_config("value-tiny")).eval()
    features, state = torch.randn(2, 3, 2, 96), torch.rand(2, 14)
    values = model.value(features, state, ["a", "a much longer prompt"]).detach()
    alone = model.value(features[:1], state[:1], ["a"]).detach()
    assert values[0] == pytest.approx(float(alone[0]), abs=1e-5)
    assert values[0] != values[1]


def test_value_learns_a_return_that_the_images_show() -> None:
    torch.manual_seed(0)
    model = ValueModel(value_config("value-tiny"))
    returns = -torch.rand(64)
    features = (
        torch.randn(64, 3, 2, 96) * 0.1 + torch.randn(96) + returns[:, None, None, None] * torch.randn(96)
    )
    state = torch.zeros(64, 14)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(features, state, ["go"] * 64, returns)["loss"].backward()
        optimizer.step()
    model.eval()
    assert (model.value(features, state, ["go"] * 64) - returns).abs().mean() < 0.08


def test_time_features_have_the_periods_of_openpi_to_float32s_last_digits() -> None:
    times, width = [1.0, 0.8, 0.35, 0.001], 64
    found = time_features(torch.tensor(times), width)
    assert found.dtype == torch.float32
    period = 4e-3 * 1000 ** (np.arange(width // 2) / (width // 2 - 1))
    angle = 2 * np.pi * np.float32(times).astype(np.float64)[:, None] / period
    wanted = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_flow_times_are_beta_distributed_towards_noise() -> None:
    times = draw_time((100_000,), torch.Generator().manual_seed(0))
    assert float(times.min()) > 0 and float(times.max()) <= 1
    for at in (0.1, 0.5, 0.9):
        share = float((times < at).float().mean())
        assert share == pytest.approx(((at - 0.001) / 0.999) ** 1.5, abs=0.01)


def test_tower_learns_to_say_where_a_square_is() -> None:
    torch.manual_seed(0)
    config = replace(vla_config("tiny").vision, stem_channels=(16, 24, 32), width=48, mlp=96, layers=1)
    tower, head = VisionTower(config), LocalizeHead(config, keypoints=1)
    corners = torch.randint(0, 88, (64, 2))
    images = torch.randint(0, 60, (64, 96, 96, 3), dtype=torch.uint8)
    for image, (row, column) in zip(images, corners, strict=True):
        image[row : row + 8, column : column + 8] = 255
    xyz = torch.cat([corners.float() / 96, torch.zeros(64, 1)], 1)[:, None]
    visible = torch.ones(64, 1, dtype=torch.bool)
    head.fit(xyz, visible)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], 1e-3)
    errors = []
    for _ in range(60):
        losses = head.loss(tower(images), xyz, visible)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        errors.append(float(losses["error_m"]))
    assert tower(images[:2]).shape == (2, config.summary, 48)
    assert errors[-1] < 0.5 * errors[0]


def test_chunk_starts_at_the_tick_it_arrives() -> None:
    buffer = ChunkBuffer(execute=25)
    rows = np.arange(50.0)[:, None] * np.ones((1, 14))
    assert buffer.pop(100) is None and buffer.needs_chunk(100)
    buffer.push(Chunk(rows), observation_tick=100)
    assert buffer.pop(104)[0] == 4  # type: ignore[index]
    assert not buffer.needs_chunk(124) and buffer.needs_chunk(125)
    buffer.push(Chunk(rows + 1000), observation_tick=125)
    assert buffer.pop(128)[0] == 1003  # type: ignore[index]
    buffer.push(Chunk(rows), observation_tick=120)  # late: older than the one held
    assert buffer.pop(129)[0] == 1004  # type: ignore[index]
    assert buffer.pop(174)[0] == 1049 and buffer.pop(175) is None  # type: ignore[index]
    buffer.flush()
    assert buffer.pop(130) is None and buffer.needs_chunk(130)


def test_chunk_is_asked_for_ahead_of_time() -> None:
    buffer = ChunkBuffer(execute=25, lead=3)
    buffer.push(Chunk(np.zeros((50, 14))), 0)
    assert not buffer.needs_chunk(21) and buffer.needs_chunk(22)
    with pytest.raises(ContractError, match="wanted 0 <= lead < execute"):
        ChunkBuffer(execute=3, lead=3)


def test_chunk_with_a_nan_is_refused() -> None:
    chunk = np.zeros((50, 14))
    chunk[3, 2] = np.nan
    with pytest.raises(ContractError, match="not finite"):
        ChunkBuffer().push(Chunk(chunk), 0)


def test_chunk_that_ends_before_the_next_is_due_is_refused() -> None:
    with pytest.raises(ContractError, match="has 16 steps, wanted at least 25"):
        ChunkBuffer(execute=25).push(Chunk(np.zeros((16, 14))), 0)
