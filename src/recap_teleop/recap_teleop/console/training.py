"""Routes of the next iteration: what it would do, start and cancel; and how a training stands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recap_teleop.board import NodeSeen
from recap_teleop.console.archive import ArchiveError
from recap_teleop.console.guard import refused

if TYPE_CHECKING:
    from recap_teleop.console.server import Console, Viewer

LEARNER, LINE = "learner", "training"  # the node and its line in /diagnostics
ANSWER_S = 10.0  # the learner's


class Trainings:
    """Plans that were shown, and the training that was started here."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plans: dict[str, dict[str, Any]] = {}
        self._planning = asyncio.Lock()
        self._started: dict[str, Any] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/api/train/plan", self.plan, methods=["POST"]),  # costs seconds: no other page may ask
            Route("/api/train/start", self.start, methods=["POST"]),
            Route("/api/train/cancel", self.cancel, methods=["POST"]),
            Route("/api/train/decide", self.decide, methods=["POST"]),
        ]

    def to_dict(self) -> dict[str, Any] | None:
        """How the training stands, and of one that was started here its run, its iteration, since when [s on
        the steady clock] and how long it was expected to take; the checkpoint that is withheld, and why. None
        where no learner is heard."""
        feed = self._console.cell.feed
        seen = training(feed.nodes)
        withheld = {"withheld": feed.withheld.checkpoint, "reasons": feed.withheld.reasons}
        return seen and {**seen, **self._started, **withheld}

    async def plan(self, call: Call) -> Response:
        _, given = await self._console.asked(call)
        if isinstance(given, Response):
            return given
        archive, run = self._console.archive, str(given.get("run", ""))
        if archive is None:
            return refused(404, "this console was started without an archive")
        if self._planning.locked():
            return refused(409, "another page is being told; ask again")
        async with self._planning:
            steps = await self._answer(self._console.cell.training_steps(), {})
            try:
                plan = await asyncio.to_thread(archive.plan, run, steps)
            except ArchiveError as error:
                return refused(404, str(error))
        self._plans[run] = plan
        return JSONResponse(plan)

    async def start(self, call: Call) -> Response:
        """Of what a plan has said: the page names the iteration that its reader has confirmed."""
        viewer, given = await self._may(call, "train")
        if isinstance(given, Response):
            return given
        run, iteration = str(given.get("run", "")), given.get("iteration")
        plan = self._plans.get(run)
        if plan is None or plan["iteration"] != iteration:
            return refused(
                409, f"iteration {iteration!r} of run {run!r} was not planned here: ask for its plan"
            )
        if plan["problem"]:
            return refused(409, plan["problem"])
        text, good = await self._answer(
            self._console.cell.train(plan["run"], plan["bags"]), ("the learner does not answer", False)
        )
        if good:
            del self._plans[run]  # the next one is another
            self._started = {
                "run": run, "iteration": iteration, "began_s": time.monotonic(), "seconds": plan["seconds"],
            }  # fmt: skip
        return self._told(viewer, "train", text, good)

    async def cancel(self, call: Call) -> Response:
        viewer, given = await self._may(call, "cancel_training")
        if isinstance(given, Response):
            return given
        answer = await self._answer(
            self._console.cell.cancel_training(), ("the learner does not answer", False)
        )
        return self._told(viewer, "cancel_training", *answer)

    async def decide(self, call: Call) -> Response:
        """{"checkpoint", "accept"}: the page names the one that its reader has judged."""
        viewer, given = await self._may(call, "decide")
        if isinstance(given, Response):
            return given
        checkpoint, accept = given.get("checkpoint"), given.get("accept")
        withheld = self._console.cell.feed.withheld.checkpoint
        if not checkpoint or checkpoint != withheld or not isinstance(accept, bool):
            return refused(409, f"checkpoint {checkpoint!r}: withheld is {withheld or 'none'}")
        who = self._console.control.name(viewer.who)
        answer = await self._answer(
            self._console.cell.decide(checkpoint, accept, who), ("the learner does not answer", False)
        )
        return self._told(viewer, "decide", *answer)

    async def _may(self, call: Call, action: str) -> tuple[Viewer, Any]:
        """The page that asks, if it is in control, and what it says; or the response that refuses it."""
        viewer, given = await self._console.asked(call)
        if not isinstance(given, Response):
            why = (
                self._console.control.refusal(viewer.who, action) if viewer else self._console.keyless(action)
            )
            given = refused(409, why) if why else given
        return viewer, given  # type: ignore[return-value]  # without a viewer it is a refusal

    def _told(self, viewer: Viewer, action: str, text: str, good: bool) -> Response:
        self._console.tell(self._console.control.name(viewer.who), action, text, good)
        return JSONResponse({"ok": good, "text": text}, 200 if good else 409)

    async def _answer(self, future: Future[Any], otherwise: Any) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_S)
        except TimeoutError:
            return otherwise


def training(nodes: Sequence[NodeSeen]) -> dict[str, Any] | None:
    """The learner's line in /diagnostics: {"busy", "progress" 0..1, "text", "failed"}."""
    for node in nodes:
        for line in node.lines if node.live and node.name.rpartition("/")[2] == LEARNER else ():
            if line.name == LINE:
                busy = "progress" in line.values
                progress = float(line.values.get("progress", 0.0))
                return {"busy": busy, "progress": progress, "text": line.text, "failed": line.level >= 2}
    return None
