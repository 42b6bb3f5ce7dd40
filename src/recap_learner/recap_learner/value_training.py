"""Training V(o, ℓ) on Monte-Carlo returns (eq. 1) and evaluating it at every tick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recap_learner.frames import Frames
from recap_learner.gates import ValueReport, judge_value
from recap_learner.returns import Normalizer, monte_carlo_returns, n_step_advantages
from recap_learner.training import Computation, Progress, Schedule, fit
from recap_policy.checkpoint import load_value, save_value
from recap_policy.config import value_config
from recap_policy.prefix import fill_slots, make_tokenizer
from recap_policy.value import ValueModel


@dataclass(frozen=True)
class ValueTraining(Computation):
    """Folds: each frame is scored by a model that did not train on its episode (cross-fitting), since an
    over-fitted value calls everything average. Early stop on the held-out cross-entropy of each fold.
    tokenizer: as PolicyTraining's."""

    config: str = "value-tiny"
    schedule: Schedule = Schedule(steps=400, batch=256, learning_rate=1e-3, warmup=30, weight_decay=0.05)
    folds: int = 2
    check_every: int = 50
    patience: int = 3
    tokenizer: str | None = None

    def for_steps(self, steps: int) -> ValueTraining:
        return replace(self, schedule=replace(self.schedule, steps=steps))


def normalizer(frames: Frames) -> Normalizer:
    """The task's normaliser, from its contract. Raises ValueError if the frames are of several tasks."""
    tasks = {e.info.task.name: e.info for e in frames.episodes}
    if len(tasks) != 1:
        raise ValueError(f"wanted episodes of one task, found {sorted(tasks)}")
    info = next(iter(tasks.values()))
    return Normalizer(round(info.task.max_episode_s * info.station.control_rate_hz))


def train_value(
    frames: Frames,
    out: Path,
    start: Path | None,
    how: ValueTraining,
    seed: int,
    lineage: dict[str, Any],
    progress: Progress | None = None,
) -> tuple[dict[str, np.ndarray], ValueReport]:
    """Train V on all frames and save it in `out` → (episode id → (T,) values, report), both held out.

    start: the pre-trained value to fine-tune, None for a fresh one. With k folds, k models are trained
    on the other folds' episodes, score their own, and the first is what is saved for use on the robot.
    """
    norm = normalizer(frames)
    station = frames.episodes[0].info.station
    target = _targets(frames, norm)
    order = np.random.default_rng(seed).permutation(len(frames.episodes))
    fold_of = np.empty(len(order), dtype=int)
    fold_of[order] = np.arange(len(order)) % how.folds
    values: dict[str, np.ndarray] = {}
    for fold in range(how.folds):
        held_out = fold_of[frames.episode] == fold
        model = load_value(start, station, frames.tower) if start else _fresh(frames, how, seed + fold)
        _fit_value(
            model,
            frames,
            target,
            held_out,
            how,
            seed + 17 * fold,
            out.parent / "training" / f"{out.name}.fold{fold}",
            _part(progress, fold, how.folds),
        )
        values.update(value_per_tick(model, frames.where(held_out)))
        if fold == 0:
            prompts = sorted(set(frames.prompts))
            save_value(model, out, lineage, station=station, tower=frames.tower, prompts=prompts)
    report = report_value(values, frames, norm)
    return values, report


def value_per_tick(model: ValueModel, frames: Frames, batch: int = 512) -> dict[str, np.ndarray]:
    """V at every tick of every episode with a frame: at the frames by the model, linear in between."""
    out = []
    with torch.no_grad():
        for i in range(0, len(frames), batch):
            part = frames.where(np.arange(i, min(i + batch, len(frames))))
            out.append(model.value(**_inputs(part, model)).cpu().numpy())
    at_frames = np.concatenate(out)
    values = {}
    for index in np.unique(frames.episode):
        rows = frames.episode == index
        episode = frames.episodes[index]
        values[episode.info.id] = np.interp(
            np.arange(len(episode)), frames.tick[rows], at_frames[rows]
        ).astype(np.float32)
    return values


def report_value(values: dict[str, np.ndarray], frames: Frames, norm: Normalizer) -> ValueReport:
    """Judge values of episodes that their model had not seen."""
    judged = [e for e in frames.episodes if e.info.id in values]
    second = round(judged[0].info.station.control_rate_hz)
    return judge_value(
        [values[e.info.id] for e in judged],
        [monte_carlo_returns(len(e), e.info.success, norm) for e in judged],
        [e.info.success for e in judged],
        [n_step_advantages(values[e.info.id], e.info.success, second, norm) for e in judged],
        second,
    )


def _fit_value(
    model: ValueModel,
    frames: Frames,
    target: torch.Tensor,
    held_out: np.ndarray,
    how: ValueTraining,
    seed: int,
    workbench: Path,
    progress: Progress | None,
) -> None:
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    test = test[:: max(1, len(test) // 1500)]
    placement = how.prepare(model)
    target = target.to(placement.device)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = train[torch.randint(len(train), (how.schedule.batch,), generator=generator).numpy()]
        logits = model.logits(**_inputs(frames.where(pick), model))
        return {"loss": F.cross_entropy(logits, model.two_hot(target[pick]))}

    def held_out_loss() -> float:
        logits = model.logits(**_inputs(frames.where(test), model))
        return float(F.cross_entropy(logits, model.two_hot(target[test])))

    stop = EarlyStop(model, held_out_loss, how.check_every, how.patience)
    fit(model, loss, how.schedule, seed, workbench, progress, stop, placement.dtype)
    if stop.weights:
        model.load_state_dict(stop.weights)
    model.eval()


class EarlyStop:
    """A training.Stop that remembers the best weights: those at which `check`, looked at every so many steps
    without dropout, was least. Ends where the last `patience` looks brought nothing better."""

    def __init__(self, model: nn.Module, check: Callable[[], float], check_every: int, patience: int) -> None:
        self._model, self._check, self._every, self._patience = model, check, check_every, patience
        self.least, self.bad, self.weights = float("inf"), 0, dict[str, torch.Tensor]()

    @torch.no_grad()
    def __call__(self, step: int) -> bool:
        if (step + 1) % self._every:
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


def _targets(frames: Frames, norm: Normalizer) -> torch.Tensor:
    returns = {e.info.id: monte_carlo_returns(len(e), e.info.success, norm) for e in frames.episodes}
    return torch.from_numpy(frames.per_tick(returns).astype(np.float32))


def _inputs(frames: Frames, model: ValueModel) -> dict[str, Any]:
    """What the model takes, where it is."""
    device = model.centres.device
    features = torch.from_numpy(frames.tokens.astype(np.float32)).to(device)
    features, camera_mask = fill_slots(features, model.config.prefix.cameras)
    return {
        "image_features": features,
        "state": torch.from_numpy(frames.state).to(device),
        "prompt": frames.prompts.tolist(),
        "camera_mask": camera_mask,
    }


def _fresh(frames: Frames, how: ValueTraining, seed: int) -> ValueModel:
    torch.manual_seed(seed)
    shape = value_config(how.config)
    texts = sorted(set(frames.prompts))
    model = ValueModel(shape, make_tokenizer(shape.backbone, shape.prefix, texts, how.tokenizer))
    model.fit_normalizers(torch.from_numpy(frames.state))
    return model


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda fraction, text: progress((index + fraction) / count, f"fold {index + 1}/{count}: {text}")
