"""What a policy is to whoever runs one: two methods. The VLA in this process and a server's are the same.

`infer` turns one observation into a chunk; `reset` forgets what was carried over from the observations
before. They are openpi's two (`openpi_client.base_policy.BasePolicy`), with types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from recap_policy.chunks import Chunk
from recap_station.contract import ContractError, Station

REMOTE_SCHEMES = ("ws://", "wss://")
API_KEY = "RECAP_API_KEY"  # environment variable, sent to a policy server as openpi's client sends its own
LAYOUT = "aloha_openpi"  # in which names a server is spoken to where nothing else is said


class ObservationError(ContractError):
    """An observation does not fit the robot or the policy. One line with what was found and wanted."""


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
        beta: float = 1.0,
        steps: int = 5,
        indicator: str = "positive",
        committed: np.ndarray | None = None,
    ) -> Chunk:
        """images: camera name → (H, W, 3) uint8 RGB; state: (dof,) measured [rad; gripper 0..1].

        beta: guidance towards the indicator; steps: of denoising; committed: (n, dof) commands that the robot
        carries out from this observation on, whatever is answered: a policy that can, goes on from them.
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
    if states.shape != (len(images), station.dof):
        raise ObservationError(f"states are {states.shape}, wanted {(len(images), station.dof)}")
    if not np.isfinite(states).all():
        row, joint = np.argwhere(~np.isfinite(states))[0]
        raise ObservationError(
            f"state of joint {station.joint_names[joint]} is {states[row, joint]}, wanted a number"
        )
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
