"""`python -m recap_learner.train`: a store in, a checkpoint out, alone and under torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from recap_learner.data.episodes import convert_bags
from recap_learner.data.store import Store
from recap_learner.train import _parser, main, settings
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.value.value_training import ValueTraining
from recap_policy.checkpoint import load_policy, read, vision_identity
from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, joint_state
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
TICKS, STEP_NS = 120, 20_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("train")
    bags = [make_bag(folder / "bags", number) for number in range(3)]
    files, problems = convert_bags(bags, folder / "store")
    assert len(files) == 3 and not problems
    made = Store(folder / "store")
    for number, file in enumerate(sorted(file.name.split(".")[0] for file in files)):
        made.save_labels("half", file, {"indicator": np.arange(TICKS) // 60 == number % 2}, {})
    return made


def make_bag(folder: Path, number: int) -> Path:
    bag, start = folder / f"attempt{number}", 10**18
    with BagWriter(bag, topics.recorded_topics(STATION), topics.LATCHED) as writer:
        for tick in range(TICKS):
            now = start + tick * STEP_NS
            for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
                value = STATION.home + 0.1 * np.sin(tick / 20 + number)
                writer.write(topic, now, joint_state(now, STATION.joint_names, value, "policy"))
            if tick % 5 == 0:
                for camera in STATION.camera_names:
                    picture = np.full((96, 96, 3), (tick + 40 * number) % 256, np.uint8)
                    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
                    writer.write(topics.image_topic(camera), now, compressed_image(now, jpeg, camera))
        contract = {"recap.station": json.dumps(STATION.to_dict()), "recap.task": json.dumps(TASK.to_dict())}
        writer.set_metadata({**contract, "recap.outcome": "success" if number else "failure"})
    return bag


def words(store: Store, vision: Path, out: Path, *more: str, what: str = "policy") -> list[str]:
    common = ["--store", str(store.folder), "--vision", str(vision), "--out", str(out), "--steps", "3"]
    return [what, *common, "--batch", "8", "--device", "cpu", *more]


def test_a_policy_is_trained_on_the_labels_of_a_tag_and_not_twice(store, vision, tmp_path, capsys) -> None:
    out = tmp_path / "policy"
    assert main(words(store, vision, out, "--tag", "half", "--accumulation", "2")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"] == str(out) and told["last"]["step"] == 2
    assert load_policy(out).config.name == "tiny"
    lineage = json.loads((out / "config.json").read_text())["lineage"]
    assert (lineage["tag"], lineage["training"]["accumulation"], len(lineage["episodes"])) == ("half", 2, 3)
    before = read(out).identity
    assert main(words(store, vision, out)) == 0
    assert json.loads(capsys.readouterr().out)["done"] == "before" and read(out).identity == before


def test_images_read_in_every_step_give_the_losses_of_tokens_in_memory(
    store, vision, tmp_path, capsys
) -> None:
    ways = {
        "cached": ["--tower", "cached"],
        "frozen": ["--tower", "frozen", "--accumulation", "3"],
        "trained": ["--tower", "trained"],
    }
    last, towers = {}, {}
    for way, more in ways.items():
        assert main(words(store, vision, tmp_path / way / "policy", "--tag", "half", *more)) == 0
        log = json.loads((tmp_path / way / "training" / "policy" / "log.json").read_text())
        last[way] = [row["loss"] for row in log]
        towers[way] = read(tmp_path / way / "policy").tower
    np.testing.assert_allclose(last["frozen"], last["cached"], rtol=1e-3)  # tokens are kept in float16
    assert last["trained"][0] == pytest.approx(last["cached"][0], rel=1e-3)  # before the first update
    assert towers["frozen"] == towers["cached"] == vision_identity(vision) != towers["trained"]
    start = ["--start", str(tmp_path / "trained" / "policy")]
    assert main(words(store, vision, tmp_path / "on" / "policy", *start)) == 1
    assert "wanted tower 'frozen' or 'trained', which read images" in capsys.readouterr().err
    assert main(words(store, vision, tmp_path / "on" / "policy", *start, "--tower", "frozen")) == 0
    assert read(tmp_path / "on" / "policy").tower == towers["trained"]


def test_two_processes_write_one_checkpoint(store, vision, tmp_path) -> None:
    for name in ("one", "two"):
        ranks = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if name == "two" else []
        )
        module = ["-m", "recap_learner.train", *words(store, vision, tmp_path / name, "--strategy", "fsdp")]
        found = subprocess.run([sys.executable, *ranks, *module], capture_output=True, text=True, timeout=200)
        assert found.returncode == 0, found.stderr[-3000:]
        told = json.loads(found.stdout)  # by the first process alone
        assert told["checkpoint"] == str(tmp_path / name)
        assert "100.0 %" in found.stderr
    one, two = (load_policy(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_allclose(theirs.detach(), mine.detach(), atol=1e-4)


def test_a_value_function_is_trained_and_judged(store, vision, tmp_path, capsys) -> None:
    assert main(words(store, vision, tmp_path / "value", what="value")) == 0
    assert read(tmp_path / "value").kind == "value"
    assert "spread" in " ".join(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--tag", "other"], "has no labels 'other' (tags: half); label the store"),
        (
            ["--batch", "2", "--accumulation", "4"],
            "a batch of 2 for 1 processes × 4 passes, wanted at least 4",
        ),
        (["--config", "tony"], "did you mean 'tiny'?"),
        (["--accumulation", "0"], "accumulation is 0, wanted at least 1"),
        (["--config", "small"], "no tokenizer given"),
    ],
)
def test_what_cannot_be_trained_is_one_line(store, vision, tmp_path, capsys, more, problem) -> None:
    assert main(words(store, vision, tmp_path / "policy", *more)) == 1
    told = capsys.readouterr().err.strip()
    assert problem in told and "\n" not in told
    assert not (tmp_path / "policy").exists()


def test_options_change_only_what_they_name() -> None:
    given = _parser().parse_args(["policy", "--store", "s", "--vision", "v", "--out", "o"])
    assert settings(given) == PolicyTraining()
    given = _parser().parse_args(["value", "--store", "s", "--vision", "v", "--out", "o", "--average", "0"])
    how = settings(given)
    assert isinstance(how, ValueTraining) and how.schedule.average == 0.0
    assert how.schedule.steps == ValueTraining().schedule.steps
