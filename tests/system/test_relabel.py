"""`./recap relabel` as a person types it: another rule in a moment, and one line where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recap_learner.value.labels import (
    EpisodeValues,
    LabelRule,
    label,
    load_indicator,
    load_ticks,
    save_labels,
)
from recap_learner.value.returns import Normalizer

RULE = LabelRule(lookahead=20, positive_fraction=0.4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    episodes = []
    for index in range(12):
        values = np.clip(-0.5 + np.cumsum(rng.normal(0, 0.01, 150)), -1, 0).astype(np.float32)
        chance = np.full(150, 0.3 if index % 3 else 0.8)
        failed = np.stack([chance, -0.6 * chance], 1).astype(np.float32)
        episodes.append(
            EpisodeValues(
                f"e{index}", values, index % 3 > 0, np.zeros(150, bool), True, "lift", failed, -1, "rollout"
            )
        )
    save_labels(label(episodes, Normalizer(300), RULE), tmp_path / "iteration_01" / "labels.parquet", {})
    return tmp_path / "iteration_01"


def recap(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recap", "relabel", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)


def test_another_share_is_a_new_sidecar_beside_the_old(run) -> None:
    before = (run / "labels.parquet").read_bytes()
    done = recap(str(run), "--tag", "strict", "--fraction", "0.1", "--fail-ratio", "2", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ok"] and told["frames"] == 1800 and told["positive"] == pytest.approx(0.1, abs=0.01)
    assert told["positive_before"] == pytest.approx(0.4, abs=0.01) and told["changed"] > 0.1
    ticks, rules, about = load_ticks(run / "labels.strict.parquet")
    assert rules["lift"].positive_fraction == 0.1 and ticks.norms["lift"].fail_ratio == 2.0
    assert about["relabelled_from"] == str(run / "labels.parquet")
    assert np.mean(np.concatenate(list(load_indicator(run / "labels.strict.parquet").values()))) < 0.11
    assert (run / "labels.parquet").read_bytes() == before


@pytest.mark.parametrize(("words", "code", "told"), [
    (["--fraction", "0.1"], 2, "Missing option '--tag'"),
    (["--tag", "a/b"], 2, "--tag: wanted a name without '/'"),
    (["--tag", "x", "--fraction", "0.1", "--threshold", "0"], 2, "wanted one of them"),
    (["--tag", "x", "--threshold", "9"], 1, "no autonomous frame lies above the threshold 9"),
    (["--tag", "x", "--end", "mean"], 1, "end is 'mean', wanted one of sum, bootstrap"),
    (["--tag", "x", "--task", "fold"], 1, "holds no labels of task 'fold', found lift"),
    (["--tag", "x", "--store", "nowhere"], 1, "nowhere: wanted a folder of episodes, found none"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(run, words, code, told) -> None:
    done = recap(str(run), *words)
    assert done.returncode == code and told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (run / "labels.x.parquet").exists()
