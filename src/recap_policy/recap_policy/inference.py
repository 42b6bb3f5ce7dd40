"""Inference in a process of its own, so that neither torch nor a long kernel disturbs the 50 Hz loop.

`InferenceProcess` is the near side: it imports no torch and never blocks. The far side is worker.py: it loads
checkpoints or connects to a policy server, decodes the cameras' JPEGs and answers one request after the
other. It ends when the near side does, however that ends.

Images and chunks lie in shared memory (shared.py); over the socket pair go messages of a few hundred bytes
that say where. So the near side never waits for the far side to empty the socket: a socket takes some 200 kB,
three JPEGs of 448 x 448 may be more (`python benchmarks/inference_process.py`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np

from recap_policy.chunks import LEAD_STEPS, Ahead, Chunk
from recap_policy.device import RuntimeConfig
from recap_policy.interface import LAYOUT, Sampling
from recap_policy.shared import SLOTS, SharedSlots, Span
from recap_station.contract import ContractError, Station

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True)
class WarmUp:
    """What a policy will be asked for: the slow first passes of it are over before it is called loaded."""

    how: Sampling = Sampling()
    lead: int = LEAD_STEPS  # frozen steps, see `Ahead`
    prompt: str = "warm up"  # its length is a shape, too


@dataclass(frozen=True)
class Loaded:
    """policy, value: identities; runtime: where and how they compute; seconds: of the last warm-up pass."""

    ticket: int
    policy: str
    value: str
    runtime: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Inferred:
    ticket: int
    chunk: Chunk
    policy: str
    value: str
    seconds: float


@dataclass(frozen=True)
class Failed:
    ticket: int
    message: str


Reply = Loaded | Inferred | Failed


# What goes over the socket besides `Loaded` and `Failed`.


@dataclass(frozen=True)
class LoadRequest:
    """policy: a folder or ws://host:port; value: "" for none; layout: a server's."""

    ticket: int
    policy: str
    value: str
    station: Station
    layout: str
    warm_up: WarmUp


@dataclass(frozen=True)
class InferRequest:
    """spans: camera → where its JPEG lies in `slot`; the rest as `PolicyInterface.infer` has it."""

    ticket: int
    slot: int
    spans: Mapping[str, Span]
    state: np.ndarray
    prompt: str
    how: Sampling
    reset: bool
    ahead: Ahead | None


@dataclass(frozen=True)
class InferredRest:
    """The chunk's positions lie in `slot`, as `shape`; `chunk` holds the rest."""

    ticket: int
    slot: int
    shape: tuple[int, ...]
    chunk: Chunk
    policy: str
    value: str
    seconds: float


class InferenceDied(RuntimeError):
    """The inference process has ended by itself; `start` brings a fresh one, without a checkpoint."""


class InferenceProcess:
    """The near side. Requests are answered in order; each answer bears the ticket of its request."""

    def __init__(self, threads: int = 1, nice: int = 5, runtime: RuntimeConfig | None = None):
        self._threads, self._nice, self._runtime = threads, nice, runtime or RuntimeConfig()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._shared: SharedSlots | None = None
        self._ticket = 0
        self._pending: dict[int, int | None] = {}  # ticket → its slot

    def start(self) -> None:
        """Start a fresh process with fresh memory; an older one is ended."""
        self.stop()
        near, far = socket.socketpair()
        self._shared = SharedSlots()
        with far:
            runtime = self._runtime
            command = [sys.executable, "-m", "recap_policy.worker", str(far.fileno())]
            command += [str(self._shared.descriptor), str(self._threads), str(self._nice)]
            command += [runtime.device, runtime.dtype, runtime.compile, runtime.cuda_graphs]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(self._threads),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            passed = [far.fileno(), self._shared.descriptor]
            self._process = subprocess.Popen(command, pass_fds=passed, env=environment)
        self._connection = Connection(near.detach())
        self._pending = {}

    @property
    def running(self) -> bool:
        return self._connection is not None

    @property
    def busy(self) -> bool:
        """Whether a request is unanswered."""
        return bool(self._pending)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def load(
        self,
        policy: str,
        value: str,
        station: Station,
        layout: str = LAYOUT,
        warm_up: WarmUp | None = None,
    ) -> int:
        """Ask for checkpoints → ticket. `Loaded` answers once they have inferred as `warm_up` says.

        policy: a folder or ws://host:port; value: "" for none; layout: a server's. Raises InferenceDied.
        """
        self._ticket += 1
        return self._send(
            LoadRequest(self._ticket, policy, value, station, layout, warm_up or WarmUp()), slot=None
        )

    def infer(
        self,
        jpegs: Mapping[str, Buffer],
        state: np.ndarray,
        prompt: str,
        how: Sampling = Sampling(),
        reset: bool = False,
        ahead: Ahead | None = None,
    ) -> int:
        """Ask for a chunk → ticket. jpegs: camera name → JPEG; state: (dof,) [rad; gripper 0..1]; reset: an
        attempt begins; the rest as `PolicyInterface.infer`.

        Raises InferenceDied, and ContractError where images are too large or requests too many.
        """
        if self._shared is None:
            raise InferenceDied("no inference process")
        free = set(range(SLOTS)) - set(self._pending.values())
        if not free:
            raise ContractError(f"{len(self._pending)} requests are unanswered, wanted at most {SLOTS}")
        slot = min(free)
        spans = dict(zip(jpegs, self._shared.write(slot, jpegs.values()), strict=True))
        self._ticket += 1
        request = InferRequest(self._ticket, slot, spans, state, prompt, how, reset, ahead)
        return self._send(request, slot)

    def poll(self, timeout_s: float = 0.0) -> Reply | None:
        """The next answer, if it is there within `timeout_s`. Raises InferenceDied."""
        if self._connection is None or self._shared is None:
            return None
        try:
            if not self._connection.poll(timeout_s):
                return None
            reply: Loaded | Failed | InferredRest = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._pending.pop(reply.ticket, None)
        if not isinstance(reply, InferredRest):
            return reply
        chunk = replace(reply.chunk, positions=self._shared.read_array(reply.slot, reply.shape))
        return Inferred(reply.ticket, chunk, reply.policy, reply.value, reply.seconds)

    def stop(self, patience_s: float = 0.5) -> None:
        """End the process; it is killed where it does not end by itself in time."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self._pending = {}
        if self._process is not None:
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _send(self, request: LoadRequest | InferRequest, slot: int | None) -> int:
        if self._connection is None:
            raise InferenceDied("no inference process")
        try:
            self._connection.send(request)
        except OSError as error:
            raise self._died() from error
        self._pending[request.ticket] = slot
        return request.ticket

    def _died(self) -> InferenceDied:
        process = self._process
        self.stop()
        return InferenceDied(
            f"the inference process ended with code {process.returncode if process else None}"
        )
