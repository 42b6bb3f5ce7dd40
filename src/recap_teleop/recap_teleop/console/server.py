"""The console's pages and calls: an ASGI application over what the node hands in."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request as Call
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from recap_teleop.board import advice
from recap_teleop.console.archive import Archive
from recap_teleop.console.control import BEAT_S, FREE_FOR_ALL, Control
from recap_teleop.console.feed import Feed
from recap_teleop.console.guard import Guard, both, refused
from recap_teleop.console.machine import Machine
from recap_teleop.console.recorded import recorded_routes
from recap_teleop.console.security import Bucket, Door
from recap_teleop.console.training import Trainings
from recap_teleop.console.viewer import Live, Pictures, picture
from recap_teleop.keys import ACTIONS
from recap_teleop.requests import SERVICES, Request

STATIC = Path(__file__).parent / "static"
MOST_VIEWERS = 12
MOST_BYTES = 4096  # of a POST or of a browser's message
CALLS_HZ, CALLS_BURST = 10.0, 30.0
ASKED = {
    **{name: Request(a.service, a.text, a.outcome) for name, a in ACTIONS.items() if a.service},
    **{name: Request(name, name.replace("_", " ")) for name in ("take_over", "hand_back", "reset_done")},
}


class Cell(Protocol):
    """What the node is to the server."""

    feed: Feed
    about: dict[str, Any]  # of station and task, for the pages

    def ask(self, request: Request) -> Future[tuple[str, bool]]:
        """Call a service → its answer and whether it was granted."""

    def train(self, run: str, bags: Sequence[str]) -> Future[tuple[str, bool]]:
        """Ask the learner for a run's next iteration → likewise, once it has begun."""

    def cancel_training(self) -> Future[tuple[str, bool]]: ...

    def decide(self, checkpoint: str, accept: bool, who: str) -> Future[tuple[str, bool]]:
        """Give the learner a person's word on the checkpoint that it withholds."""

    def training_steps(self) -> Future[dict[str, int]]:
        """Optimiser steps that the learner was told, by parameter."""


class Viewer:
    """One open page: who it is, and what it has been sent."""

    def __init__(self, who: int, now_s: float) -> None:
        self.who, self.key = who, secrets.token_urlsafe(16)
        self.live = Live()
        self.calls = Bucket(CALLS_HZ, CALLS_BURST)
        self.wake = asyncio.Event()
        self.left = False


class Console:
    """State of the web thread. `wake` may be called from any thread once `loop` is set."""

    def __init__(
        self, cell: Cell, door: Door, machine: Machine, archive: Archive | None, beat_s: float = BEAT_S
    ) -> None:
        self.cell, self.door, self.machine, self.archive = cell, door, machine, archive
        self.control = Control(beat_s)
        self.trainings = Trainings(self)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._viewers: dict[int, Viewer] = {}
        self._pictures: set[asyncio.Event] = set()
        self._state = ""
        self._state_s = -1e9
        self._number = 0
        self.said: list[dict[str, Any]] = []  # the last answers, for everybody to see
        self._anybody = Bucket(CALLS_HZ, CALLS_BURST)  # calls without a key
        self._stops = Bucket(CALLS_HZ, CALLS_BURST)  # apart: no other calls use up an emergency stop's

    # --- waking up ----------------------------------------------------------------------------------

    def wake(self) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        snapshot = self.cell.feed.snapshot
        self.control.tick(time.monotonic(), snapshot is not None and snapshot.person_wanted)
        for viewer in self._viewers.values():
            viewer.wake.set()
        for event in self._pictures:
            event.set()

    # --- state --------------------------------------------------------------------------------------

    def state(self, now_s: float) -> str:
        """The same text for all browsers, made at most ten times a second."""
        if now_s - self._state_s >= 0.09:
            self._state_s, self._number = now_s, self._number + 1
            feed, snapshot = self.cell.feed, self.cell.feed.snapshot
            state = {
                "type": "state",
                "n": self._number,
                "now_s": round(now_s, 3),
                "cell": snapshot and {**asdict(snapshot), "person_wanted": snapshot.person_wanted},
                "advice": advice(snapshot) if snapshot else "",
                "policy": feed.to_dict(now_s),
                "control": self.control.to_dict(now_s),
                "training": self.trainings.to_dict(),
                "said": self.said,
            }
            self._state = json.dumps(state, separators=(",", ":"))
        return self._state

    def tell(self, who: str, action: str, text: str, good: bool) -> None:
        self.said = [*self.said[-4:], {"who": who, "action": action, "text": text, "good": good}]

    # --- pages --------------------------------------------------------------------------------------

    def app(self) -> ASGIApp:
        routes = [
            Route("/enter", self.enter),
            Route("/api/health", self.health),
            Route("/api/do/{action}", self.do, methods=["POST"]),
            Route("/api/control/{wish}", self.wish, methods=["POST"]),
            *recorded_routes(self),
            *self.trainings.routes(),
            WebSocketRoute("/live", self.live),
            WebSocketRoute("/cameras", self.cameras),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ]
        return Guard(Starlette(routes=routes), self.door)

    async def enter(self, call: Call) -> Response:
        """Takes the token of the printed link as a cookie, and its address out of the browser's history."""
        if self.door.token and not self.door.knows(call.query_params.get("token", "")):
            return refused(403, "this is not the token that the start of the console has printed")
        answer = RedirectResponse("/", 303)
        if self.door.token:
            answer.headers["set-cookie"] = self.door.cookie()
        return answer

    async def health(self, call: Call) -> Response:
        machine = await asyncio.to_thread(self.machine.look)
        nodes = [asdict(node) for node in self.cell.feed.nodes]
        return JSONResponse({"machine": machine, "nodes": nodes})

    # --- calls that change something ----------------------------------------------------------------

    async def do(self, call: Call) -> Response:
        """Ask the cell for something."""
        action = call.path_params["action"]
        viewer, given = await self.asked(call)
        if isinstance(given, Response):
            return given
        request = ASKED.get(action)
        if action == "stage":
            request = Request("mark_stage", "mark a stage", stage=str(given.get("stage", ""))[:100])
        if request is None or request.service not in SERVICES:
            return refused(404, f"no action {action!r}; there are {', '.join(sorted([*ASKED, 'stage']))}")
        who = viewer.who if viewer else 0
        if why := self.control.refusal(who, action) if viewer else self.keyless(action):
            return refused(409, why)
        now = time.monotonic()
        if action == "take_over":
            self.control.taking_over(who, now)
        text, good = await asyncio.wrap_future(self.cell.ask(request))
        over = good if action == "hand_back" else action == "take_over" and not good
        if over and self.control.takeover == who:
            self.control.let_go(time.monotonic())
        if good and action in ("resume", "start", "reset_done"):
            self.control.acted()
        self.tell(self.control.name(who), action, text, good)
        return JSONResponse({"ok": good, "text": text}, 200 if good else 409)

    def keyless(self, action: str) -> str:
        return "" if action in FREE_FOR_ALL else "wanted the header x-recap-key of an open page"

    async def wish(self, call: Call) -> Response:
        """Take, give, refuse or rename: who is in control."""
        viewer, given = await self.asked(call)
        if isinstance(given, Response):
            return given
        if viewer is None:
            return refused(403, "wanted the header x-recap-key of an open page")
        now, who = time.monotonic(), viewer.who
        match call.path_params["wish"]:
            case "take":
                text = self.control.ask(who, now)
            case "give":
                text = self._give(who)
            case "refuse":
                text = self.control.answer(who, False)
            case "name":
                self.control.rename(who, str(given.get("name", ""))[:40].strip() or f"operator {who}")
                text = self.control.name(who)
            case other:
                return refused(404, f"no wish {other!r}; there are take, give, refuse, name")
        return JSONResponse({"ok": True, "text": text})

    def _give(self, who: int) -> str:
        """Nobody gives away arms that they hold."""
        if self.control.takeover == who:
            return "hand back first: a takeover cannot be given away"
        return self.control.answer(who, True)

    async def asked(self, call: Call) -> tuple[Viewer | None, Any]:
        """A POST's page and its JSON, or the response that refuses it."""
        key = call.headers.get("x-recap-key", "")
        viewer = next((v for v in self._viewers.values() if secrets.compare_digest(v.key, key)), None)
        stops = call.path_params.get("action") in FREE_FOR_ALL
        bucket = self._stops if stops else viewer.calls if viewer else self._anybody
        if not bucket.take(time.monotonic()):
            return viewer, refused(429, f"too many calls: wanted at most {CALLS_HZ:g} a second")
        body = b""
        async for part in call.stream():
            body += part
            if len(body) > MOST_BYTES:
                return viewer, refused(413, f"wanted at most {MOST_BYTES} bytes")
        try:
            given = json.loads(body or b"{}")
        except ValueError:
            given = None
        if not isinstance(given, dict):
            return viewer, refused(400, "wanted a JSON object")
        return viewer, given

    # --- websockets ---------------------------------------------------------------------------------

    async def live(self, socket: WebSocket) -> None:
        """State and samples; the browser's answers are its heartbeat."""
        if len(self._viewers) >= MOST_VIEWERS:
            await socket.close(1013, f"{MOST_VIEWERS} pages are open")
            return
        await socket.accept()
        now = time.monotonic()
        who = self.control.join(socket.query_params.get("name", "")[:40].strip(), now)
        viewer = self._viewers[who] = Viewer(who, now)
        feed = self.cell.feed
        viewer.live.seen = max(0, feed.count - 500)
        hello = {"type": "hello", "you": who, "key": viewer.key, "about": self.cell.about}
        hello |= {"archive": self.archive is not None, "values": feed.values(), "now_s": now}
        await socket.send_text(json.dumps(hello))

        async def send() -> None:
            while True:
                await viewer.wake.wait()
                viewer.wake.clear()
                now = time.monotonic()
                if viewer.live.wants_state(now):
                    await socket.send_text(self.state(now))
                if message := viewer.live.samples(feed, now):
                    await socket.send_bytes(message)

        def hear(text: str) -> bool:
            if viewer.live.answered(text):
                self.control.beat(who, time.monotonic())
            return True

        try:
            await both(socket, send, hear)
        finally:
            del self._viewers[who]
            self.control.leave(who, time.monotonic())

    async def cameras(self, socket: WebSocket) -> None:
        """Pictures, each as it was asked for: by its camera's number."""
        if len(self._pictures) >= 2 * MOST_VIEWERS:
            await socket.close(1013, "too many pages are open")
            return
        await socket.accept()
        feed, pictures, wake = self.cell.feed, Pictures(), asyncio.Event()
        self._pictures.add(wake)

        async def send() -> None:
            while True:
                for camera, frame in pictures.due(feed):
                    await socket.send_bytes(picture(camera, frame, time.monotonic()))
                wake.clear()
                await wake.wait()

        def hear(text: str) -> bool:
            wake.set()
            return text.isdecimal() and len(text) < 4 and pictures.want(int(text), feed)

        try:
            await both(socket, send, hear)
        finally:
            self._pictures.discard(wake)
