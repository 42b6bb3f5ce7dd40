"""Offers a policy to openpi's clients, and to ours: `python -m recap_policy.serve --checkpoint DIR`.

The protocol is that of openpi's `WebsocketPolicyServer` (see `recap_policy.remote`), with its health check at
/healthz. Observations are named as the layout says. Nothing here knows who asks: without `--host` only this
machine can.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from recap_policy.interface import LAYOUT, TOLD, ObservationError, PolicyInterface, Sampling
from recap_policy.layout import Adapter, Layout, load_layout
from recap_policy.wire import MAX_BYTES, pack, unpack
from recap_station.contract import ContractError, Station

log = logging.getLogger(__name__)


class PolicyServer:
    """Listens from its making on; `serve_forever` answers until `close` is called from another thread.

    One policy serves all clients, one observation after the other. how, prompt: for clients that say
    nothing of it, as openpi's. Raises ContractError where layout and station do not fit or the port
    cannot be had.
    """

    def __init__(
        self,
        policy: PolicyInterface,
        station: Station,
        layout: Layout,
        host: str = "127.0.0.1",
        port: int = 8000,
        prompt: str = "",
        how: Sampling = Sampling(),
    ):
        self._policy, self._adapter = policy, Adapter(layout, station)
        if unseen := set(station.camera_names) - set(layout.cameras):
            raise ContractError(f"layout {layout.name}: names no image for camera {min(unseen)}")
        self._prompt, self._how = prompt, how
        self._one_at_a_time = threading.Lock()
        black = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in station.cameras}
        for _ in range(3):  # the first passes are slow: buffers and kernels are chosen then
            chunk = policy.infer(black, station.home, prompt or "warm up", how)
        policy.reset()
        self._metadata = {
            "recap": {
                "checkpoint": policy.identity,
                "value": policy.value_identity,
                "layout": layout.name,
                "control_rate_hz": station.control_rate_hz,
                "horizon": len(chunk.positions),
                "joints": list(layout.action_joints),
                "sizes": {
                    "/".join(key): [station.camera(camera).height, station.camera(camera).width]
                    for camera, key in layout.cameras.items()
                },
            }
        }
        try:
            self._server = listen(
                self._converse,
                host,
                port,
                compression=None,
                max_size=MAX_BYTES,
                process_request=_health,
            )
        except (OSError, OverflowError) as error:
            raise ContractError(f"cannot listen at {host}:{port}: {error}") from error
        self.host, self.port = self._server.socket.getsockname()[:2]

    @property
    def uri(self) -> str:
        return f"ws://[{self.host}]:{self.port}" if ":" in self.host else f"ws://{self.host}:{self.port}"

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def close(self) -> None:
        """End all connections and `serve_forever`; waits for the observation being answered."""
        self._server.shutdown()

    # --- inside -------------------------------------------------------------------------------------

    def _converse(self, connection: ServerConnection) -> None:
        """One client, from its coming to its going."""
        total_s = None
        try:
            connection.send(pack(self._metadata))
            for data in connection:
                started = time.monotonic()
                answer = self._answer(data)
                if total_s is not None:
                    answer["server_timing"]["prev_total_ms"] = 1e3 * total_s
                connection.send(pack(answer))
                total_s = time.monotonic() - started
        except ConnectionClosed:
            return
        except ValueError as error:  # all typed errors of the project are: they name what was wrong
            self._refuse(connection, f"{type(error).__name__}: {error}".replace("\n", " "))
        except Exception as error:
            log.exception("while answering %s", connection.remote_address)
            self._refuse(connection, f"the server failed: {type(error).__name__}: {error}")

    def _answer(self, data: str | bytes) -> dict[str, Any]:
        if isinstance(data, str):
            raise ObservationError("observation is a text, wanted msgpack")
        message = unpack(data)
        images, state, prompt = self._adapter.read_observation(message, self._prompt)
        how, said = self._asked(message.get("recap"))
        with self._one_at_a_time:
            started = time.monotonic()
            if said.get("reset"):
                self._policy.reset(said.get("seed"))
            chunk = self._policy.infer(images, state, prompt, how)
            milliseconds = 1e3 * (time.monotonic() - started)
        about = {"subtask": chunk.subtask, "indicator": chunk.indicator, "value": chunk.value}
        return {
            **self._adapter.write_actions(chunk.positions),
            "recap": about,
            "policy_timing": {"infer_ms": milliseconds},
            "server_timing": {"infer_ms": milliseconds},
        }

    def _asked(self, said: Any) -> tuple[Sampling, Mapping[Any, Any]]:
        """What a client of ours says beside the observation: how to sample, and the rest. Raises
        ObservationError."""
        if said is None:
            return self._how, {}
        if not isinstance(said, Mapping):
            raise ObservationError(f"recap is a {type(said).__name__}, wanted a mapping")
        for name, (kind, wanted) in _KINDS.items():
            if name in said and type(said[name]) not in kind:
                raise ObservationError(f"recap/{name} is {said[name]!r}, wanted {wanted}")
        if not 0 <= said.get("seed", 0) < 2**63:
            raise ObservationError(f"recap/seed is {said['seed']}, wanted 0 .. {2**63 - 1}")
        try:
            return replace(self._how, **{name: said[name] for name in TOLD if name in said}), said
        except ContractError as error:
            raise ObservationError(f"recap/{error}") from error

    @staticmethod
    def _refuse(connection: ServerConnection, text: str) -> None:
        """As openpi's server does: the text in a frame of its own, then the end of the connection."""
        try:
            connection.send(text)
            connection.close(CloseCode.INTERNAL_ERROR, "What was wrong stands in the frame before this.")
        except ConnectionClosed:
            pass


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "beta": ((int, float), "a number"),
    "steps": ((int,), "a whole number"),
    "subtask_every": ((int,), "a whole number"),
    "indicator": ((str,), "a word"),
    "metadata": ((str,), "a text"),
    "seed": ((int,), "a whole number"),
    "reset": ((bool,), "true or false"),
}


def _health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(200, "OK\n") if request.path == "/healthz" else None


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recap_policy.serve",
        description="Offer a policy to openpi's clients over a websocket.",
        epilog="Example: python -m recap_policy.serve --checkpoint runs/demo/iteration_01/policy --port 8000",
    )
    parser.add_argument("--checkpoint", required=True, help="folder of the policy")
    parser.add_argument("--value", default="", help="folder of a value function, sent along with each chunk")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (%(default)s)")
    parser.add_argument("--layout", default=LAYOUT, help="names of observation and actions (%(default)s)")
    parser.add_argument("--prompt", default="", help="for clients that send none")
    parser.add_argument("--beta", type=float, default=1.0, help="guidance, for clients that say none")
    parser.add_argument("--steps", type=int, default=5, help="of denoising, for clients that say none")
    parser.add_argument("--metadata", default="", help="of the prompt, for clients that say none")
    parser.add_argument("--subtask-every", type=int, default=1, help="chunks a sub-task serves, likewise")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: torch's own choice")
    given = parser.parse_args(words)
    try:
        from recap_policy.runtime import Policy

        policy = Policy.load(given.checkpoint, given.value or None, threads=given.threads)
        server = PolicyServer(
            policy,
            policy.station,
            load_layout(given.layout),
            given.host,
            given.port,
            given.prompt,
            Sampling(given.beta, given.steps, metadata=given.metadata, subtask_every=given.subtask_every),
        )
    except ValueError as error:
        print(f"recap serve: {error}", file=sys.stderr)
        return 1
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    threading.Thread(target=server.serve_forever).start()
    print(f"policy {policy.identity} served at {server.uri} (layout {given.layout})", flush=True)
    end.wait()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
