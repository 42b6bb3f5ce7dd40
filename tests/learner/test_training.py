"""The training loop: it learns, and a killed run ends where an unbroken one does."""

import pytest
import torch
from torch import nn

from recap_learner.training.failures import OutOfMemory
from recap_learner.training.optimizer import OPTIMIZERS, Optimizer
from recap_learner.training.training import Computation, Schedule, fit
from recap_station.contract import ContractError


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def wide() -> nn.Module:
    """One layer whose matrix Muon takes, between two that are too narrow."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 1))


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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path, optimizer):
    schedule = Schedule(steps=60, batch=64, learning_rate=1e-2, save_every_s=0.0, optimizer=optimizer)
    whole, broken = wide(), wide()
    fit(whole, loss_of(whole), schedule, 7, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, loss_of(broken, die_at=31), schedule, 7, tmp_path / "broken")
    fresh = wide()
    log = fit(fresh, loss_of(fresh), schedule, 7, tmp_path / "broken")
    for expected, found in zip(whole.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [row["step"] for row in log] == [0, 20, 40, 59]


def test_muon_takes_a_layers_matrix_alone_and_makes_its_singular_values_alike():
    network = wide()
    optimizer = Optimizer(network, "muon", 0.1, weight_decay=0.0)
    before = [p.detach().clone() for p in network.parameters()]
    loss_of(network)(0, torch.Generator().manual_seed(0))["loss"].backward()
    optimizer.step(0.1)
    steps = [(b - p.detach()) for b, p in zip(before, network.parameters(), strict=True)]
    for number, step in enumerate(steps):
        remembers = set(optimizer.state(list(network.parameters())[number]))
        assert remembers == ({"momentum_buffer"} if number == 2 else {"step", "exp_avg", "exp_avg_sq"})
        if number != 2:  # AdamW's first step: every number by the learning rate
            torch.testing.assert_close(step.abs(), torch.full_like(step, 0.1), rtol=1e-2, atol=1e-3)
    size = torch.linalg.svdvals(steps[2])
    size = size / (0.1 * 0.2 * 32**0.5)  # its root mean square is a fifth of the rate, as AdamW's usually is
    slope = torch.linalg.svdvals(network[2].weight.grad)
    assert slope[7] < 0.1 * slope[0]
    assert size[:8].min() > 0.5 and size.max() < 1.3


def test_an_optimizer_that_is_unknown_or_wants_whole_matrices_is_refused(tmp_path):
    with pytest.raises(ContractError, match="optimizer is 'moun', wanted one of adamw, muon"):
        Schedule(steps=1, batch=1, optimizer="moun")
    with pytest.raises(ContractError, match="'fsdp', which shards the matrices"):
        fit(
            *(wide(), loss_of(wide()), Schedule(steps=1, batch=64, optimizer="muon"), 0, tmp_path),
            how=Computation(strategy="fsdp"),
        )


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path):
    network = model()

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": network(torch.full((1, 4), float("inf"))).sum() * 0.0}

    with pytest.raises(FloatingPointError, match="step 0"):
        fit(network, loss, Schedule(steps=3, batch=1), 0, tmp_path)


def reference(network: nn.Module, loss, schedule: Schedule, seed: int) -> None:
    """The loop as it was before it knew of several processes, passes and curves."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.95), fused=True
    )
    average = [p.detach().clone() for p in parameters]
    network.train()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(2**40 + seed * 1_000_003 + step)
        losses = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        decay = min(schedule.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter, 1.0 - decay)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def test_one_process_gives_the_same_bits_as_the_plain_loop(tmp_path):
    schedule = Schedule(steps=50, batch=64, learning_rate=1e-2)

    def dropping() -> nn.Module:
        return nn.Sequential(model(), nn.Dropout(0.2))

    plain, found = dropping(), dropping()
    reference(plain, loss_of(plain), schedule, 3)
    fit(found, loss_of(found), schedule, 3, tmp_path)
    for expected, got in zip(plain.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


class Splits:
    """A loss over rows, of which one is broken from some step on."""

    def __init__(self, network: nn.Module, bad_step: int = 10**9, bad_row: int = 5) -> None:
        self.network, self.bad_step, self.bad_row = network, bad_step, bad_row
        self.data_s = 0.0

    def __call__(self, step: int, generator: torch.Generator, rows: slice = slice(None)):
        x = torch.randn(64, 4, generator=generator)
        if step >= self.bad_step:
            x[self.bad_row] = torch.nan
        x = x[rows]
        return {"loss": (self.network(x)[:, 0] - x.sum(1)).square().mean()}

    def name(self, generator: torch.Generator, row: int) -> str:
        return f"sample number {row}"


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_that_is_not_finite_stops_names_the_sample_and_keeps_the_last_state(tmp_path, accumulation):
    schedule = Schedule(steps=40, batch=64, learning_rate=1e-2)
    how = Computation(device="cpu", accumulation=accumulation)
    whole, broken = model(), model()
    fit(whole, Splits(whole), schedule, 7, tmp_path / "whole", how=how)
    with pytest.raises(FloatingPointError, match=r"step 31 .*: loss nan from sample 5 .*, sample number 5:"):
        fit(broken, Splits(broken, bad_step=31), schedule, 7, tmp_path / "broken", how=how)
    assert all(p.isfinite().all() for p in broken.parameters())
    again = model()  # with the sample mended it goes on where it was
    fit(again, Splits(again), schedule, 7, tmp_path / "broken", how=how)
    for expected, found in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_more_passes_give_the_same_weights(tmp_path):
    schedule = Schedule(steps=30, batch=64, learning_rate=1e-2)
    one, many = model(), model()
    fit(one, Splits(one), schedule, 7, tmp_path / "one")
    fit(many, Splits(many), schedule, 7, tmp_path / "many", how=Computation(device="cpu", accumulation=5))
    for expected, found in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_loss_that_cannot_be_split_is_refused_before_anything_is_trained(tmp_path):
    network = model()
    with pytest.raises(ContractError, match=r"no argument `rows`, wanted loss\(step, generator, rows\)"):
        how = Computation(device="cpu", accumulation=2)
        fit(network, loss_of(network), Schedule(steps=3, batch=64), 0, tmp_path, how=how)


def test_out_of_memory_says_which_settings_to_turn(tmp_path):
    network = model()

    def loss(step: int, generator: torch.Generator, rows: slice = slice(None)):
        return {"loss": network(torch.empty(2**46, 4)).mean()}  # more than any machine's address space gives

    with pytest.raises(OutOfMemory) as told:
        fit(network, loss, Schedule(steps=3, batch=64), 0, tmp_path)
    for setting in (
        "64 samples a pass",
        "precision=bfloat16",
        "accumulation=2",
        "checkpointing=True",
        "batch",
    ):
        assert setting in str(told.value)
    assert "fsdp" not in str(told.value) and "\n" not in str(told.value)


def test_another_failure_is_not_taken_for_memory(tmp_path):
    network = model()

    def loss(step: int, generator: torch.Generator):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(network, loss, Schedule(steps=3, batch=64), 0, tmp_path)


def test_the_save_of_another_model_is_refused_by_name(tmp_path):
    schedule = Schedule(steps=60, batch=64, save_every_s=0.0)
    network = model()
    with pytest.raises(KeyboardInterrupt):
        fit(network, loss_of(network, die_at=31), schedule, 7, tmp_path)
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"state.pt: \S+0.bias is \(16,\), wanted \(8,\)"):
        fit(other, loss_of(other), schedule, 7, tmp_path)
