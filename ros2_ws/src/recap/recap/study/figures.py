"""The study's figures, which correspond to the paper's 7 to 12, from a results file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recap.report import evaluation_figures
from recap.report.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from recap_station.files import replace_file

_TITLES = {
    "supervised_pi05": "supervised, π0.5-style",
    "supervised_pi06": "supervised, π0.6-style",
    "rl_pretrained": "RL-pre-trained",
    "offline_rl_sft": "offline RL + SFT",
    "recap_1": "RECAP, i = 1",
    "recap_2": "RECAP, i = 2",
    "awr": "AWR",
    "ppo": "PPO",
    "filtered_bc": "cloning the best 40 %",
    "clone_positive": "cloning positive frames",
    "bc_all": "cloning everything",
    "hg_dagger": "HG-DAgger",
    "recap_2_none": "asked for nothing",
    "recap_2_negative": "asked for negative",
    "recap_2_without_corrections": "without corrections",
    "recap_2_autonomous": "uncorrected attempts only",
    "recap_2_threshold_10": "10 % positive",
    "recap_2_threshold_40": "40 % positive",
    "recap_2_from_last": "from the last iteration",
}
# Figure → policies; the first is the paper's 7 and 8, the second its 11.
_ROWS: dict[str, Sequence[str]] = {
    "policies": ("supervised_pi05", "supervised_pi06", "rl_pretrained", "offline_rl_sft", "recap_2"),
    "extraction": ("awr", "ppo", "bc_all", "hg_dagger", "filtered_bc", "clone_positive", "recap_2"),
    "asked": ("recap_2", "recap_2_none", "recap_2_negative"),
    "ablations": (
        "recap_2", "recap_2_without_corrections", "recap_2_autonomous", "recap_2_threshold_10",
        "recap_2_threshold_40",
        "recap_2_from_last",
    ),
}  # fmt: skip
_COLORS = {"recap_2": BLUE, "recap_1": SKY, "offline_rl_sft": ORANGE, "filtered_bc": GREEN,
           "recap_2_negative": VERMILLION}  # fmt: skip


def write_figures(results: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """`<stem>.<figure>.svg` for every figure that there are two policies for."""
    policies = results["policies"]
    drawn: dict[str, str] = {}
    for name, wanted in _ROWS.items():
        rows = [(_TITLES[p], policies[p], _COLORS.get(p, GREY)) for p in wanted if p in policies]
        if len(rows) > 1:
            drawn[name] = evaluation_figures.intervals(rows)
    line = [(float(k), policies[p]) for k, p in enumerate(("offline_rl_sft", "recap_1", "recap_2"))
            if p in policies]  # fmt: skip
    if len(line) > 1:  # the paper's 9, 10 and, for the task of failure removal, 12
        drawn["iterations"] = evaluation_figures.over({"RECAP": line}, "iteration")
    betas = [(1.0, "recap_2"), *((b, f"recap_2_beta_{b:g}") for b in (1.5, 2.0, 2.5))]
    sweep = [(b, policies[p]) for b, p in betas if p in policies]
    if len(sweep) > 1:
        drawn["guidance"] = evaluation_figures.over({"RECAP, i = 2": sweep}, "guidance β")
    files = []
    for name, svg in drawn.items():
        file = folder / f"{stem}.{name}.svg"
        replace_file(file, lambda to, svg=svg: to.write_text(svg))  # type: ignore[misc]
        files.append(file)
    return files
