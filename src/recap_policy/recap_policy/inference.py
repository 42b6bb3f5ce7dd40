"""Inference in a process of its own, so that neither torch nor a long kernel disturbs the 50 Hz loop.

`InferenceProcess` is the near side: it imports no torch and never blocks. The far side is this module run
as a program: it loads checkpoints or connects to a policy server, decodes the cameras' JPEGs and answers one
request after the other over a socket pair. It ends when the near side does, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np

from recap_policy.chunks import Chunk
from recap_policy.interface import LAYOUT, PolicyInterface, open_policy
from recap_station.contract import ContractError, Station


@dataclass(frozen=True)
class Load:
    """Bring these checkpoints. policy: a folder or ws://host:port; value: "" for none; layout: a server's."""

    ticket: int
    policy: str
    value: str
    station: Station
    layout: str = LAYOUT


@dataclass(frozen=True)
class Infer:
    """jpegs: camera name → JPEG bytes; state: (dof,) [rad; gripper 0..1]; reset: an attempt begins;
    committed: (n, dof), see `PolicyInterface.infer`."""

    ticket: int
    jpegs: Mapping[str, bytes]
    state: np.ndarray
    prompt: str
    beta: float
    steps: int
    reset: bool = False
    committed: np.ndarray | None = None


@dataclass(frozen=True)
class Loaded:
    ticket: int
    policy: str  # identities
    value: str


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


class InferenceDied(RuntimeError):
    """The inference process has ended by itself; `start` brings a fresh one, without a checkpoint."""


class InferenceProcess:
    """The near side. Requests are answered in order; each answer bears the ticket of its request."""

    def __init__(self, threads: int = 1, nice: int = 5):
        self._threads, self._nice = threads, nice
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ticket = 0
        self._pending = 0

    def start(self) -> None:
        """Start a fresh process; an older one is ended."""
        self.stop()
        near, far = socket.socketpair()
        with far:
            command = [sys.executable, "-m", "recap_policy.inference", str(far.fileno())]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(self._threads),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            arguments = [str(self._threads), str(self._nice)]
            self._process = subprocess.Popen(command + arguments, pass_fds=[far.fileno()], env=environment)
        self._connection = Connection(near.detach())
        self._pending = 0

    @property
    def running(self) -> bool:
        return self._connection is not None

    @property
    def busy(self) -> bool:
        """Whether a request is unanswered."""
        return self._pending > 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def load(self, policy: str, value: str, station: Station, layout: str = LAYOUT) -> int:
        """Ask for checkpoints → ticket. Raises InferenceDied."""
        return self._send(Load(0, policy, value, station, layout))

    def infer(
        self,
        jpegs: Mapping[str, bytes],
        state: np.ndarray,
        prompt: str,
        beta: float = 1.0,
        steps: int = 5,
        reset: bool = False,
        committed: np.ndarray | None = None,
    ) -> int:
        """Ask for a chunk → ticket. Raises InferenceDied."""
        return self._send(Infer(0, jpegs, state, prompt, beta, steps, reset, committed))

    def poll(self, timeout_s: float = 0.0) -> Reply | None:
        """The next answer, if it is there within `timeout_s`. Raises InferenceDied."""
        if self._connection is None:
            return None
        try:
            if not self._connection.poll(timeout_s):
                return None
            reply: Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._pending -= 1
        return reply

    def stop(self, patience_s: float = 0.5) -> None:
        """End the process; it is killed where it does not end by itself in time."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _send(self, request: Load | Infer) -> int:
        if self._connection is None:
            raise InferenceDied("no inference process")
        self._ticket += 1
        try:
            self._connection.send(replace(request, ticket=self._ticket))
        except OSError as error:
            raise self._died() from error
        self._pending += 1
        return self._ticket

    def _died(self) -> InferenceDied:
        process = self._process
        self.stop()
        return InferenceDied(
            f"the inference process ended with code {process.returncode if process else None}"
        )


def main(descriptor: int, threads: int, nice: int) -> None:
    """The far side: answer requests until the near side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the near side ends this one
    connection = Connection(descriptor)
    policy: PolicyInterface | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        reply: Reply
        try:
            if isinstance(request, Load):
                policy = _load(request, threads)
                os.nice(nice)  # after the start, which somebody waits for
                nice = 0
                reply = Loaded(request.ticket, policy.identity, policy.value_identity)
            else:
                reply = _infer(policy, request)
        except ValueError as error:  # all typed errors of the project are: they name what was wrong
            reply = Failed(request.ticket, str(error).replace("\n", " "))
        try:
            connection.send(reply)
        except OSError:
            return


def _load(request: Load, threads: int) -> PolicyInterface:
    policy = open_policy(request.policy, request.station, request.value, threads, request.layout)
    sizes = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in request.station.cameras}
    for _ in range(3):  # the first passes are slow: buffers and kernels are chosen then
        policy.infer(sizes, request.station.home, "warm up")
    return policy


def _infer(policy: PolicyInterface | None, request: Infer) -> Inferred:
    if policy is None:
        raise ContractError("no policy is loaded")
    started = time.monotonic()
    if request.reset:
        policy.reset()
    images = {camera: _decode(camera, jpeg) for camera, jpeg in request.jpegs.items()}
    chunk = policy.infer(
        images, request.state, request.prompt, request.beta, request.steps, committed=request.committed
    )
    seconds = time.monotonic() - started
    return Inferred(request.ticket, chunk, policy.identity, policy.value_identity, seconds)


def _decode(camera: str, jpeg: bytes) -> np.ndarray:
    import cv2

    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if image is None:
        raise ContractError(f"image of {camera}: {len(jpeg)} bytes that are no JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


if __name__ == "__main__":
    # Imported by its name, so that what travels has the same class on both sides.
    from recap_policy.inference import main as serve

    serve(*map(int, sys.argv[1:4]))
