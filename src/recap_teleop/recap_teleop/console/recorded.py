"""Routes of what is recorded: attempts, their pictures and judgements, and learning runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recap_teleop.console.archive import Archive, ArchiveError
from recap_teleop.console.guard import refused

if TYPE_CHECKING:
    from recap_teleop.console.server import Console

FOREVER = {"cache-control": "private, max-age=3600, immutable"}  # a recorded picture does not change


def recorded_routes(console: Console) -> list[Route]:
    """GET reads, POST judges; what the archive refuses is said in its words."""

    async def answer(ask: Callable[[Archive], Any]) -> Response:
        if console.archive is None:
            return refused(404, "this console was started without an archive")
        try:
            result = await asyncio.to_thread(ask, console.archive)
        except ArchiveError as error:
            return refused(404, str(error))
        if isinstance(result, bytes):
            return Response(result, media_type="image/jpeg", headers=FOREVER)
        return JSONResponse(result)

    async def attempts(call: Call) -> Response:
        return await answer(lambda archive: archive.attempts())

    async def attempt(call: Call) -> Response:
        return await answer(lambda archive: archive.attempt(call.path_params["episode"]))

    async def image(call: Call) -> Response:
        path = call.path_params
        return await answer(lambda a: a.image(path["episode"], path["camera"], path["tick"]))

    async def runs(call: Call) -> Response:
        return await answer(lambda archive: archive.runs())

    async def run(call: Call) -> Response:
        return await answer(lambda archive: archive.run(call.path_params["name"]))

    async def judge(call: Call) -> Response:
        _, given = await console.asked(call)
        if isinstance(given, Response):
            return given
        who = str(given.pop("who", "")).strip()[:40]
        kind = str(given.pop("kind", ""))
        if not who:
            return refused(400, "wanted who says so")
        episode = call.path_params["episode"]
        if kind == "undo":
            return await answer(lambda archive: archive.undo(who, episode))
        return await answer(lambda archive: archive.judge(who, episode, kind, given))

    async def convert(call: Call) -> Response:
        _, given = await console.asked(call)
        if isinstance(given, Response):
            return given
        return await answer(lambda archive: archive.convert())

    return [
        Route("/api/attempts", attempts),
        Route("/api/attempts/convert", convert, methods=["POST"]),
        Route("/api/attempts/{episode}", attempt),
        Route("/api/attempts/{episode}/judgement", judge, methods=["POST"]),
        Route("/api/attempts/{episode}/{camera}/{tick:int}", image),
        Route("/api/runs", runs),
        Route("/api/runs/{name}", run),
    ]
