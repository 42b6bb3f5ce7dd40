"""Training the advantage-conditioned policy (eq. 3): sub-task text and flow matching, given the indicator."""

from __future__ import annotations

import copy
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap_learner.arms import Arm
from recap_learner.arms.recap import Recap
from recap_learner.data.drawn_images import DrawnImages
from recap_learner.data.frames import Frames
from recap_learner.data.samples import LoaderConfig
from recap_learner.training.distributed import crew, generator_of, parts
from recap_learner.training.training import Computation, Progress, Schedule, fit
from recap_learner.value.mixture import share_out
from recap_policy.checkpoint import load_policy, load_vision, save_policy, tower_identity
from recap_policy.config import VisionConfig
from recap_policy.prefix import fill_slots, make_tokenizer
from recap_policy.sizes import vla_config
from recap_policy.vla import VLA, Batch
from recap_station.contract import ContractError

RECAP = Recap()
TOWERS = ("cached", "frozen", "trained")
_FITTED = 50_000  # frames, at most, that normalisers are fitted on


@dataclass(frozen=True)
class PolicyTraining(Computation):
    """draws: noise draws a sample in the flow loss (they share one pass of the backbone).
    indicator_dropout: share of examples trained without the indicator (paper: 0.3).
    positive_share: if set, positives are drawn so that they make up this share of the examples that keep
    their indicator; otherwise frames are drawn evenly. Positive and not dropped is else only 0.4 × 0.7 of the
    samples. Examples without an indicator are drawn evenly whatever it is: what the policy does when nothing
    is asked of it is learnt from all data (eq. 3, first term), and guidance leads away from that.
    fresh_share: share of a batch drawn from fresh episodes, as `Mixture`'s; None: as many as there are.
    tokenizer: Gemma's tokenizer.json, for a fresh policy whose table is Gemma's.

    tower: where image tokens come from. "cached": all are in memory, made once by a tower that stays as it
    is; in the small the fastest. "frozen": images are read from the bags by `loader_workers` processes, which
    keep decoded ones in `cache_bytes` of memory, and the tower looks at them in every step: the same losses,
    and no token in memory. "trained": the tower learns too; value functions stay on tokens of the one that
    they were trained on.
    Raises ContractError on unknown words.
    """

    config: str = "tiny"
    schedule: Schedule = Schedule(steps=1800, batch=128, learning_rate=2e-3)
    draws: int = 2
    indicator_dropout: float = 0.3
    positive_share: float | None = None
    fresh_share: float | None = None
    tokenizer: str | None = None
    tower: str = "cached"
    loader_workers: int = 2
    cache_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tower not in TOWERS:
            raise ContractError(f"training: tower is {self.tower!r}, wanted one of {', '.join(TOWERS)}")

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
    fresh: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """Train π on `frames` and save it in `out` → the log.

    indicator: (F,) int8, 1 positive, 0 negative, -1 absent; start: the checkpoint to fine-tune (its
    normalisers are kept), None for a fresh policy on the vision tower in folder `vision`. arm: whose
    objective is minimised; weight, advantage: (F,) float32 of its `Lesson`, None: all alike. fresh: (F,)
    bool, what how.fresh_share is of.

    A killed training that is started again goes on where it was; see `fit` for what it raises. Raises
    ValueError where the frames' tokens are of another tower than the policy's.
    """
    station = frames.episodes[0].info.station
    model = load_policy(start, station) if start else _fresh(frames, how, vision, seed)
    if how.tower == "cached" and (own := tower_identity(model.vision)) != frames.tower:
        raise ValueError(
            f"image tokens of tower {frames.tower or 'none'}, the policy to start from has {own}: wanted "
            "tower 'frozen' or 'trained', which read images"
        )
    model.vision.requires_grad_(how.tower == "trained")
    placement = how.prepare(model)
    loss = PolicyLoss(model, frames, indicator, how, placement.device, seed, arm, weight, advantage, fresh)
    workbench = out.parent / "training" / out.name
    with closing(loss):
        log = fit(
            model, loss, how.schedule, seed, workbench, progress, loss.reference, placement.dtype, how=how
        )
    if crew().first:
        save_policy(model, out, lineage, station=station, prompts=sorted(set(frames.prompts)))
    crew().wait()
    return log


class PolicyLoss:
    """The loss of a step, as `fit` wants it: frames are drawn with replacement, evenly or, of those that keep
    their indicator, so that positive ones make up `positive_share`; what is minimised is the arm's objective.
    seed: of the training, by which images are read ahead. `close` it."""

    def __init__(
        self,
        model: VLA,
        frames: Frames,
        indicator: np.ndarray,
        how: PolicyTraining,
        device: torch.device,
        seed: int = 0,
        arm: Arm = RECAP,
        weight: np.ndarray | None = None,
        advantage: np.ndarray | None = None,
        fresh: np.ndarray | None = None,
    ) -> None:
        self._model, self._frames, self._how, self._device, self._arm = model, frames, how, device, arm
        self._indicator = torch.from_numpy(indicator.astype(np.int64))
        self._stages, self._prompts = frames.stages, frames.prompts
        odds = [_odds(indicator == 1, share) for share in (how.positive_share, None)]
        if how.fresh_share is not None:
            new = np.zeros(len(indicator), bool) if fresh is None else fresh
            odds = [share_out(each, new, how.fresh_share) for each in odds]
        self._odds, self._odds_dropped = map(torch.from_numpy, odds)
        self._weight = _column(weight, np.ones(len(frames), np.float32))
        self._advantage = _column(advantage, np.zeros(len(frames), np.float32))
        self.reference = Reference(model, arm.refresh) if arm.refresh else None
        self.data_s = self.data_cpu_s = 0.0
        self._images: DrawnImages | None = None
        if how.tower == "cached":
            self._chunks, self._state = torch.from_numpy(frames.chunks()), torch.from_numpy(frames.state)
            return
        if not isinstance(model.config.vision, VisionConfig):
            raise ValueError(f"tower is {how.tower!r}, wanted 'cached' for a policy that sees no images")
        size, own = model.config.vision.image_size, parts(how.schedule.batch, crew().ranks, how.accumulation)
        loader = LoaderConfig(
            batch=max(rows.stop - rows.start for rows in own[crew().rank]), size=(size, size),
            workers=how.loader_workers, cache_bytes=how.cache_bytes, seed=seed,
        )  # fmt: skip
        self._images = DrawnImages(
            frames, loader, lambda step: self._pick(generator_of(seed, step))[0], own[crew().rank]
        )

    def close(self) -> None:
        if self._images is not None:
            self._images.close()

    def __call__(
        self, step: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> dict[str, torch.Tensor]:
        begin, cpu = time.monotonic(), time.thread_time()
        count, draws = self._how.schedule.batch, self._how.draws
        rows = slice(*rows.indices(count)[:2])
        picked, dropped = self._pick(generator)
        pick, drawn = picked[rows], replace(self._model.draw(count, generator, draws), dropped=dropped)[rows]
        seen, columns = self._look(step, rows, pick)
        self.data_s += time.monotonic() - begin
        self.data_cpu_s += time.thread_time() - cpu
        terms = self._model.terms(self._batch(self._model, pick, seen, columns), drawn=drawn)
        before = None
        if self.reference is not None:
            with torch.no_grad():
                own = self._batch(self.reference.model, pick, seen, columns)
                before = self.reference.model.terms(own, drawn=drawn)
        advantage, weight = (c[pick].to(self._device) for c in (self._advantage, self._weight))
        losses = {k: v.mean() for k, v in self._arm.objective(terms, before, advantage, weight).items()}
        shown = {name: each.detach().mean() for name, each in terms.items()}
        return {"loss": self._model.total(losses), **shown}

    def name(self, generator: torch.Generator, row: int) -> str:
        """Which sample stands in a row of the batch."""
        frame = self._pick(generator)[0][row]
        episode = self._frames.episodes[self._frames.episode[frame]]
        return f"episode {episode.info.id}, tick {self._frames.tick[frame]}"

    def _pick(self, generator: torch.Generator) -> tuple[np.ndarray, torch.Tensor]:
        """Frames of a whole batch (B,), and whose indicator is left out (B,) bool."""
        count = self._how.schedule.batch
        dropped = torch.rand(count, generator=generator) < self._how.indicator_dropout
        kept, others = (
            torch.multinomial(odds, count, replacement=True, generator=generator)
            for odds in (self._odds, self._odds_dropped)
        )
        return torch.where(dropped, others, kept).numpy(), dropped

    def _look(self, step: int, rows: slice, pick: np.ndarray) -> tuple[torch.Tensor, dict[str, Any]]:
        """Tokens (b, C, P, W) float32 or images (b, C, h, w, 3) uint8, and the other tensors of a batch."""
        if self._images is None:
            seen = torch.from_numpy(self._frames.tokens[pick].astype(np.float32))
            state, chunk = self._state[pick], self._chunks[pick]
        else:
            read = self._images.take(step, rows)
            seen, state, chunk = (torch.from_numpy(read[n].copy()) for n in ("images", "state", "chunk"))
        columns = {"state": state, "actions": chunk, "indicator": self._indicator[pick]}
        return seen.to(self._device), {name: tensor.to(self._device) for name, tensor in columns.items()}

    def _batch(self, model: VLA, pick: np.ndarray, seen: torch.Tensor, columns: dict[str, Any]) -> Batch:
        """As a model's tower sees it."""
        if self._images is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._how.tower == "trained"):
                seen = model.encode_images(seen).float()
        features, camera_mask = fill_slots(seen, model.config.prefix.cameras)
        return Batch(
            image_features=features,
            prompt=self._prompts[pick].tolist(),
            subtask=self._stages[pick].tolist(),
            camera_mask=camera_mask,
            state=columns["state"],
            actions=columns["actions"],
            indicator=columns["indicator"],
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


def _fresh(frames: Frames, how: PolicyTraining, vision: Path, seed: int) -> VLA:
    torch.manual_seed(seed)
    tower = load_vision(vision)
    shape = replace(vla_config(how.config), vision=tower.config)
    texts = sorted({*frames.prompts, *frames.stages})
    model = VLA(shape, make_tokenizer(shape.backbone, shape.prefix, texts, how.tokenizer))
    model.vision.load_state_dict(tower.state_dict())
    is_gripper = torch.from_numpy(frames.episodes[0].info.station.is_gripper)
    some = frames.where(np.linspace(0, len(frames) - 1, min(len(frames), _FITTED)).astype(np.int64))
    model.fit_normalizers(torch.from_numpy(some.chunks()), torch.from_numpy(some.state), is_gripper)
    return model
