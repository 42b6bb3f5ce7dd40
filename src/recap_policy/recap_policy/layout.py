"""Names, shapes and conventions in which a foreign policy is given observations and gives actions.

A layout is configuration (`config/layouts/*.yaml`), read once into a frozen dataclass. `Adapter` is a layout
on a station, and works both ways: a client writes observations and reads actions, a server reads
observations and writes actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recap_policy.interface import ObservationError
from recap_station.contract import ContractError, Station, read_config

Key = tuple[str, ...]  # words that lead through mappings within the mapping
Size = tuple[int, int]  # (height, width) in pixels


class ActionError(ContractError):
    """A policy's answer holds no actions that this robot can follow. One line with found and wanted."""


@dataclass(frozen=True)
class Layout:
    """See `config/layouts/aloha_openpi.yaml`, which explains each entry where it stands."""

    name: str
    prompt: Key
    cameras: Mapping[str, Key]  # the station's camera → where its image goes
    size: Size
    channels_first: bool
    state: tuple[tuple[Key, tuple[str, ...]], ...]  # where, and the joints there in order
    actions: Key
    action_joints: tuple[str, ...]  # columns of the actions
    horizon: int  # rows of the actions
    control_rate_hz: float
    gripper_closed: float = 0.0
    gripper_open: float = 1.0


def load_layout(name_or_path: str | Path) -> Layout:
    """Read a layout by name or by path. Raises ContractError, with the nearest name on a miss."""
    data, source = read_config("layouts", name_or_path)
    try:
        images, gripper = data["images"], data["gripper"]
        layout = Layout(
            data["name"],
            _key(data["prompt"]),
            {str(camera): _key(key) for camera, key in images["keys"].items()},
            (int(images["height"]), int(images["width"])),
            images["order"] == "CHW",
            tuple((_key(part["key"]), tuple(part["joints"])) for part in data["state"]),
            _key(data["actions"]["key"]),
            tuple(data["actions"]["joints"]),
            int(data["horizon"]),
            float(data["control_rate_hz"]),
            float(gripper["closed"]),
            float(gripper["open"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"{source}: not a layout: {error}") from error
    if images["order"] not in ("CHW", "HWC"):
        raise ContractError(f"{source}: order of images is {images['order']!r}, wanted CHW or HWC")
    if layout.gripper_closed == layout.gripper_open:
        raise ContractError(f"{source}: gripper closed and open are both {layout.gripper_open}")
    if layout.horizon < 1 or min(layout.size) < 1:
        raise ContractError(f"{source}: horizon {layout.horizon}, size {layout.size}: wanted at least 1")
    return layout


def _key(text: Any) -> Key:
    words = (text,) if isinstance(text, str) else tuple(text)
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"key {text!r}, wanted a word or a list of words")
    return words


class Adapter:
    """A layout on a station. Raises ContractError where the two do not fit."""

    def __init__(self, layout: Layout, station: Station):
        self.layout, self.station = layout, station
        where = f"layout {layout.name} on station {station.name}"
        if layout.control_rate_hz != station.control_rate_hz:
            raise ContractError(
                f"{where}: control rate {layout.control_rate_hz:g} Hz, wanted {station.control_rate_hz:g}"
            )
        for camera in layout.cameras:
            station.camera(camera)
        in_state = tuple(joint for _, joints in layout.state for joint in joints)
        for what, joints in (("state", in_state), ("actions", layout.action_joints)):
            if sorted(joints) != sorted(station.joint_names):
                odd = set(joints) ^ set(station.joint_names) or set(joints)
                raise ContractError(f"{where}: {what} must name each joint once; look at {min(odd)!r}")
        index = {name: i for i, name in enumerate(station.joint_names)}
        self._state = [(key, [index[joint] for joint in joints]) for key, joints in layout.state]
        self._columns = [index[joint] for joint in layout.action_joints]
        self._reach = station.upper - station.lower

    # --- a client: observations out, actions in -------------------------------------------------------

    def write_observation(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        prompt: str,
        sizes: Mapping[str, Size] | None = None,
    ) -> dict[str, Any]:
        """images: camera → (H, W, 3) uint8; state: (dof,). sizes: camera → size, instead of the layout's."""
        message: dict[str, Any] = {}
        _put(message, self.layout.prompt, prompt)
        foreign = self._to_foreign(np.asarray(state, np.float64))
        for key, places in self._state:
            _put(message, key, foreign[places])
        for camera, key in self.layout.cameras.items():
            image = resize_with_pad(images[camera], sizes[camera] if sizes else self.layout.size)
            if self.layout.channels_first:
                image = image.transpose(2, 0, 1)
            _put(message, key, np.ascontiguousarray(image))
        return message

    def read_actions(self, message: Mapping[str, Any], horizon: int) -> np.ndarray:
        """→ (horizon, dof) float64 absolute joint positions within the limits, in the station's order.

        Raises ActionError on no actions, another shape, a number that is not finite, and on one further
        outside a joint's limits than these are apart: those are other units.
        """
        found = _get(message, self.layout.actions)
        name, wanted = "/".join(self.layout.actions), (horizon, self.station.dof)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
            what = "nothing" if found is None else _describe(found)
            raise ActionError(f"{name}: found {what}, wanted an array of {wanted} numbers")
        if found.shape != wanted:
            raise ActionError(f"{name} are {found.shape}, wanted {wanted}: rows of {horizon}, one a joint")
        positions = np.empty(wanted)
        positions[:, self._columns] = found
        if not np.isfinite(positions).all():
            row, joint = np.argwhere(~np.isfinite(positions))[0]
            raise ActionError(
                f"{name}: row {row} of joint {self.station.joint_names[joint]} is {positions[row, joint]}, "
                "wanted a number"
            )
        positions = self._from_foreign(positions)
        lower, upper = self.station.lower, self.station.upper
        far = (positions < lower - self._reach) | (positions > upper + self._reach)
        if far.any():
            row, joint = np.argwhere(far)[0]
            limits = self.station.joints[joint]
            raise ActionError(
                f"{name}: row {row} of joint {limits.name} is {positions[row, joint]:.4g}, wanted about "
                f"{limits.lower:g} .. {limits.upper:g}: is it in other units, or not a position?"
            )
        return np.clip(positions, lower, upper)

    # --- a server: observations in, actions out -------------------------------------------------------

    def read_observation(
        self, message: Mapping[str, Any], prompt: str = ""
    ) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
        """→ images in the station's sizes, state (dof,) float64, prompt. prompt: where none was sent.

        Images may come in any size; names that the layout does not know are ignored. Raises ObservationError
        on what is missing or misshapen.
        """
        state = np.empty(self.station.dof)
        for key, places in self._state:
            found = _get(message, key)
            if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
                raise ObservationError(
                    f"{'/'.join(key)}: found {_describe(found)}, wanted an array of {(len(places),)} numbers"
                )
            if found.shape != (len(places),):
                raise ObservationError(f"{'/'.join(key)} is {found.shape}, wanted {(len(places),)}")
            state[places] = found
        images = {camera: self._read_image(message, camera) for camera in self.layout.cameras}
        text = _get(message, self.layout.prompt)
        if isinstance(text, np.ndarray) and text.dtype.kind == "U" and text.size == 1:
            text = text.item()
        if text is not None and not isinstance(text, str):
            raise ObservationError(f"{'/'.join(self.layout.prompt)}: {_describe(text)}, wanted a string")
        if not (text or prompt):
            raise ObservationError(
                f"no {'/'.join(self.layout.prompt)} in the observation, and the server has none of its own"
            )
        return images, self._from_foreign(state), str(text or prompt)

    def write_actions(self, positions: np.ndarray) -> dict[str, Any]:
        """positions: (H, dof) in the station's order."""
        message: dict[str, Any] = {}
        _put(message, self.layout.actions, self._to_foreign(positions)[:, self._columns])
        return message

    def _read_image(self, message: Mapping[str, Any], camera: str) -> np.ndarray:
        key = self.layout.cameras[camera]
        found = _get(message, key)
        order = "(3, height, width)" if self.layout.channels_first else "(height, width, 3)"
        fits = isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim == 3
        if not fits or not found.size or found.shape[0 if self.layout.channels_first else 2] != 3:
            raise ObservationError(f"{'/'.join(key)}: found {_describe(found)}, wanted {order} uint8")
        image = found.transpose(1, 2, 0) if self.layout.channels_first else found
        wanted = self.station.camera(camera)
        return resize_with_pad(image, (wanted.height, wanted.width))

    def _to_foreign(self, positions: np.ndarray) -> np.ndarray:
        closed, open_ = self.layout.gripper_closed, self.layout.gripper_open
        return np.where(self.station.is_gripper, closed + positions * (open_ - closed), positions)

    def _from_foreign(self, positions: np.ndarray) -> np.ndarray:
        closed, open_ = self.layout.gripper_closed, self.layout.gripper_open
        return np.where(self.station.is_gripper, (positions - closed) / (open_ - closed), positions)


def resize_with_pad(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 → size, undistorted, in the middle of black; pixel for pixel what openpi's client does.

    Pillow's bilinear filter averages when it makes smaller, OpenCV's does not: a policy sees the difference.
    """
    if image.shape[:2] == size:
        return image
    from PIL import Image

    (height, width), (has_height, has_width) = size, image.shape[:2]
    shrink = max(has_width / width, has_height / height)
    inner = max(1, int(has_height / shrink)), max(1, int(has_width / shrink))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    resized = np.zeros((*size, 3), np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(image)).resize(inner[::-1], Image.Resampling.BILINEAR)
    resized[top : top + inner[0], left : left + inner[1]] = np.asarray(picture)
    return resized


def _put(message: dict[str, Any], key: Key, value: Any) -> None:
    for word in key[:-1]:
        message = message.setdefault(word, {})
    message[key[-1]] = value


def _get(message: Any, key: Key) -> Any:
    for word in key:
        message = message.get(word) if isinstance(message, Mapping) else None
    return message


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return "nothing" if value is None else type(value).__name__
