"""Policies evaluated in the simulated cell, headless and in parallel, so that a killed evaluation goes on.

Every finished attempt is a line in a journal before the next counts. What an attempt comes to depends on its
start state alone, and when to stop on the attempts in the order of their start states: the numbers are the
same however many processes there are and however often they were killed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recap.journal import Journal
from recap.rollout import Rollouts, finished
from recap_learner.data.episodes import SUFFIX, read_info
from recap_learner.evaluation.evaluation import Attempt, Evaluation, EvaluationError
from recap_learner.evaluation.sequential import Stopping
from recap_policy.description import CheckpointError, check, observation_of
from recap_policy.interface import Sampling
from recap_station.contract import load_station, load_task

EVALUATION_SEED = 90_000  # the first start state that is kept for evaluations
FOLDER = "evaluations"


@dataclass(frozen=True)
class Entrant:
    """One policy under one setting. out: folder of its journal and its result; file: the result's name; "":
    of the policy and its setting; noted: the journal's name; "": the result's."""

    name: str
    rollouts: Rollouts
    identity: str
    key: str
    out: Path
    file: str = ""
    noted: str = ""

    @property
    def stem(self) -> str:
        how = self.rollouts.sampling
        condition = how.indicator or "none"
        policy = self.rollouts.checkpoint
        assert policy is not None
        return f"{policy.name}_{condition}_b{how.beta:g}_{self.key[:8]}"

    @property
    def result(self) -> Path:
        return self.out / (self.file or f"{self.stem}.json")

    @property
    def journal(self) -> Path:
        return self.out / self.noted if self.noted else self.result.with_suffix(".attempts.jsonl")


def entrants(
    checkpoints: Sequence[Path], samplings: Sequence[Sampling], how: Rollouts, out: Path | None
) -> list[Entrant]:
    """Every checkpoint under every sampling. out: None: `evaluations/` beside each checkpoint.

    Raises CheckpointError on what is no policy of this station.
    """
    station, task = load_station(how.station), load_task(how.task)
    found = []
    for checkpoint in checkpoints:
        identity, sees = check(checkpoint, "policy", station).identity, observation_of(checkpoint)
        for sampling in samplings:
            rollouts = replace(how, checkpoint=checkpoint, sampling=sampling, observation=sees)
            world = [identity, asdict(sampling), task.to_dict(), station.to_dict()]
            run = [how.execute_steps, how.latency_ticks, how.operator]
            key = hashlib.sha256(json.dumps([world, run], sort_keys=True).encode()).hexdigest()
            name = "/".join(checkpoint.resolve().parts[-2:])
            if len(samplings) > 1:
                name += f" {sampling.indicator or 'none'} β {sampling.beta:g}"
            found.append(Entrant(name, rollouts, identity, key, out or checkpoint.resolve().parent / FOLDER))
    if len({e.result for e in found}) < len(found):
        raise EvaluationError("the same policy was given twice under the same setting: wanted it once")
    return found


def evaluate(
    policies: Sequence[Entrant],
    seeds: range,
    stopping: Stopping,
    workers: int,
    reset_s: float = 0.0,
    count_reset: bool = False,
    notes: Sequence[str] = (),
    progress: Callable[[float, str], None] | None = None,
) -> list[Evaluation]:
    """Run what is missing of the attempts → the evaluations, also written to each one's `result`."""
    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(p.journal, p.key)) for p in policies]
        looked = _Looks(seeds, stopping, journals)
        jobs = [(i, s) for s in seeds for i, j in enumerate(journals) if s not in j.attempts]
        total, begun = len(seeds) * len(journals), time.monotonic()
        if not looked.ended():  # then there is something to do
            with closing(finished([p.rollouts for p in policies], jobs, workers)) as attempts:
                for made, (index, attempt) in enumerate(attempts, 1):
                    journals[index].add(attempt)
                    if progress:
                        rest = (time.monotonic() - begun) / made * (len(jobs) - made)
                        done = total - len(jobs) + made
                        progress(done / total, f"{done}/{total} attempts, at most {rest:.0f} s left")
                    if looked.ended():
                        break
        used = seeds[: looked.count]
        about = {
            "rule": "early" if stopping.early else "fixed",
            "early": stopping.early,
            "planned": len(seeds),
            "attempts": len(used),
            "why": looked.why or "all planned attempts were made",
            **(asdict(stopping) if stopping.early else {}),
        }
        found = [
            _evaluation(p, [j.attempts[s] for s in used], reset_s, count_reset, about, [*notes, *j.notes])
            for p, j in zip(policies, journals, strict=True)
        ]
        for policy, evaluation in zip(policies, found, strict=True):
            evaluation.write(policy.result)
    return found


def training_seeds(checkpoint: Path, task: str) -> set[int] | None:
    """Start states of this task that the policy, and those that it was trained from, have learned from;
    None where that cannot be told.

    Read from the checkpoint's lineage and from the episodes of its run (`episodes/` in a folder above it).
    """
    run = next(
        (p for p in checkpoint.resolve().parents[:4] if any((p / "episodes").glob(f"*{SUFFIX}"))), None
    )
    names = _lineage(checkpoint, run)
    if names is None:
        return None
    if run is None:
        return None if names else set()
    seeds = set()
    for name in names:
        file = run / "episodes" / f"{name}{SUFFIX}"
        if not file.is_file():
            return None
        info = read_info(file)
        if info.task.name == task and info.seed >= 0:
            seeds.add(info.seed)
    return seeds


def _lineage(checkpoint: Path, run: Path | None) -> set[str] | None:
    """Ids of all episodes in the lineage; None where a link of it is missing."""
    names: set[str] = set()
    seen: set[Path] = set()
    while checkpoint.resolve() not in seen:
        seen.add(checkpoint.resolve())
        try:
            lineage = check(checkpoint, "policy").lineage
        except CheckpointError:
            return None
        if "episodes" not in lineage:
            return None
        names |= set(lineage["episodes"])
        if not (start := lineage.get("start")):
            break
        checkpoint = Path(start)
        if not checkpoint.is_dir() and run is not None:  # the run was moved
            checkpoint = run.joinpath(*checkpoint.parts[-2:])
    return names


class _Looks:
    """Looks at the attempts in the order of their start states, each number of them once.

    count: start states that have an attempt of every entrant, up to where to stop; why: the reason to.
    """

    def __init__(self, seeds: range, stopping: Stopping, journals: Sequence[Journal]) -> None:
        self.seeds, self.stopping, self.journals = seeds, stopping, journals
        self.outcomes: list[list[bool]] = [[] for _ in journals]
        self.count, self.why = 0, ""

    def ended(self) -> bool:
        while not self.why and self.count < len(self.seeds):
            seed = self.seeds[self.count]
            if not all(seed in journal.attempts for journal in self.journals):
                return False
            for outcomes, journal in zip(self.outcomes, self.journals, strict=True):
                outcomes.append(journal.attempts[seed].success)
            self.count += 1
            if self.stopping.early:
                self.why = self.stopping.reason(self.outcomes)
        return True


def _evaluation(
    policy: Entrant,
    attempts: Sequence[Attempt],
    reset_s: float,
    count_reset: bool,
    stopping: dict[str, Any],
    notes: Sequence[str],
) -> Evaluation:
    how, task = policy.rollouts, load_task(policy.rollouts.task)
    return Evaluation(
        name=policy.name,
        attempts=tuple(attempts),
        checkpoint=str(how.checkpoint),
        identity=policy.identity,
        task=task.name,
        station=load_station(how.station).name,
        stages=tuple(task.stages),
        settings={
            **asdict(how.sampling),
            "indicator": how.sampling.indicator or "none",
            "execute_steps": how.execute_steps,
            "latency_ticks": how.latency_ticks,
            "watched": how.operator,
        },
        reset_s=reset_s,
        count_reset=count_reset,
        stopping=stopping,
        notes=tuple(notes),
    )
