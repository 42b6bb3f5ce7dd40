"""Several processes train what one does: the same losses, and from any save the same weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

sys.path.append(str(Path(__file__).parent))
from forks import Program

from recap_learner.training.distributed import parts
from recap_station.contract import ContractError

PROGRAM = Path(__file__).with_name("crew_program.py")
pytestmark = [pytest.mark.timeout(900), pytest.mark.alone]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with Program(PROGRAM, tmp_path_factory.mktemp("program")) as running:
        yield running


def train(program: Program, folder: Path, ranks: int, *jobs: str, ends: bool = True) -> str:
    """→ what it says on standard error"""
    found = program.ask(str(folder), *jobs, ranks=ranks)
    assert (found.code == 0) == ends, found.err[-3000:]
    return found.err


def losses(folder: Path) -> dict[int, float]:
    log = json.loads(next(folder.glob("training/*/log.json")).read_text())
    return {row["step"]: row["loss"] for row in log}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "weights.safetensors")


def apart(one: Path, other: Path) -> float:
    """Largest difference of any weight."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    return max(float(np.abs(mine[name].astype(float) - theirs[name]).max()) for name in mine)


@pytest.fixture(scope="module")
def trained(vision: Path, program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crew")
    shutil.copytree(vision, folder / "vision")
    jobs = ["one:policy:auto:1", "passes:policy:auto:3", "value_one:value:auto:1"]
    train(program, folder, 1, *jobs, "alone:policy:auto:1:die", ends=False)  # the last one kills itself
    jobs = ["ddp:policy:ddp:2", "fsdp:policy:fsdp:2", "value:value:fsdp:1"]
    train(program, folder, 2, *jobs, "killed:policy:fsdp:2:die", ends=False)
    assert list(folder.glob("killed/training/model/state-*/rest.pt"))
    assert list(folder.glob("alone/training/model/state.pt"))
    shutil.copytree(folder / "killed", folder / "fewer")
    shutil.copytree(folder / "killed", folder / "otherwise")
    train(program, folder, 2, "killed:policy:fsdp:2", "otherwise:policy:ddp:1", "alone:policy:fsdp:1")
    train(program, folder, 1, "fewer:policy:auto:1")
    return folder


@pytest.mark.parametrize("other", ["passes", "ddp", "fsdp"])
def test_losses_are_those_of_one_process_and_one_pass(trained: Path, other: str) -> None:
    one, found = losses(trained / "one"), losses(trained / other)
    assert one.keys() == found.keys() and len(one) > 2
    for step, loss in one.items():
        assert found[step] == pytest.approx(loss, abs=1e-4)
    assert apart(trained / "one", trained / other) < 1e-4
    assert one[21] < 0.9 * one[0]


def test_a_sharded_value_function_stops_early_as_a_whole_one(trained: Path) -> None:
    one, found = (json.loads((trained / n / "values.json").read_text()) for n in ("value_one", "value"))
    assert one.keys() == found.keys()
    for name, values in one.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4)
    assert apart(trained / "value_one", trained / "value") < 1e-4


def test_a_killed_crew_ends_in_the_weights_of_an_unbroken_one(trained: Path) -> None:
    assert apart(trained / "killed", trained / "fsdp") == 0.0
    assert losses(trained / "killed") == losses(trained / "fsdp")


@pytest.mark.parametrize("name", ["fewer", "otherwise", "alone"])
def test_a_save_is_read_by_other_numbers_of_processes_and_strategies(trained: Path, name: str) -> None:
    """Two sharded → one, two sharded → two whole, one → two sharded."""
    assert apart(trained / name, trained / "one") < 1e-4
    assert losses(trained / name).keys() == losses(trained / "one").keys()


def test_nothing_is_left_of_saves_when_a_training_is_done(trained: Path) -> None:
    assert not list(trained.rglob("state*"))


def test_all_processes_stop_at_a_bad_sample_and_name_it(
    program: Program, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "vision", tmp_path / "vision")
    said = train(program, tmp_path, 2, "bad:policy:fsdp:2:broken", ends=False)
    line = next(line for line in said.splitlines() if "FloatingPointError: " in line)
    assert "step 0 (batch of seed 3): loss nan" in line and "of its batch, episode e4, tick" in line
    assert list(tmp_path.glob("bad/training/model/state-000000000/rest.pt"))


def test_every_row_is_one_rank_s() -> None:
    for batch, ranks, accumulation in ((12, 2, 3), (128, 3, 1), (7, 2, 2)):
        cut = parts(batch, ranks, accumulation)
        rows = [row for rank in cut for part in rank for row in range(batch)[part]]
        assert rows == list(range(batch)) and [len(rank) for rank in cut] == [accumulation] * ranks
    with pytest.raises(ContractError, match=r"a batch of 3 for 2 processes × 2 passes, wanted at least 4"):
        parts(3, 2, 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_give_the_losses_of_the_cpu(
    program: Program, trained: Path, tmp_path: Path, strategy: str
) -> None:
    shutil.copytree(trained / "vision", tmp_path / "vision")
    train(program, tmp_path, 2, f"gpus:policy:{strategy}:1:cuda")
    for step, loss in losses(trained / "one").items():
        assert losses(tmp_path / "gpus")[step] == pytest.approx(loss, rel=0.1)
