"""Training V(o, ℓ) on Monte-Carlo returns (eq. 1): cross-fitted, as an ensemble, stopped early, judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recap_learner.data.episodes import Episode
from recap_learner.data.frames import Frames
from recap_learner.training.distributed import crew
from recap_learner.training.training import Computation, Progress, Schedule, fit
from recap_learner.value.cotraining import CoTraining
from recap_learner.value.gates import ValueReport, judge_value
from recap_learner.value.mixture import Mixture, frame_odds
from recap_learner.value.returns import Normalizer, monte_carlo_returns, n_step_advantages
from recap_learner.value.value_data import check_outcomes, check_start, normalizers
from recap_learner.value.value_inference import COMBINE, inputs, member, outlook, per_tick
from recap_policy.checkpoint import load_value, save_value
from recap_policy.prefix import make_tokenizer
from recap_policy.sizes import value_config
from recap_policy.value import ValueModel


@dataclass(frozen=True)
class ValueTraining(Computation):
    """folds: each frame is scored by a model that did not train on its episode (cross-fitting), since an
    over-fitted value calls everything average. With 1, `held_out` of the episodes are kept back to stop and
    judge by, and the one model scores all. Early stop on the held-out cross-entropy of each fold. members,
    combine: an ensemble of so many models a fold, taken as their "mean" or as the "worst", at each frame the
    one that expects least. mixture: how often frames are drawn. fail_ratio, fail_rule: of the
    normaliser, see `returns.Normalizer`. tokenizer: as PolicyTraining's.
    """

    config: str = "value-tiny"
    schedule: Schedule = Schedule(steps=400, batch=256, learning_rate=1e-3, warmup=30, weight_decay=0.05)
    folds: int = 2
    held_out: float = 0.2
    check_every: int = 50
    patience: int = 3
    members: int = 1
    combine: str = "mean"
    mixture: Mixture = Mixture()
    fail_ratio: float = 1.0
    fail_rule: str = "ordered"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 1 or self.members < 1 or not 0 < self.held_out < 1 or self.combine not in COMBINE:
            raise ValueError(
                f"value training: {self.folds} folds, {self.members} members by {self.combine!r}, "
                f"{self.held_out} held out; wanted at least 1 and 1, {' or '.join(COMBINE)}, a share"
            )

    def for_steps(self, steps: int) -> ValueTraining:
        return replace(self, schedule=replace(self.schedule, steps=steps))


@dataclass(frozen=True)
class ValueResult:
    """values: episode id → (T,), held out where they are cross-fitted; failed: (T, 2) likewise, None where
    the normaliser does not tell failures; report: of all held-out episodes, by_task: of each task's."""

    values: dict[str, np.ndarray]
    failed: dict[str, np.ndarray] | None
    norms: dict[str, Normalizer]
    report: ValueReport
    by_task: dict[str, ValueReport]


def train_value(
    frames: Frames,
    out: Path,
    start: Path | None,
    how: ValueTraining,
    seed: int,
    lineage: dict[str, Any],
    progress: Progress | None = None,
    *,
    fresh: Callable[[Episode], bool] | None = None,
    cotraining: CoTraining | None = None,
) -> ValueResult:
    """Train V on all frames, of one task or several, and save it in `out`.

    start: the pre-trained value to fine-tune, None for a fresh one; of an ensemble each member starts from
    its own, and from the first where there are fewer. With k folds, k models are trained on the other folds'
    episodes, score their own, and the first is what is saved for use on the robot. fresh: which episodes the
    mixture's fresh share is of. cotraining: a loss beside the value's.

    Raises ValueError on fewer than two episodes, on episodes without an outcome, and on a start of another
    normaliser.
    """
    norms = normalizers(frames, how.fail_ratio, how.fail_rule)
    _check(frames, how)
    if start:
        check_start(start, norms)
    station = frames.episodes[0].info.station
    new = np.array([fresh(e) for e in frames.episodes]) if fresh else None
    target = _targets(frames, norms)
    order = np.random.default_rng(seed).permutation(len(frames.episodes))
    fold_of = np.empty(len(order), dtype=int)
    fold_of[order] = np.arange(len(order)) % how.folds
    if how.folds == 1:
        fold_of[order[max(1, round(how.held_out * len(order))) :]] = 1
    lineage = {**lineage, "normalizers": {task: norm.to_dict() for task, norm in norms.items()}}
    values: dict[str, np.ndarray] = {}
    failed: dict[str, np.ndarray] = {}
    for fold in range(how.folds):
        held_out = fold_of[frames.episode] == fold
        models = []
        for index in range(how.members):
            own = seed + 1009 * index
            begin = start and (member(start, index) if member(start, index).is_dir() else start)
            model = (
                load_value(begin, station, frames.tower)
                if begin
                else _fresh(frames, how, own + fold, cotraining.texts if cotraining else [])
            )
            name = f"{out.name}.fold{fold}" + (f".member{index}" if index else "")
            at, count = fold * how.members + index, how.folds * how.members
            dtype = _fit_value(
                model, frames, target, held_out, how, own + 17 * fold, out.parent / "training" / name,
                _part(progress, at, count), new, cotraining,
            )  # fmt: skip
            models.append(model)
        scored = frames.where(held_out) if how.folds > 1 else frames
        found = outlook(models, scored, how.combine, precision=dtype)
        values |= per_tick(found.value, scored)
        failed |= per_tick(found.failed, scored)
        if fold == 0:
            prompts = sorted(set(frames.prompts))
            for index, model in enumerate(models if crew().first else ()):
                to = member(out, index)
                save_value(model, to, lineage, station=station, tower=frames.tower, prompts=prompts)
    judged = [e for e, fold in zip(frames.episodes, fold_of, strict=True) if fold < how.folds]
    report, by_task = report_value(values, judged, norms, frames.failed_at)
    tells = all(norm.tells_failures for norm in norms.values())
    return ValueResult(values, failed if tells else None, norms, report, by_task)


def report_value(
    values: dict[str, np.ndarray],
    episodes: list[Episode],
    norms: dict[str, Normalizer],
    failed_at: dict[str, int],
) -> tuple[ValueReport, dict[str, ValueReport]]:
    """Judge values of episodes that their model had not seen → of all, and by task."""

    def judge(judged: list[Episode]) -> ValueReport:
        second = round(judged[0].info.station.control_rate_hz)
        own = [(values[e.info.id], e.info.success, norms[e.info.task.name]) for e in judged]
        return judge_value(
            [value for value, _, _ in own],
            [monte_carlo_returns(len(value), success, norm) for value, success, norm in own],
            [success for _, success, _ in own],
            [n_step_advantages(value, success, second, norm) for value, success, norm in own],
            second,
            [e.correction for e in judged],
            [failed_at.get(e.info.id, -1) for e in judged],
        )

    known = [e for e in episodes if e.info.id in values]
    of_task = {t: [e for e in known if e.info.task.name == t] for t in norms}
    return judge(known), {task: judge(own) for task, own in of_task.items() if own}


def _check(frames: Frames, how: ValueTraining) -> None:
    check_outcomes(frames.episodes)
    count = len(frames.episodes)
    if count < max(2, how.folds):
        raise ValueError(
            f"value training on {count} episode{'s' * (count != 1)} with {how.folds} folds, wanted at least "
            f"{max(2, how.folds)}: a value is judged on episodes that it has not seen; record more"
        )
    without = set(range(count)) - set(frames.episode.tolist())
    if without:
        name = frames.episodes[min(without)].info.id
        raise ValueError(f"{len(without)} episodes have no frame, the first: {name}: leave them out")


def _fit_value(
    model: ValueModel,
    frames: Frames,
    target: torch.Tensor,
    held_out: np.ndarray,
    how: ValueTraining,
    seed: int,
    workbench: Path,
    progress: Progress | None,
    fresh: np.ndarray | None,
    cotraining: CoTraining | None,
) -> torch.dtype:
    """Train in place → the type that the passes were in."""
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    test = test[:: max(1, len(test) // 1500)]
    placement = how.prepare(model)
    target = target.to(placement.device)
    draw = _draw(frames, train, how, fresh)

    def loss(step: int, generator: torch.Generator, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
        pick = train[draw(generator)][rows]
        logits = model.logits(**inputs(frames.where(pick), model))
        crossed = F.cross_entropy(logits, model.two_hot(target[pick]))
        if cotraining is None:
            return {"loss": crossed}
        beside = cotraining(model, step, generator)
        return {"loss": crossed + cotraining.weight * beside, "value": crossed, "cotraining": beside}

    def held_out_loss() -> float:
        logits = model.logits(**inputs(frames.where(test), model))
        return float(F.cross_entropy(logits, model.two_hot(target[test])))

    stop = EarlyStop(model, held_out_loss, how.check_every, how.patience)
    fit(model, loss, how.schedule, seed, workbench, progress, stop, placement.dtype, how)
    if stop.weights:
        model.load_state_dict(stop.weights)
    model.eval()
    return placement.dtype


def _draw(
    frames: Frames, train: np.ndarray, how: ValueTraining, fresh: np.ndarray | None
) -> Callable[[torch.Generator], np.ndarray]:
    """A batch of places among the training frames, evenly or by the mixture."""
    count, batch, mixture, own = len(train), how.schedule.batch, how.mixture, frames.where(train)
    if fresh is not None and len(np.unique(fresh[own.episode])) < 2:
        mixture = replace(mixture, fresh_share=None)  # all that is fresh, or all that is not, is held out
    if mixture.even:
        return lambda generator: torch.randint(count, (batch,), generator=generator).numpy()
    up_to = np.cumsum(frame_odds(own, mixture, fresh))

    def drawn(generator: torch.Generator) -> np.ndarray:
        place = torch.rand(batch, generator=generator, dtype=torch.float64).numpy() * up_to[-1]
        return np.searchsorted(up_to, place, side="right").clip(max=count - 1)

    return drawn


class EarlyStop:
    """A training.Stop that remembers the best weights: those at which `check`, looked at every so many steps
    without dropout, was least. Ends where the last `patience` looks brought nothing better."""

    def __init__(self, model: nn.Module, check: Callable[[], float], check_every: int, patience: int) -> None:
        self._model, self._check, self._every, self._patience = model, check, check_every, patience
        self.least, self.bad, self.weights = float("inf"), 0, dict[str, torch.Tensor]()

    def due(self, step: int) -> bool:
        return (step + 1) % self._every == 0

    @torch.no_grad()
    def __call__(self, step: int) -> bool:
        if not self.due(step):
            return False
        self._model.eval()
        found = self._check()
        self._model.train()
        if found < self.least:
            self.least, self.bad = found, 0
            self.weights = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        else:
            self.bad += 1
        return self.bad >= self._patience

    def state_dict(self) -> dict[str, Any]:
        return {"least": self.least, "bad": self.bad, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.least, self.bad, self.weights = state["least"], state["bad"], state["weights"]


def _targets(frames: Frames, norms: dict[str, Normalizer]) -> torch.Tensor:
    returns = {
        e.info.id: monte_carlo_returns(len(e), e.info.success, norms[e.info.task.name])
        for e in frames.episodes
    }
    return torch.from_numpy(frames.per_tick(returns).astype(np.float32))


def _fresh(frames: Frames, how: ValueTraining, seed: int, others: list[str]) -> ValueModel:
    torch.manual_seed(seed)
    shape = value_config(how.config)
    if shape.vision is None:  # it takes the tokens that are there
        tokens, width = frames.tokens.shape[2:]
        shape = replace(shape, vision_tokens=tokens, vision_width=width)
    texts = sorted({*frames.prompts, *others})
    model = ValueModel(shape, make_tokenizer(shape.backbone, shape.prefix, texts, how.tokenizer))
    model.fit_normalizers(torch.from_numpy(frames.state))
    return model


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda fraction, text: progress((index + fraction) / count, f"fold {index + 1}/{count}: {text}")
