"""`./recap plan` and what docs/scale.md and examples/scale/ say of it and of training on many machines."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from recap.cli import main
from recap_learner.train import _parser, settings
from recap_learner.training.training import Computation

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/scale"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_document_holds_what_the_command_prints(capsys) -> None:
    code, out, _ = run(capsys, "--config", "pi06", "--gpus", "8xH100")
    assert code == 0 and out in (ROOT / "docs/scale.md").read_text()


def test_json_says_memory_step_days_and_every_assumption(capsys) -> None:
    code, out, _ = run(capsys, "--gpus", "16xH100", "--steps", "1000", "--set", "of_flops=0.2", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and found["fits"] and found["assumed"]["of_flops"] == 0.2
    assert found["memory_per_gpu_gb"] == pytest.approx(sum(found["memory_gb"].values()), abs=0.1)
    assert found["days"] == pytest.approx(1000 * found["step_s"] / 86_400)


def test_a_way_is_asked_for_and_said_not_to_fit(capsys) -> None:
    code, out, _ = run(capsys, "--strategy", "ddp")
    assert code == 0 and "does not fit into 80 GB" in out
    code, out, _ = run(capsys, "--strategy", "fsdp", "--checkpointing", "--accumulation", "2", "--images")
    assert code == 0 and "fsdp, checkpointing, accumulation 2:" in out and "cores to decode" in out


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--config", "pi6"], 2, "did you mean 'pi06'?"),
        (["--gpus", "8xV100"], 2, "wanted like 8xH100"),
        (["--set", "of_flops=2"], 2, "wanted a share in 0 .. 1"),
        (["--strategy", "dpp"], 2, "wanted one of auto, ddp, fsdp"),
        (["--batch", "4"], 2, "batch is 4, wanted at least 8"),
        (["--cameras", "9"], 2, "cameras is 9, wanted at most the 4 of pi06"),
        (["--gpus", "1xH100"], 1, "does not fit on 1 H100"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, words, code, problem) -> None:
    found, out, told = run(capsys, *words)
    assert found == code and problem in told and len(told.strip().splitlines()) == 1 and not out


def trained(text: str) -> list[str]:
    """What a script hands to recap_learner.train."""
    joined = text.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if "-m recap_learner.train" in line]
    words = shlex.split(line.rstrip("& "))
    return [word for word in words[words.index("recap_learner.train") + 1 :] if word != "$@"]


def wanted(words: list[str]) -> Computation:
    return settings(_parser().parse_args([*words, "--store", "s", "--vision", "v", "--out", "o"]))


@pytest.mark.parametrize("name", ["node.sh", "slurm.sbatch"])
def test_scripts_are_bash_and_their_options_exist(name: str) -> None:
    file = EXAMPLES / name
    subprocess.run(["bash", "-n", str(file)], check=True)
    how = wanted(trained(file.read_text()))
    assert (how.strategy, how.precision, how.checkpointing) == ("fsdp", "bfloat16", True)


def test_the_ray_example_is_python_and_its_options_exist() -> None:
    tree = ast.parse((EXAMPLES / "ray_train.py").read_text())
    (given,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS"
    ]
    assert wanted(given).strategy == "fsdp"
