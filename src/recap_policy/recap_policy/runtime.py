"""A loaded policy as a robot or a rollout uses it: images and state in, a chunk of joint commands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from recap_policy.checkpoint import Checkpoint, load_policy, load_value, read
from recap_policy.chunks import Ahead, Chunk
from recap_policy.config import VisionConfig
from recap_policy.device import RuntimeConfig, prepare, resolve
from recap_policy.interface import (
    OBJECTS,
    ObservationError,
    Sampling,
    check_observations,
    check_states,
)
from recap_policy.prefix import fill_slots
from recap_policy.rtc import Inpainting
from recap_policy.sampling import SubtaskMemory
from recap_policy.value import ValueModel
from recap_policy.vla import VLA
from recap_station.contract import ContractError, Station


class Policy:
    """The policy, and the value function where one is given, on one robot."""

    def __init__(
        self,
        model: VLA,
        checkpoint: Checkpoint,
        station: Station,
        value: ValueModel | None = None,
        value_checkpoint: Checkpoint | None = None,
        seed: int = 0,
        runtime: RuntimeConfig | None = None,
    ):
        """runtime: where and how it computes, None: "auto"; the models are moved there, in place."""
        self.model, self.checkpoint, self.station = model.eval(), checkpoint, station
        self.value_model, self.value_checkpoint = value, value_checkpoint
        self._generator = torch.Generator().manual_seed(seed)
        self._subtasks = SubtaskMemory()
        tower = model.config.vision
        size = tower.image_size if isinstance(tower, VisionConfig) else None
        for camera in self.station.cameras:
            if size is not None and (camera.width, camera.height) != (size, size):
                raise ContractError(
                    f"camera {camera.name} gives {camera.width}x{camera.height}, "
                    f"the model wants {size}x{size}"
                )
        self.placement = resolve(runtime or RuntimeConfig())
        prepare(model, value, self.placement)

    @staticmethod
    def load(
        folder: str | Path,
        value: str | Path | None = None,
        station: Station | None = None,
        threads: int | None = None,
        seed: int = 0,
        runtime: RuntimeConfig | None = None,
    ) -> Policy:
        """Read checkpoints. station: checked against theirs when given. threads: of torch, process-wide.
        runtime: where and how it computes, None: "auto".

        Raises CheckpointError, and ContractError on a runtime that this machine does not have.
        """
        dtype = resolve(runtime or RuntimeConfig()).dtype  # or refused, before gigabytes are read
        if threads is not None:
            torch.set_num_threads(threads)
        model, checkpoint = load_policy(folder, station, dtype), read(folder)
        robot = station or checkpoint.station
        assert robot is not None  # a policy's checkpoint always names its robot
        if value is None:
            return Policy(model, checkpoint, robot, seed=seed, runtime=runtime)
        critic = load_value(value, robot, checkpoint.tower, dtype)
        return Policy(model, checkpoint, robot, critic, read(value), seed, runtime)

    @property
    def identity(self) -> str:
        return self.checkpoint.identity

    @property
    def value_identity(self) -> str:
        return self.value_checkpoint.identity if self.value_checkpoint else ""

    @property
    def sees_objects(self) -> bool:
        """Whether it takes states of things, as `OBJECTS`, in the place of images."""
        return not isinstance(self.model.config.vision, VisionConfig)

    @staticmethod
    def generator(seed: int) -> torch.Generator:
        """Of the noise of one attempt, as `reset` has it for the policy's own."""
        return torch.Generator().manual_seed(seed)

    def noise(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """What a chunk each is made from → (B, action tokens, dof)."""
        shape = self.model.config.action_tokens, self.model.config.prefix.dof
        return torch.stack([torch.randn(shape, generator=own) for own in generators])

    def reset(self, seed: int | None = None) -> None:
        """Forget the last sub-tasks. seed: makes the noise of the samples that follow repeatable."""
        self._subtasks.clear()
        if seed is not None:
            self._generator.manual_seed(seed)

    def infer(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        prompt: str,
        how: Sampling = Sampling(),
        ahead: Ahead | None = None,
    ) -> Chunk:
        """See `PolicyInterface.infer`. Raises ObservationError on a missing or misshapen image and on a state
        that is not finite, ContractError on an `rtc` that the model was not trained for."""
        rest = None if ahead is None else Ahead(np.asarray(ahead.positions)[None], ahead.frozen)
        return self.infer_batch([images], np.asarray(state)[None], [prompt], how, rest)[0]

    @torch.inference_mode()
    def infer_batch(
        self,
        images: Sequence[Mapping[str, np.ndarray]],
        states: np.ndarray,
        prompts: Sequence[str],
        how: Sampling = Sampling(),
        ahead: Ahead | None = None,
        noise: torch.Tensor | None = None,
    ) -> list[Chunk]:
        """As `infer` for several observations at once; states: (B, dof), ahead's positions: (B, n, dof).

        noise: (B, action tokens, dof), see `noise`, where the observations are of different attempts, whose
        sub-tasks are then predicted anew; None: from the policy's own generator.
        """
        if self.sees_objects:
            names: Sequence[str] = (OBJECTS,)
            check_states(states, len(images), self.station)
        else:
            names = self.station.camera_names
            check_observations(images, states, self.station)
        if len(prompts) != len(images):
            raise ObservationError(f"{len(prompts)} prompts for {len(images)} observations")
        pixels = torch.from_numpy(np.stack([np.stack([views[name] for name in names]) for views in images]))
        device = self.placement.device
        features = self.model.encode_images(pixels.to(device))
        state = torch.from_numpy(states).float().to(device)
        slots, mask = fill_slots(features, self.model.config.prefix.cameras)
        committed, inpainting = self._go_on(how.rtc, ahead)
        if noise is not None:
            self._subtasks.clear()
        subtask, guess = self._subtasks.recall(prompts, how.subtask_every)
        sample = self.model.sample(
            slots,
            state,
            prompts,
            indicator=how.indicator,
            beta=how.beta,
            steps=how.steps,
            subtask=subtask,
            guess=guess,
            generator=self._generator,
            noise=noise,
            committed=committed,
            inpainting=inpainting,
            camera_mask=mask,
            metadata=[how.metadata] * len(prompts) if how.metadata else None,
        )
        if all(self.model.prefix.layout.guess(text) is not None for text in sample.subtask):
            self._subtasks.keep(prompts, sample.subtask, predicted=subtask is None)
        else:  # bytes that are no text, as an untrained model writes them, cannot be read again
            self._subtasks.clear()
        values = None
        if self.value_model is not None:
            slots, mask = fill_slots(features, self.value_model.config.prefix.cameras)
            values = self.value_model.value(slots, state, prompts, camera_mask=mask).tolist()
        positions = np.clip(sample.actions.double().cpu().numpy(), self.station.lower, self.station.upper)
        return [
            Chunk(positions[row], sample.subtask[row], how.indicator, values[row] if values else None)
            for row in range(len(images))
        ]

    def _go_on(self, rtc: str, ahead: Ahead | None) -> tuple[torch.Tensor | None, Inpainting | None]:
        """What `sample` is told of the last chunk's rest, in one form or the other."""
        most, horizon = self.model.config.committed, self.model.config.horizon
        if rtc == "trained" and not most:
            raise ContractError(
                f"rtc is 'trained', but policy {self.identity} was not trained to go on from what is frozen, "
                "wanted 'auto', 'inpainting' or 'off'"
            )
        if ahead is None or rtc == "off":
            return None, None
        rest = torch.from_numpy(ahead.positions[:, :horizon]).float().to(self.placement.device)
        if most and rtc != "inpainting":
            # More is frozen than it was trained for: the rest of it is skipped on arrival all the same.
            return (rest[:, : min(ahead.frozen, most)] if ahead.frozen else None), None
        return None, Inpainting(rest, min(ahead.frozen, rest.shape[1]))
