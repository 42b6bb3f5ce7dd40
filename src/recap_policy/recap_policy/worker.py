"""The far side of inference.py, a program of its own: loads policies and answers one request at a time."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np

from recap_policy.chunks import Ahead
from recap_policy.device import RuntimeConfig
from recap_policy.inference import Failed, InferredRest, InferRequest, Loaded, LoadRequest, WarmUp
from recap_policy.interface import PolicyInterface
from recap_policy.opening import open_policy
from recap_policy.shared import SharedSlots
from recap_station.contract import ContractError, Station


def main(descriptor: int, memory: int, threads: int, nice: int, runtime: RuntimeConfig) -> None:
    """Answer requests until the near side is gone. descriptor: the socket's; memory: the shared memory's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the near side ends this one
    connection, shared = Connection(descriptor), SharedSlots(memory)
    policy: PolicyInterface | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        reply: Loaded | Failed | InferredRest
        try:
            if isinstance(request, LoadRequest):
                policy, seconds = _load(request, threads, runtime)
                os.nice(nice)  # after the start, which somebody waits for
                nice = 0
                how = str(getattr(policy, "placement", ""))
                reply = Loaded(request.ticket, policy.identity, policy.value_identity, how, seconds)
            else:
                reply = _infer(policy, request, shared)
        except ValueError as error:  # all typed errors of the project are: they name what was wrong
            reply = Failed(request.ticket, str(error).replace("\n", " "))
        try:
            connection.send(reply)
        except OSError:
            return


def _load(request: LoadRequest, threads: int, runtime: RuntimeConfig) -> tuple[PolicyInterface, float]:
    """→ the policy, warm, and how long its last pass took [s]."""
    policy = open_policy(request.policy, request.station, request.value, threads, request.layout, runtime)
    return policy, warm_up(policy, request.station, request.warm_up)


def warm_up(policy: PolicyInterface, station: Station, asked: WarmUp) -> float:
    """Infer at the robot's shapes along every path that `asked` leads to → seconds of the last pass.

    The first passes are slow: buffers and kernels are chosen then, graphs captured. Raises ContractError on a
    policy that answers with a number that is not finite, and what `infer` raises.
    """
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in station.cameras}
    seconds = 0.0
    still = Ahead(np.repeat(station.home[None], max(asked.lead, 1), 0), asked.lead)
    for beta in sorted({1.0, asked.how.beta}):  # the plain path, then the guided
        for _ in range(2):
            for ahead in (None, still):  # at an attempt's start there is nothing to go on from
                started = time.monotonic()
                how = replace(asked.how, beta=beta)
                chunk = policy.infer(images, station.home, asked.prompt, how, ahead)
                seconds = time.monotonic() - started
                if not np.isfinite(chunk.positions).all():
                    raise ContractError(
                        f"policy {policy.identity}: its first chunk holds a number that is not finite"
                    )
    policy.reset()
    return seconds


def _infer(policy: PolicyInterface | None, request: InferRequest, shared: SharedSlots) -> InferredRest:
    if policy is None:
        raise ContractError("no policy is loaded")
    started = time.monotonic()
    if request.reset:
        policy.reset()
    images = {
        camera: _decode(camera, shared.read(request.slot, span)) for camera, span in request.spans.items()
    }
    chunk = policy.infer(images, request.state, request.prompt, request.how, request.ahead)
    shape = shared.write_array(request.slot, chunk.positions)
    rest = replace(chunk, positions=np.empty(0))
    seconds = time.monotonic() - started
    identities = policy.identity, policy.value_identity
    return InferredRest(request.ticket, request.slot, shape, rest, *identities, seconds)


def _decode(camera: str, jpeg: np.ndarray) -> np.ndarray:
    """jpeg: (n,) uint8, read where it lies → (H, W, 3) uint8 RGB"""
    import cv2

    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR) if len(jpeg) else None
    if image is None:
        raise ContractError(f"image of {camera}: {len(jpeg)} bytes that are no JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


if __name__ == "__main__":
    numbers, words = [int(word) for word in sys.argv[1:5]], sys.argv[5:9]
    main(numbers[0], numbers[1], numbers[2], numbers[3], RuntimeConfig(*words))
