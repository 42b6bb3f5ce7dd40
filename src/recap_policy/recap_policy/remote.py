"""A policy on a server that speaks openpi's protocol: over a websocket, observations out, chunks in.

The server first says what it is (metadata); then each observation is answered by a mapping with actions, or
by a text that says what went wrong, after which the server closes. A server of ours (`recap_policy.serve`)
says more under "recap", and is told there what `TOLD` names, and the seed; openpi's are not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from recap_policy.chunks import Ahead, Chunk
from recap_policy.interface import API_KEY, TOLD, ObservationError, Sampling, check_observations
from recap_policy.layout import ActionError, Adapter, Layout, Size
from recap_policy.wire import MAX_BYTES, WireError, pack, unpack
from recap_station.contract import ContractError, Station

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0


class RemoteError(ContractError):
    """The server cannot be reached, does not answer or refuses. One line with where and why."""


@dataclass(frozen=True)
class Hello:
    """What a server of ours says of itself; None in its place for a foreign one."""

    checkpoint: str
    value: str
    horizon: int
    sizes: Mapping[str, Size]  # camera → (height, width): as the model wants them, not to be resized twice


class RemotePolicy:
    """The policy at `uri`; a `PolicyInterface`. Connects at once; raises RemoteError.

    A lost connection is built anew by the `infer` that finds it lost. Where that fails, further calls are
    refused without waiting until a pause has passed: 0.25 s, doubled with each failure in a row, at most 5 s.
    Of an openpi server the first answer may take `first_timeout_s` (it compiles then), others `timeout_s`.
    """

    def __init__(
        self,
        uri: str,
        station: Station,
        layout: Layout,
        first_timeout_s: float = 300.0,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 3.0,
    ):
        self.uri, self.station = uri, station
        self._adapter = Adapter(layout, station)
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._patience_s = first_timeout_s
        self._open = ExitStack()
        self._connection: ClientConnection | None = None
        self._hello: Hello | None = None
        self._failures, self._not_before_s, self._trouble = 0, 0.0, ""
        self._reset: dict[str, Any] = {}
        self._connect()

    @property
    def identity(self) -> str:
        """The checkpoint where the server names it, else the server's address."""
        return self._hello.checkpoint if self._hello else self.uri

    @property
    def value_identity(self) -> str:
        return self._hello.value if self._hello else ""

    def infer(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        prompt: str,
        how: Sampling = Sampling(),
        ahead: Ahead | None = None,
    ) -> Chunk:
        """As `PolicyInterface.infer`; raises RemoteError, and ActionError on actions that do not fit.

        openpi's protocol has no word for what lies ahead: it is not sent, and each chunk begins anew.

        A foreign server knows neither advantage nor metadata: beta 1, "positive" and "" are asked of it as
        nothing, other values refused; steps and sub-tasks are its own affair.
        """
        state = np.asarray(state)
        check_observations([images], state[None], self.station)
        answer = self._ask(images, state, prompt, how)
        hello = self._hello
        try:
            horizon = hello.horizon if hello else self._adapter.layout.horizon
            positions = self._adapter.read_actions(answer, horizon)
        except ActionError as error:
            raise ActionError(f"{self.uri}: {error}") from error
        self._failures, self._reset, self._patience_s = 0, {}, self._timeout_s
        said = answer.get("recap") if hello else None
        if not isinstance(said, Mapping):
            return Chunk(positions)
        value = said.get("value")
        return Chunk(
            positions,
            str(said.get("subtask", "")),
            str(said.get("indicator", "")),
            float(value) if isinstance(value, int | float) and np.isfinite(value) else None,
        )

    def reset(self, seed: int | None = None) -> None:
        """Travels with the next observation; openpi's protocol has no message for it."""
        self._reset = {"reset": True} if seed is None else {"reset": True, "seed": int(seed)}

    def close(self) -> None:
        """End the connection; the next `infer` builds another."""
        self._connection = None
        self._open.close()

    # --- inside -------------------------------------------------------------------------------------

    def _ask(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, how: Sampling
    ) -> dict[Any, Any]:
        for last in (False, True):  # a connection may have died since it was last used: then a fresh one
            connection = self._connection or self._connect()
            hello = self._hello
            message = self._adapter.write_observation(images, state, prompt, hello.sizes if hello else None)
            if hello:
                message["recap"] = {**{name: getattr(how, name) for name in TOLD}, **self._reset}
            elif how.beta != 1.0 or how.indicator == "negative" or how.metadata:
                raise ObservationError(
                    f"{self.uri} knows no advantage and no metadata: beta is {how.beta:g}, indicator "
                    f"{how.indicator!r}, metadata {how.metadata!r}, wanted 1, 'positive' and ''"
                )
            try:
                connection.send(pack(message))
                answer = connection.recv(self._patience_s)
            except TimeoutError as error:
                raise self._failed(f"no answer within {self._patience_s:g} s") from error
            except (ConnectionClosed, OSError) as error:
                self.close()
                if last:
                    raise self._failed(f"connection lost: {error}") from error
                continue
            if isinstance(answer, str):
                raise self._failed(f"server says: {_last_line(answer)}")
            try:
                return unpack(answer)
            except WireError as error:
                raise self._failed(str(error)) from error
        raise AssertionError("not reached")

    def _connect(self) -> ClientConnection:
        left_s = self._not_before_s - time.monotonic()
        if left_s > 0:
            raise RemoteError(f"{self.uri}: {self._trouble}; trying again in {left_s:.1f} s")
        key = os.environ.get(API_KEY)
        try:
            connection = self._open.enter_context(
                connect(
                    self.uri,
                    additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
                    compression=None,
                    max_size=MAX_BYTES,
                    open_timeout=self._connect_timeout_s,
                    # openpi's server answers no ping while it infers, which may last minutes the first time.
                    ping_interval=None,
                    close_timeout=0.5,
                    proxy=None,
                )
            )
            first = connection.recv(self._connect_timeout_s)
            if isinstance(first, str):
                raise self._failed(f"server says: {_last_line(first)}")
            self._hello = self._read_hello(unpack(first))
        except (InvalidURI, OSError, WebSocketException, WireError) as error:
            raise self._failed(f"no policy server there: {_last_line(str(error)) or 'time-out'}") from error
        self._connection = connection
        return connection

    def _read_hello(self, metadata: Mapping[Any, Any]) -> Hello | None:
        said = metadata.get("recap")
        if said is None:
            return None
        layout = self._adapter.layout
        try:
            hello = Hello(
                str(said["checkpoint"]),
                str(said["value"]),
                int(said["horizon"]),
                {camera: _size(said["sizes"]["/".join(key)]) for camera, key in layout.cameras.items()},
            )
            rate, joints = float(said["control_rate_hz"]), tuple(said["joints"])
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"metadata of a server of ours, but {error!r}") from error
        if rate != self.station.control_rate_hz:
            raise WireError(f"its policy runs at {rate:g} Hz, wanted {self.station.control_rate_hz:g}")
        if joints != layout.action_joints:
            raise WireError(f"its policy moves {', '.join(map(str, joints))}; wanted the layout's joints")
        return hello

    def _failed(self, trouble: str) -> RemoteError:
        """Ends the connection and begins the next pause."""
        self.close()
        pause_s = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        self._failures = min(self._failures + 1, 10)
        self._not_before_s, self._trouble = time.monotonic() + pause_s, trouble
        return RemoteError(f"{self.uri}: {trouble}; trying again in {pause_s:g} s")


def _size(pair: Any) -> Size:
    height, width = pair
    if not (type(height) is type(width) is int and 0 < height <= 4096 and 0 < width <= 4096):
        raise ValueError(f"size {pair!r}, wanted [height, width]")
    return height, width


def _last_line(text: str) -> str:
    """Of a traceback, the line that says what happened."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
