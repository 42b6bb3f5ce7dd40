"""A loaded policy as a robot or a rollout uses it: images and state in, a chunk of joint commands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from recap_policy.checkpoint import Checkpoint, load_policy, load_value, read
from recap_policy.chunks import Chunk
from recap_policy.device import RuntimeConfig, prepare, resolve
from recap_policy.interface import ObservationError, check_observations
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
        subtasks: SubtaskMemory | None = None,
    ):
        """runtime: where and how it computes, None: "auto"; the models are moved there, in place. subtasks:
        how often the sub-task is predicted; None: for every chunk."""
        self.model, self.checkpoint, self.station = model.eval(), checkpoint, station
        self.value_model, self.value_checkpoint = value, value_checkpoint
        self._generator = torch.Generator().manual_seed(seed)
        self._subtasks = subtasks or SubtaskMemory()
        size = model.config.vision.image_size
        for camera in self.station.cameras:
            if (camera.width, camera.height) != (size, size):
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
        resolve(runtime or RuntimeConfig())  # before gigabytes are read
        if threads is not None:
            torch.set_num_threads(threads)
        model, checkpoint = load_policy(folder, station), read(folder)
        robot = station or checkpoint.station
        assert robot is not None  # a policy's checkpoint always names its robot
        if value is None:
            return Policy(model, checkpoint, robot, seed=seed, runtime=runtime)
        critic = load_value(value, robot, checkpoint.tower)
        return Policy(model, checkpoint, robot, critic, read(value), seed, runtime)

    @property
    def identity(self) -> str:
        return self.checkpoint.identity

    @property
    def value_identity(self) -> str:
        return self.value_checkpoint.identity if self.value_checkpoint else ""

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
        beta: float = 1.0,
        steps: int = 5,
        indicator: str = "positive",
        committed: np.ndarray | None = None,
    ) -> Chunk:
        """images: camera name → (H, W, 3) uint8 RGB; state: (dof,) measured [rad; gripper 0..1].

        committed: (n, dof), see `PolicyInterface.infer`; more than the model was trained for are cut.
        Raises ObservationError on a missing or misshapen image and on a state that is not finite.
        """
        ahead = None if committed is None or not len(committed) else np.asarray(committed)[None]
        return self.infer_batch([images], np.asarray(state)[None], [prompt], beta, steps, indicator, ahead)[0]

    @torch.inference_mode()
    def infer_batch(
        self,
        images: Sequence[Mapping[str, np.ndarray]],
        states: np.ndarray,
        prompts: Sequence[str],
        beta: float = 1.0,
        steps: int = 5,
        indicator: str = "positive",
        committed: np.ndarray | None = None,
    ) -> list[Chunk]:
        """As `infer` for several observations at once; states: (B, dof), committed: (B, n, dof)."""
        check_observations(images, states, self.station)
        if len(prompts) != len(images):
            raise ObservationError(f"{len(prompts)} prompts for {len(images)} observations")
        names = self.station.camera_names
        pixels = torch.from_numpy(np.stack([np.stack([views[name] for name in names]) for views in images]))
        device = self.placement.device
        features = self.model.encode_images(pixels.to(device))
        state = torch.from_numpy(states).float().to(device)
        ahead = None
        if committed is not None:
            ahead = torch.from_numpy(committed[:, : self.model.config.committed]).float().to(device)
        subtask, guess = self._subtasks.recall(prompts)
        sample = self.model.sample(
            features,
            state,
            prompts,
            indicator=indicator,
            beta=beta,
            steps=steps,
            subtask=subtask,
            guess=guess,
            generator=self._generator,
            committed=ahead,
        )
        self._subtasks.keep(prompts, sample.subtask, predicted=subtask is None)
        values = None
        if self.value_model is not None:
            values = self.value_model.value(features, state, prompts).tolist()
        positions = np.clip(sample.actions.double().cpu().numpy(), self.station.lower, self.station.upper)
        return [
            Chunk(positions[row], sample.subtask[row], indicator, values[row] if values else None)
            for row in range(len(images))
        ]
