"""What a policy is to whoever runs one: two methods. The VLA in this process and a server's are the same.

`infer` turns one observation into a chunk; `reset` forgets what was carried over from the observations
before. They are openpi's two (`openpi_client.base_policy.BasePolicy`), with types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recap_policy.chunks import Ahead, Chunk
from recap_policy.tokens import INDICATORS
from recap_station.contract import ContractError, Station

REMOTE_SCHEMES = ("ws://", "wss://")
API_KEY = "RECAP_API_KEY"  # environment variable, sent to a policy server as openpi's client sends its own
LAYOUT = "aloha_openpi"  # in which names a server is spoken to where nothing else is said
RTC = ("auto", "trained", "inpainting", "off")
OBJECTS = "objects"  # states of things, in the place of images in an observation
LIMITS = {"beta": (0, 10), "steps": (1, 100), "subtask_every": (1, 1000)}
TOLD = ("beta", "steps", "indicator", "metadata", "subtask_every")  # of `Sampling`, to a server of ours


class ObservationError(ContractError):
    """An observation does not fit the robot or the policy. One line with what was found and wanted."""


@dataclass(frozen=True)
class Sampling:
    """How a policy is to draw its chunks. Raises ContractError on what no policy could do.

    beta: guidance towards the indicator, 1: the conditioned branch alone; steps: of denoising; indicator:
    "positive", "negative" or "" (unconditioned); metadata: of the prompt, "": none; subtask_every: chunks
    that one predicted sub-task serves (π0.6 predicts it at a lower rate than actions).

    rtc: how a chunk goes on from the last one. "trained": the expert is told what is frozen, as it was
    trained to be (arXiv 2512.05964). "inpainting": the chunk is pulled towards the rest of the last one,
    which asks nothing of the training and costs a backward pass a step (arXiv 2506.07339). "off": it begins
    anew. "auto": "trained" where the model is, else "inpainting".
    """

    beta: float = 1.0
    steps: int = 5
    indicator: str = "positive"
    metadata: str = ""
    subtask_every: int = 1
    rtc: str = "auto"

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:  # a NaN, too
                raise ContractError(f"{name} is {getattr(self, name)}, wanted {low} .. {high}")
        for name, known in (("indicator", tuple(INDICATORS)), ("rtc", RTC)):
            if getattr(self, name) not in known:
                raise ContractError(f"{name} is {getattr(self, name)!r}, wanted one of {known}")


class PolicyInterface(Protocol):
    """A policy on one robot."""

    @property
    def identity(self) -> str:
        """What commands: recorded with every chunk and every attempt."""

    @property
    def value_identity(self) -> str:
        """Which value function estimates `Chunk.value`; "" for none."""

    def infer(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        prompt: str,
        how: Sampling = Sampling(),
        ahead: Ahead | None = None,
    ) -> Chunk:
        """images: camera name → (H, W, 3) uint8 RGB; state: (dof,) measured [rad; gripper 0..1]; ahead: what
        the chunk is to go on from, None: nothing is under way.

        Raises ObservationError on an observation that does not fit, and another ContractError where no chunk
        can be had.
        """

    def reset(self, seed: int | None = None) -> None:
        """Begin afresh, as at the start of an attempt. seed: makes the noise that follows repeatable."""


def is_remote(place: str) -> bool:
    """Whether `place` names a policy server (ws://, wss://) rather than a checkpoint's folder."""
    return place.startswith(REMOTE_SCHEMES)


def check_place(place: str, value: str) -> None:
    """Refuse what cannot be meant with a policy server, before it is called. Raises ContractError."""
    if "@" in place.split("://", 1)[1].split("/", 1)[0]:  # would end up in bags and logs
        raise ContractError(f"policy server: credentials in its address, wanted them in ${API_KEY}")
    if value:
        raise ContractError(f"value_checkpoint {value!r}: wanted none: a policy server brings its own")


def check_observations(
    images: Sequence[Mapping[str, np.ndarray]], states: np.ndarray, station: Station
) -> None:
    """images: one mapping a row, as `PolicyInterface.infer` takes it; states: (B, dof).

    Raises ObservationError on a missing or misshapen image and on a state that is misshapen or not finite.
    """
    check_states(states, len(images), station)
    for views in images:
        for camera in station.cameras:
            wanted = (camera.height, camera.width, 3)
            if camera.name not in views:
                raise ObservationError(f"no image of camera {camera.name}, found {sorted(views) or 'none'}")
            found = views[camera.name]
            if found.shape != wanted or found.dtype != np.uint8:
                raise ObservationError(
                    f"image of {camera.name} is {found.shape} {found.dtype}, wanted {wanted} uint8"
                )


def check_states(states: np.ndarray, rows: int, station: Station) -> None:
    """Raises ObservationError unless states are (rows, dof) and finite."""
    if states.shape != (rows, station.dof):
        raise ObservationError(f"states are {states.shape}, wanted {(rows, station.dof)}")
    if not np.isfinite(states).all():
        row, joint = np.argwhere(~np.isfinite(states))[0]
        raise ObservationError(
            f"state of joint {station.joint_names[joint]} is {states[row, joint]}, wanted a number"
        )
