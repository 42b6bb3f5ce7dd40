"""The training loop: it learns, and a killed run ends where an unbroken one does."""

import pytest
import torch
from torch import nn

from recap_learner.training import Schedule, fit


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def loss_of(network: nn.Module, die_at: int | None = None):
    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if step == die_at:
            raise KeyboardInterrupt
        x = torch.randn(64, 4, generator=generator)
        return {"loss": (network(x)[:, 0] - x.sum(1)).square().mean()}

    return loss


def test_the_loss_falls_and_the_log_says_so(tmp_path):
    network = model()
    log = fit(network, loss_of(network), Schedule(steps=200, batch=64, learning_rate=1e-2), 0, tmp_path)
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]
    assert log[-1]["step"] == 199
    assert not (tmp_path / "state.pt").exists()


def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path):
    schedule = Schedule(steps=60, batch=64, learning_rate=1e-2, save_every_s=0.0)
    whole, broken = model(), model()
    fit(whole, loss_of(whole), schedule, 7, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, loss_of(broken, die_at=31), schedule, 7, tmp_path / "broken")
    fresh = model()
    log = fit(fresh, loss_of(fresh), schedule, 7, tmp_path / "broken")
    for expected, found in zip(whole.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [row["step"] for row in log] == [0, 20, 40, 59]


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path):
    network = model()

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": network(torch.full((1, 4), float("inf"))).sum() * 0.0}

    with pytest.raises(FloatingPointError, match="step 0"):
        fit(network, loss, Schedule(steps=3, batch=1), 0, tmp_path)
