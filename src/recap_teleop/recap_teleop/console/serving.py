"""The web server in a thread of its own, beside the thread of ROS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import uvicorn

from recap_station.contract import ContractError
from recap_teleop.console.server import MOST_BYTES, Console

TRIES = 20  # ports after the wanted one, if another console has it
START_S, STOP_S = 10.0, 2.0


def listen(host: str, port: int, tries: int = TRIES) -> socket.socket:
    """A socket on the wanted port or the next free one. Raises ContractError where there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    error: OSError | None = None
    for one in range(port, port + (tries if port else 1)):
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host.strip("[]"), one))
            opened.listen(64)
            return opened
        except (OSError, OverflowError) as refused:
            opened.close()
            error = refused if isinstance(refused, OSError) else None
    why = error.strerror if error else "no such port"
    raise ContractError(f"console: cannot listen on {host}, port {port} or the {tries - 1} after it: {why}")


class Serving:
    """`start` returns once the first page can be had; `stop` once the thread has ended."""

    def __init__(self, console: Console, host: str, port: int) -> None:
        self._console = console
        self._socket = listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            console.app(), log_level="warning", access_log=False, lifespan="off", server_header=False,
            ws="websockets-sansio", ws_max_size=MOST_BYTES, ws_per_message_deflate=False, http="h11",
            loop="asyncio", limit_concurrency=100, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="console", daemon=True)

    def _serve(self) -> None:
        loop = asyncio.new_event_loop()
        self._console.loop = loop
        with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._server._serve(sockets=[self._socket]))  # without its signal handlers

    def start(self) -> None:
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(START_S / 0.02)):
            if self._server.started or not self._thread.is_alive():
                break
            waited.wait(0.02)
        if not self._server.started:
            raise ContractError("console: the web server did not start")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()
