"""The stages of Algorithm 1 in one run's folder: what each needs, what it leaves, and what it may overlap.

    pretrain/                   vision/, value/, values.npz, labels.parquet, policy/
    demonstrations/             bags
    episodes/                   one Parquet file an attempt; tokens/ caches image features
    iteration_00/               policy/ (SFT), value/ (V⁰), eval.json
    iteration_KK/               bags/, live/, value/, values.npz, labels.parquet, policy/, eval.json
    iteration_KK/arms/<arm>/    policy/, eval.json
    generalist/                 policy/, eval.json by task

With several tasks each has a folder of its own for its demonstrations and iterations. Where attempts come
from is the business of a `Cell` (cell.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recap_learner.arms import ARMS
from recap_learner.arms import arm as find_arm
from recap_learner.arms.base import Arm
from recap_learner.artefacts import examine
from recap_learner.cell import Cell, Collection, Order
from recap_learner.data.episodes import SUFFIX, Episode, EpisodeInfo
from recap_learner.data.frames import Frames
from recap_learner.data.judgements import LOG as JUDGEMENTS
from recap_learner.iteration import (
    convert,
    fit_policy,
    fit_value,
    make_labels,
    notices,
    open_frames,
    outcomes,
)
from recap_learner.stages import Made, Report, Stages
from recap_learner.training.policy_training import PolicyTraining
from recap_learner.training.vision_training import VisionTraining, train_vision
from recap_learner.value.cotraining import Captions
from recap_learner.value.gates import Gates, check_found
from recap_learner.value.labels import LabelRule
from recap_learner.value.value_training import ValueTraining
from recap_policy.checkpoint import load_vision
from recap_policy.description import read
from recap_policy.objects import ObjectTower

LABELS, VALUES = "labels.parquet", "values.npz"


class Rounds:
    """One run's stages. Made are passed on, never paths: who needs a stage that runs beside waits for it."""

    def __init__(self, stages: Stages, cell: Cell | None, tasks: Sequence[str]) -> None:
        """cell: None where attempts come from elsewhere; then none can be asked for."""
        self.stages, self._cell, self.run = stages, cell, stages.folder
        self.store, self.pretrain = self.run / "episodes", self.run / "pretrain"
        self.several = len(tasks) > 1
        # Training and attempts that share cores wait for each other: torch's threads meet after every
        # operation, and one that must wait for its core keeps all waiting.
        self.beside = _cores() > torch.get_num_threads()
        self._tower: Made | None = None
        self._open: tuple[object, Frames] | None = None

    @property
    def cell(self) -> Cell:
        assert self._cell is not None, "these rounds have no cell"
        return self._cell

    def folder(self, task: str | None, k: int, beside: str = "") -> Path:
        """None: of the pre-training, which is of all tasks. beside: as `policy`'s."""
        folder = self.pretrain if task is None else self._home(task) / f"iteration_{k:02d}"
        return folder / "arms" / beside if beside else folder

    def demonstrations(self, task: str) -> Made:
        what = self.cell.demonstrations(task)
        order = Order(task, self._home(task) / "demonstrations", self.store, 0)
        return self._collect(self._name(task, None, "demonstrations"), what, order, (), beside=self.beside)

    def vision(self, task: str, how: VisionTraining, seed: int) -> Made:
        out, station = self.pretrain / "vision", self.cell.station
        self._tower = self.stages.stage(
            "vision",
            "Vision pre-training",
            lambda report: {
                "median_error_m": train_vision(
                    station, task, out, how, seed, {"seed": seed}, _cores(), report
                )
            },
            settings=[station, task, how, seed],
            outputs=[out],
            leftovers=[out, out.parent / ".scenes.npz", *_workbench(out)],
        )
        return self._tower

    def policy_folder(self, made: Made) -> Path:
        """Where the checkpoint of a policy's stage is."""
        return self._output(made, "policy")

    def take(self, tower: Made) -> None:
        """Go on with a tower that is there."""
        self._tower = tower

    def collect(self, task: str, k: int, policy: Made, value: Made) -> list[Made]:
        """Attempts of π^{k−1}, in all ways that the cell has → their episodes, to be added to D_ℓ."""
        bags = []
        for what in self.cell.collections(task, k):
            order = Order(
                task, self.folder(task, k) / what.folder, self.store, k, self._output(policy, "policy"),
                self._output(value, "value"),
            )  # fmt: skip
            name = self._name(task, k, what.name)
            bags.append(self._collect(name, what, order, (policy, value) if what.alone else (policy,)))
        return [self.episodes(task, k, *bags)]

    def episodes(self, task: str, k: int, *bags: Made, converted: Sequence[Path] = ()) -> Made:
        """Convert, and look at every frame with the tower. → episode files, in an order that does not depend
        on when they were recorded. converted: those that are in the store already."""
        given = [self.stages.given("converted attempts", converted)] if converted else []

        def work(report: Report) -> dict[str, Any]:
            files = list(converted)
            problems: list[str] = []
            for one in bags:
                folders = [self.run / out for out in one.record["outputs"]]
                found, wrong = convert(folders, self.store, lambda f, note: report(0.4 * f, note), _cores())
                files, problems = files + found, problems + wrong
            frames = open_frames(files, self._vision, lambda f, note: report(0.4 + 0.6 * f, note), False)
            names = [str(file.relative_to(self.run)) for file in files]
            counts = {"episodes": len(frames.episodes), "frames": len(frames)}
            return {**counts, "outcomes": outcomes(frames), "left_out": problems, "files": names}

        return self.stages.stage(
            self._name(task, k if k else None, "episodes"),
            f"Attempts to episodes{self._of(task, k)}",
            work,
            settings=None,
            inputs=[*bags, *given, *self._towers()],
            outputs=lambda result: [self.run / name for name in result["files"]],
        )

    def value(
        self,
        task: str | None,
        k: int,
        data: Sequence[Made],
        start: Made | None,
        how: ValueTraining,
        seed: int,
        gates: Gates | None = None,
        captions: Path | None = None,
        fresh: Sequence[str] | None = None,
        beside: str = "",
    ) -> Made:
        """fresh: ids of the episodes that a fresh share is of, in `policy` too; None: the iteration's own
        attempts. Before the first iteration nothing is fresh. beside: as `policy`'s.
        gates: no reason to train anew. captions: to co-train on. Raises GateError where it fails gates."""
        folder = self.folder(task, k, beside)
        before = self._output(start, "value") if start else None
        if not k:
            how = replace(how, mixture=replace(how.mixture, fresh_share=None))

        def work(report: Report) -> dict[str, Any]:
            frames, cotraining = self._frames(data), None
            if captions is not None:
                tower = load_vision(self._vision)
                if isinstance(tower, ObjectTower):
                    raise ValueError(f"{captions}: a value on states sees no pictures, wanted no co-training")
                cotraining = Captions.from_parquet(captions, tower, tower.config.image_size)
            found = fit_value(
                *(frames, folder, before, how, seed, report),
                fresh=_among(_names(data[-1]) if fresh is None else fresh), cotraining=cotraining,
            )  # fmt: skip
            return {**found, "notices": notices(frames)}

        made = self.stages.stage(
            self._name(task, k, "pretrain_value" if task is None else "value", beside),
            "Pre-train value" if task is None else f"Value function{self._of(task, k, beside)}",
            work,
            settings=[how, seed, *([sorted(fresh)] if fresh else [])],
            inputs=[*self._learning(data, start), *([captions] if captions else [])],
            outputs=[folder / "value", folder / VALUES],
            leftovers=[folder / "value", folder / VALUES, *_workbench(folder / "value")],
        )
        if gates is not None:
            check_found(made.result, gates, f"the value function in {folder}")
        return made

    def labels(
        self,
        task: str | None,
        k: int,
        data: Sequence[Made],
        value: Made,
        rule: LabelRule,
        beside: str = "",
    ) -> Made:
        """Threshold from this iteration's autonomous frames; in pre-training from the demonstrations.
        beside: as `policy`'s."""
        folder, newest = self.folder(task, k, beside), _names(data[-1])
        values, store = self._output(value, VALUES), None if beside else self.store

        def judged(info: EpisodeInfo) -> bool:
            return task is None or (info.id in newest and info.source == "rollout")

        def work(report: Report) -> dict[str, Any]:
            return make_labels(self._frames(data), folder, rule, judged, store, values)

        return self.stages.stage(
            self._name(task, k, "pretrain_labels" if task is None else "labels", beside),
            "Pre-training labels" if task is None else f"Labels{self._of(task, k, beside)}",
            work,
            settings=[rule],
            inputs=self._learning(data, value),
            outputs=[folder / LABELS],
        )

    def policy(
        self,
        task: str | None,
        k: int,
        data: Sequence[Made],
        start: Made | None,
        arm: str | Arm,
        labels: Made | None,
        how: PolicyTraining,
        seed: int,
        beside: str = "",
        pretrained: Made | None = None,
        fresh: Sequence[str] | None = None,
    ) -> Made:
        """beside: the name of a policy that is not the iteration's own but one to compare it with."""
        folder, by = self.folder(task, k, beside), find_arm(arm) if isinstance(arm, str) else arm
        if not k:
            how = replace(how, fresh_share=None)
        name = "pretrain_policy" if task is None else "sft" if k == 0 and not beside else "policy"
        title = "Pre-train policy" if task is None else "Supervised policy (SFT)" if k == 0 else "Policy"
        if beside or (by.name != "recap" and name != "sft"):
            title = by.title
        named, titled = self._name(task, k, name, beside), f"{title}{self._of(task, k, beside)}"
        return self._policy(
            *(named, titled, folder, data, start, by),
            *([labels] if labels else [], [pretrained] if pretrained else [], how, seed, fresh),
        )

    def generalist(
        self, data: Sequence[Made], labels: Sequence[Made], how: PolicyTraining, seed: int
    ) -> Made:
        """From scratch on everything, under the specialists' last labels."""
        folder, arm = self.run / "generalist", find_arm("recap")
        return self._policy("generalist", "Generalist", folder, data, None, arm, labels, [], how, seed)

    def evaluate(self, task: str, k: int, policy: Made, name: str = "") -> Made | None:
        """Beside what follows, where there are cores for it. name: an arm's, or the generalist."""
        folder = self._output(policy, "policy")
        how = self.cell.evaluation(task, folder, self.store)
        if how is None:
            return None
        out = folder.parent / ("eval.json" if name != "generalist" else f"eval_{Path(task).stem}.json")
        title = f"Evaluation{self._of(task, k)}"

        def work(report: Report) -> dict[str, Any]:
            asked = read(folder).lineage["arm"]["asked"]
            return how.run(folder, asked, out, report)

        return self.stages.stage(
            self._name(task, k, f"evaluate_{name}" if name else "evaluate"),
            f"{title}, {find_arm(name).title if name and name != 'generalist' else name}" if name else title,
            work,
            settings=[task, how.settings],
            inputs=[policy, *how.inputs],
            outputs=lambda result: [out] if out.exists() else [],
            leftovers=[out.with_suffix(".*")],
            beside=self.beside,
        )

    def _policy(
        self, name: str, title: str, folder: Path, data: Sequence[Made], start: Made | None, arm: Arm,
        labels: Sequence[Made], pretrained: Sequence[Made], how: PolicyTraining, seed: int,
        fresh: Sequence[str] | None = None,
    ) -> Made:  # fmt: skip
        before, out = self._output(start, "policy") if start else None, folder / "policy"

        def work(report: Report) -> dict[str, Any]:
            own, before_them = [[self._output(one, LABELS) for one in some] for some in (labels, pretrained)]
            frames, new = self._frames(data), _among(_names(data[-1]) if fresh is None else fresh)
            return fit_policy(
                frames, folder, before, self._vision, how, seed, report, arm, own, before_them, new
            )

        return self.stages.stage(
            name,
            title,
            work,
            settings=[how, seed, {"arm": arm.name}, arm, *([sorted(fresh)] if fresh else [])],
            inputs=[*self._learning(data, start), *labels, *pretrained],
            outputs=[out],
            leftovers=[out, *_workbench(out)],
        )

    def _collect(
        self, name: str, what: Collection, order: Order, inputs: Sequence[Made], beside: bool = False
    ) -> Made:
        journal = order.bags.with_suffix(".jsonl")
        return self.stages.stage(
            name,
            f"{what.title}{self._of(order.task, order.iteration)}",
            lambda report: what.fill(order, report),
            settings=[self.cell.station, order.task, what.settings],
            inputs=inputs,
            outputs=[order.bags],
            leftovers=[order.bags, journal] if what.ours else [],
            beside=beside,
            alone=what.alone,
        )

    def _frames(self, data: Sequence[Made]) -> Frames:
        """All frames of some episodes. Those of a round's stages are read once."""
        said = examine(self.store / JUDGEMENTS)
        key = said and said.sha256, *(self.stages.digest(one) for one in data)
        if self._open is None or self._open[0] != key:
            files = [self.run / out for one in data for out in one.record["outputs"]]
            self._open = None  # before the next are read: memory for one
            self._open = key, open_frames(files, self._vision)
        return self._open[1]

    def _learning(self, data: Sequence[Made], start: Made | None) -> list[Made | Path]:
        """Inputs of whatever learns: episodes, what people said of them, the tower, and where it starts."""
        return [*data, self.store / JUDGEMENTS, *self._towers(), *([start] if start else [])]

    def _output(self, made: Made, name: str) -> Path:
        """The output of that name of a stage."""
        found = [out for out in made.record["outputs"] if Path(out).name == name]
        return self.run / found[0]

    def _towers(self) -> list[Made]:
        return [self._tower] if self._tower else []

    @property
    def _vision(self) -> Path:
        assert self._tower is not None, "vision or take comes first"
        return self._output(self._tower, "vision")

    def _home(self, task: str) -> Path:
        return self.run / Path(task).stem if self.several else self.run

    def _name(self, task: str | None, k: int | None, name: str, beside: str = "") -> str:
        """iteration_01.value, with its task before it where there are several, and whose it is behind it."""
        words = [Path(task).stem] if task and self.several else []
        words += [f"iteration_{k:02d}"] if task is not None and k is not None else []
        return ".".join([*words, f"{name}_{beside}" if beside else name])

    def _of(self, task: str | None, k: int, beside: str = "") -> str:
        words = [Path(task).stem] if task and self.several else []
        words += [f"iteration {k}"] if k else []
        words += [beside] if beside and beside not in ARMS else []
        return f", {', '.join(words)}" if words else ""


def _names(episodes: Made) -> set[str]:
    """Ids of the episodes that a stage converted."""
    return {Path(out).name.removesuffix(SUFFIX) for out in episodes.record["outputs"]}


def _among(ids: Iterable[str]) -> Callable[[Episode], bool]:
    names = frozenset(ids)
    return lambda episode: episode.info.id in names


def _workbench(out: Path) -> list[Path]:
    """Where `fit` saves what it trains into `out`."""
    return [out.parent / "training" / out.name, out.parent / "training" / f"{out.name}.*"]


def _cores() -> int:
    return len(os.sched_getaffinity(0))
