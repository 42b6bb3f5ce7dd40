"""The console's web server with a cell and an archive behind it that note what they were asked for."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from recap_teleop.board import Board
from recap_teleop.console.archive import ArchiveError
from recap_teleop.console.feed import Feed
from recap_teleop.console.machine import Machine
from recap_teleop.console.security import Door
from recap_teleop.console.server import Console
from recap_teleop.console.serving import Serving
from recap_teleop.requests import Request

JPEG = b"\xff\xd8" + bytes(range(256)) * 40 + b"\xff\xd9"


class Cell:
    """A cell that grants everything and remembers what it was asked."""

    about: dict[str, Any] = {"cameras": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.feed = Feed(cameras=2, dof=3, rate_hz=50.0)
        self.feed.snapshot = Board("0", "").snapshot(time.monotonic())
        self.feed.camera(0, JPEG, time.monotonic())
        self.asked: list[str] = []

    def ask(self, request: Request) -> Future[tuple[str, bool]]:
        self.asked.append(request.service)
        return granted((f"{request.service}: done", True))

    def train(self, run: str, bags: Sequence[str]) -> Future[tuple[str, bool]]:
        self.asked.append(f"train {run} {' '.join(bags)}")
        return granted(("training started", True))

    def cancel_training(self) -> Future[tuple[str, bool]]:
        self.asked.append("cancel_training")
        return granted(("training is being cancelled", True))

    def decide(self, checkpoint: str, accept: bool, who: str) -> Future[tuple[str, bool]]:
        self.asked.append(f"decide {checkpoint} {accept} {who}")
        return granted(("accepted", True))

    def training_steps(self) -> Future[dict[str, int]]:
        return granted({"value_steps": 7})


def granted(answer: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(answer)
    return future


class Locked:
    """An archive that notes the names it was asked for, and has none of them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def ask(*names: Any) -> Any:
            self.names += [str(name) for name in names]
            raise ArchiveError(f"{method}: nothing of that name")

        return ask


class Site:
    def __init__(self, folder: Path, door: Door, archive: Any = None) -> None:
        self.cell, self.archive = Cell(), archive or Locked()
        self.console = Console(self.cell, door, Machine(folder), self.archive)  # type: ignore[arg-type]
        self.serving = Serving(self.console, "127.0.0.1", 0)
        self.serving.start()
        self.port = self.serving.port
        self.host = f"127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            given.setdefault("content-type", "application/json")
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        result = answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        connection.close()
        return result

    def raw(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 10) as line:
            line.sendall(request)
            return line.recv(65536)

    def watch(self, path: str, **headers: str) -> Any:
        return connect(f"ws://{self.host}{path}", additional_headers={**headers}, open_timeout=10)

    def pump(self) -> None:
        self.cell.feed.snapshot = Board("0", "").snapshot(time.monotonic())
        self.console.wake()


async def join(site: Site, name: str) -> tuple[Any, dict[str, Any]]:
    socket = await site.watch(f"/live?name={name}", Origin=f"http://{site.host}")
    return socket, json.loads(await socket.recv())
