"""Training the advantage-conditioned policy (eq. 3): sub-task text and flow matching, given the indicator."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.arms import Arm
from recap_learner.arms.recap import Recap
from recap_learner.data.frames import Frames
from recap_learner.training.distributed import crew
from recap_learner.training.training import Computation, Progress, Schedule, fit
from recap_policy.checkpoint import load_policy, load_vision, save_policy
from recap_policy.config import vla_config
from recap_policy.prefix import fill_slots, make_tokenizer
from recap_policy.vla import VLA, Batch

RECAP = Recap()


@dataclass(frozen=True)
class PolicyTraining(Computation):
    """draws: noise draws a sample in the flow loss (they share one pass of the backbone).
    indicator_dropout: share of examples trained without the indicator (paper: 0.3).
    positive_share: if set, positives are drawn so that they make up this share of every batch;
    otherwise frames are drawn evenly. Positive and not dropped is else only 0.4 × 0.7 of the samples.
    tokenizer: Gemma's tokenizer.json, for a fresh policy whose table is Gemma's."""

    config: str = "tiny"
    schedule: Schedule = Schedule(steps=1800, batch=128, learning_rate=2e-3)
    draws: int = 2
    indicator_dropout: float = 0.3
    positive_share: float | None = None
    tokenizer: str | None = None

    def for_steps(self, steps: int) -> PolicyTraining:
        return replace(self, schedule=replace(self.schedule, steps=steps))


# From the pre-trained checkpoint, at a third of its learning rate (choice).
FINETUNING = PolicyTraining(schedule=Schedule(steps=700, batch=128, learning_rate=7e-4), positive_share=0.75)


def train_policy(
    frames: Frames,
    indicator: np.ndarray,
    out: Path,
    start: Path | None,
    vision: Path,
    how: PolicyTraining,
    seed: int,
    lineage: dict[str, Any],
    progress: Progress | None = None,
    *,
    arm: Arm = RECAP,
    weight: np.ndarray | None = None,
    advantage: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """Train π on `frames` and save it in `out` → the log.

    indicator: (F,) int8, 1 positive, 0 negative, -1 absent; start: the checkpoint to fine-tune (its
    normalisers are kept), None for a fresh policy on the vision tower in folder `vision`. arm: whose
    objective is minimised; weight, advantage: (F,) float32 of its `Lesson`, None: all alike.

    A killed training that is started again goes on where it was; see `fit` for what it raises.
    """
    chunks = torch.from_numpy(frames.chunks())
    station = frames.episodes[0].info.station
    model = load_policy(start, station) if start else _fresh(frames, chunks, how, vision, seed)
    # The tower is frozen: its tokens were computed once for every frame.
    model.vision.requires_grad_(False)
    placement = how.prepare(model)
    loss = PolicyLoss(model, frames, chunks, indicator, how, placement.device, arm, weight, advantage)
    workbench = out.parent / "training" / out.name
    log = fit(
        model, loss, how.schedule, seed, workbench, progress, loss.reference, placement.dtype, how=how
    )
    if crew().first:
        save_policy(model, out, lineage, station=station, prompts=sorted(set(frames.prompts)))
    crew().wait()
    return log


class PolicyLoss:
    """The loss of a step, as `fit` wants it: frames are drawn with replacement, evenly or so that positive
    ones make up `positive_share`; what is minimised is the arm's objective."""

    def __init__(
        self,
        model: VLA,
        frames: Frames,
        chunks: torch.Tensor,
        indicator: np.ndarray,
        how: PolicyTraining,
        device: torch.device,
        arm: Arm = RECAP,
        weight: np.ndarray | None = None,
        advantage: np.ndarray | None = None,
    ) -> None:
        self._model, self._frames, self._how, self._device, self._arm = model, frames, how, device, arm
        self._chunks, self._state = chunks, torch.from_numpy(frames.state)
        self._indicator = torch.from_numpy(indicator.astype(np.int64))
        self._stages, self._prompts = frames.stages, frames.prompts
        self._odds = torch.from_numpy(_odds(indicator == 1, how.positive_share))
        self._weight = _column(weight, np.ones(len(frames), np.float32))
        self._advantage = _column(advantage, np.zeros(len(frames), np.float32))
        self.reference = Reference(model, arm.refresh) if arm.refresh else None
        self.data_s = self.data_cpu_s = 0.0

    def __call__(
        self, step: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> dict[str, torch.Tensor]:
        begin, cpu = time.monotonic(), time.thread_time()
        pick = self._pick(generator)[rows]
        count, draws, rate = self._how.schedule.batch, self._how.draws, self._how.indicator_dropout
        drawn = self._model.draw(count, generator, draws, rate)[rows]
        batch = self._batch(pick).to(self._device)
        self.data_s += time.monotonic() - begin
        self.data_cpu_s += time.thread_time() - cpu
        terms, before = self._model.terms(batch, drawn=drawn), None
        if self.reference is not None:
            with torch.no_grad():
                before = self.reference.model.terms(batch, drawn=drawn)
        advantage, weight = (c[pick].to(self._device) for c in (self._advantage, self._weight))
        losses = {k: v.mean() for k, v in self._arm.objective(terms, before, advantage, weight).items()}
        shown = {name: each.detach().mean() for name, each in terms.items()}
        return {"loss": self._model.total(losses), **shown}

    def name(self, generator: torch.Generator, row: int) -> str:
        """Which sample stands in a row of the batch."""
        frame = self._pick(generator)[row]
        episode = self._frames.episodes[self._frames.episode[frame]]
        return f"episode {episode.info.id}, tick {self._frames.tick[frame]}"

    def _pick(self, generator: torch.Generator) -> np.ndarray:
        count = self._how.schedule.batch
        return torch.multinomial(self._odds, count, replacement=True, generator=generator).numpy()

    def _batch(self, pick: np.ndarray) -> Batch:
        features = torch.from_numpy(self._frames.tokens[pick].astype(np.float32))
        features, camera_mask = fill_slots(features, self._model.config.prefix.cameras)
        return Batch(
            image_features=features,
            state=self._state[pick],
            prompt=self._prompts[pick].tolist(),
            subtask=self._stages[pick].tolist(),
            indicator=self._indicator[pick],
            actions=self._chunks[pick],
            camera_mask=camera_mask,
        )


class Reference:
    """The policy as it was, renewed every `every` steps. A `Stop` that never stops: so it is saved and
    restored with the training."""

    def __init__(self, model: VLA, every: int) -> None:
        self._trained, self._every = model, every
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def due(self, step: int) -> bool:
        return (step + 1) % self._every == 0

    def __call__(self, step: int) -> bool:
        if self.due(step):
            self.model.load_state_dict(self._trained.state_dict())
        return False

    def state_dict(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)


def _odds(positive: np.ndarray, wanted: float | None) -> np.ndarray:
    """Probability of each frame → (F,) float64."""
    weight = np.full(len(positive), 1.0 / len(positive))
    if wanted is not None:
        share = positive.mean()
        if 0 < share < wanted:
            weight = np.where(positive, wanted / share, (1 - wanted) / (1 - share))
            weight /= weight.sum()
    return weight


def _column(given: np.ndarray | None, default: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(default if given is None else given.astype(np.float32))


def _fresh(frames: Frames, chunks: torch.Tensor, how: PolicyTraining, vision: Path, seed: int) -> VLA:
    torch.manual_seed(seed)
    shape = vla_config(how.config)
    texts = sorted({*frames.prompts, *frames.stages})
    model = VLA(shape, make_tokenizer(shape.backbone, shape.prefix, texts, how.tokenizer))
    model.vision.load_state_dict(load_vision(vision).state_dict())
    is_gripper = torch.from_numpy(frames.episodes[0].info.station.is_gripper)
    model.fit_normalizers(chunks, torch.from_numpy(frames.state), is_gripper)
    return model
