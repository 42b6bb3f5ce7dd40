"""What every request and every websocket passes: the door's checks, headers, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from recap_teleop.console.security import HEADERS, Bucket, Door

MESSAGES_HZ, MESSAGES_BURST = 400.0, 800.0  # answers to pictures and samples


def refused(code: int, text: str) -> Response:
    return JSONResponse({"ok": False, "text": text}, code)


class Guard:
    """Every request passes here: the door's checks, and the headers of every answer."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            if why := self._door.may_watch(headers):
                await WebSocket(scope, receive, send).close(1008, why)
                return
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                MutableHeaders(scope=message).setdefault("cache-control", "no-cache")
            await send(message)

        if scope["method"] in ("GET", "HEAD"):
            entering = scope["path"] == "/enter"
            why = "" if entering else self._door.may_read(headers)
        else:
            why = self._door.may_change(headers)
        answer = refused(403, why) if why else self._app
        await answer(scope, receive, with_headers)


async def both(socket: WebSocket, send: Callable[[], Awaitable[None]], hear: Callable[[str], bool]) -> None:
    """Send and hear until the browser is gone, says something that makes no sense, or says too much."""
    bucket = Bucket(MESSAGES_HZ, MESSAGES_BURST)

    async def listen() -> None:
        while True:
            message = await socket.receive()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")
            if text is None or not bucket.take(time.monotonic()) or not hear(text):
                await socket.close(1008, "not understood, or too much")
                return

    tasks = [asyncio.ensure_future(send()), asyncio.ensure_future(listen())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for error in (task.exception() for task in done):
            if error is not None and not isinstance(error, WebSocketDisconnect | RuntimeError):
                raise error  # those two: the browser was gone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
