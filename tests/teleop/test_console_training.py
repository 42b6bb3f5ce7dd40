"""The next iteration from a browser: planned, confirmed, started by who is in control, cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from console_site import Locked, Site, join

from recap_teleop.board import Line, NodeSeen
from recap_teleop.console.feed import Withheld
from recap_teleop.console.security import Door
from recap_teleop.console.training import training


class Planned(Locked):
    """Has one run, of which the third iteration is next."""

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""
        self.steps: list[dict[str, int]] = []

    def plan(self, name: str, steps: dict[str, int]) -> dict[str, Any]:
        self.steps.append(steps)
        return {
            "run": f"/runs/{name}", "bags": ["/bags"], "iteration": 3, "seconds": 60.0,
            "problem": self.problem,
        }  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, Door.for_host("127.0.0.1"), Planned())
    yield site
    site.serving.stop()


def press(site: Site, who: dict[str, Any], path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    status, answer, _ = site.call("POST", f"/api/train/{path}", body or {}, x_recap_key=who["key"])
    return status, json.loads(answer)


def test_what_a_page_has_shown_and_its_reader_confirmed_is_started_once(site: Site) -> None:
    async def act() -> None:
        socket, ana = await join(site, "ana")

        async def pressed(path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
            return await asyncio.to_thread(press, site, ana, path, body)

        third = {"run": "demo", "iteration": 3}
        assert (await pressed("start", third))[0] == 409, "nobody has seen what it would do"
        status, plan = await pressed("plan", {"run": "demo"})
        assert (status, plan["iteration"]) == (200, 3) and site.archive.steps == [{"value_steps": 7}]
        assert (await pressed("start", {"run": "demo", "iteration": 2}))[0] == 409, "another was confirmed"
        assert (await pressed("start", {"run": "other", "iteration": 3}))[0] == 409
        assert site.cell.asked == []
        assert (await pressed("start", third))[0] == 200
        assert (await pressed("start", third))[0] == 409, "the plan was of the iteration that has begun"
        assert site.cell.asked == ["train /runs/demo /bags"]
        assert (await pressed("cancel"))[0] == 200
        await socket.close()

    asyncio.run(act())
    assert site.cell.asked == ["train /runs/demo /bags", "cancel_training"]


def test_what_cannot_be_is_not_started(site: Site) -> None:
    site.archive.problem = "no pre-trained value to start from"

    async def act() -> None:
        socket, ana = await join(site, "ana")
        await asyncio.to_thread(press, site, ana, "plan", {"run": "demo"})
        status, said = await asyncio.to_thread(press, site, ana, "start", {"run": "demo", "iteration": 3})
        assert (status, said["text"]) == (409, site.archive.problem)
        await socket.close()

    asyncio.run(act())
    assert site.cell.asked == []


def test_only_who_is_in_control_starts_and_cancels(site: Site) -> None:
    async def act() -> None:
        first, ana = await join(site, "ana")
        second, ben = await join(site, "ben")
        site.console.control.ask(ana["you"], 0.0)

        async def pressed(who: dict[str, Any], path: str, body: Any = None) -> tuple[int, str]:
            status, said = await asyncio.to_thread(press, site, who, path, body)
            return status, said.get("text", "")

        third = {"run": "demo", "iteration": 3}
        assert (await pressed(ben, "plan", {"run": "demo"}))[0] == 200, "who watches may know"
        assert await pressed(ben, "start", third) == (409, "ana is in control")
        assert await pressed(ben, "cancel") == (409, "ana is in control")
        assert (await pressed({"key": "guessed"}, "start", third))[0] == 409
        assert (await pressed({"key": "guessed"}, "cancel"))[0] == 409
        assert site.cell.asked == []
        assert (await pressed(ana, "start", third))[0] == 200
        await first.close()
        await second.close()

    asyncio.run(act())


def test_a_checkpoint_that_is_withheld_wants_the_word_of_who_is_in_control(site: Site) -> None:
    async def act() -> None:
        first, ana = await join(site, "ana")
        second, ben = await join(site, "ben")
        site.console.control.ask(ana["you"], 0.0)

        async def says(who: dict[str, Any], **body: Any) -> int:
            return (await asyncio.to_thread(press, site, who, "decide", body))[0]

        assert await says(ana, checkpoint="/runs/demo/p", accept=True) == 409, "nothing is withheld"
        site.cell.feed.withheld = Withheld("/runs/demo/p", ("spearman is 0.1",))
        assert await says(ben, checkpoint="/runs/demo/p", accept=True) == 409
        assert await says({"key": "guessed"}, checkpoint="/runs/demo/p", accept=True) == 409
        assert await says(ana, checkpoint="/runs/demo/older", accept=True) == 409, "another was judged"
        assert await says(ana, checkpoint="/runs/demo/p", accept="yes") == 409
        assert site.cell.asked == []
        assert await says(ana, checkpoint="/runs/demo/p", accept=True) == 200
        await first.close()
        await second.close()

    asyncio.run(act())
    assert site.cell.asked == ["decide /runs/demo/p True ana"]


def test_the_learner_s_line_says_how_a_training_stands() -> None:
    def seen(text: str, level: int = 0, live: bool = True, **values: str) -> dict[str, Any] | None:
        other = NodeSeen("/arbiter", 0.0, True, (Line("training", 0, "not this", {}),))
        return training(
            [other, NodeSeen("cell/learner", 0.0, live, (Line("training", level, text, values),))]
        )

    assert seen("45% value: 3/20", progress="0.45") == {
        "busy": True, "progress": 0.45, "text": "45% value: 3/20", "failed": False
    }  # fmt: skip
    assert seen("no bags", 2) == {"busy": False, "progress": 0.0, "text": "no bags", "failed": True}
    assert seen("idle", live=False) is None and training([]) is None
