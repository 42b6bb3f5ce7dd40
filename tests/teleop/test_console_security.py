"""The console's door, tried as an attacker would: over real HTTP and websockets where that matters."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from console_site import JPEG, Site, join
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recap_station.contract import ContractError
from recap_teleop.console.security import Bucket, Door, is_loopback
from recap_teleop.console.server import MOST_BYTES, STATIC
from recap_teleop.console.serving import listen


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, Door.for_host("127.0.0.1"))
    yield site
    site.serving.stop()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Site]:
    """As bound to another address: with a token."""
    site = Site(tmp_path, Door.for_host("0.0.0.0"))
    yield site
    site.serving.stop()


# --- loopback ------------------------------------------------------------------------------------------


def test_only_loopback_goes_without_a_token() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "robot.lan", "")))
    assert Door.for_host("127.0.0.1").token == ""
    assert len(Door.for_host("0.0.0.0").token) >= 32
    assert Door.for_host("0.0.0.0").token != Door.for_host("0.0.0.0").token
    assert Door.for_host("::1").address(80) == "http://[::1]:80/"
    assert "0.0.0.0" not in Door.for_host("0.0.0.0").address(80), "a link that opens on another machine"


def test_a_page_comes_with_headers_that_load_nothing_from_elsewhere(site: Site) -> None:
    status, page, headers = site.call("GET", "/")
    assert status == 200 and b"RECAP" in page
    policy = headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy
        and "script-src 'self'" in policy
        and "frame-ancestors 'none'" in policy
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_no_asset_names_another_host() -> None:
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "@import" not in text, file.name


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "10.0.0.5", ""]
)
def test_a_name_that_was_pointed_at_this_machine_is_refused(site: Site, host: str) -> None:
    """DNS rebinding: the browser believes that it talks to the attacker's site."""
    assert site.call("GET", "/", Host=host)[0] in (400, 403)
    assert site.call("POST", "/api/do/estop", {}, Host=host)[0] in (400, 403)
    assert site.cell.asked == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/api/do/estop", "/api/control/take", "/api/attempts/x/judgement", "/api/attempts/convert",
        "/api/train/plan", "/api/train/start", "/api/train/cancel", "/api/train/decide",
    ],
)  # fmt: skip
def test_what_changes_something_is_a_post(site: Site, method: str, path: str) -> None:
    status = site.call(method, path)[0]
    assert status in (403, 404, 405)
    assert site.cell.asked == [] and site.console.control.holder is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},  # another port of this machine
        {"Origin": "http://127.0.0.1:9"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"content-type": "text/plain"},  # what a form may send without asking
        {"content-type": "application/x-www-form-urlencoded"},
    ],
)
@pytest.mark.parametrize(
    "path",
    ["/api/do/estop", "/api/train/plan", "/api/train/start", "/api/train/cancel", "/api/train/decide"],
)
def test_another_page_cannot_press_a_button(site: Site, headers: dict[str, str], path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request("POST", path, b"{}", {"content-type": "application/json", **headers})
    assert connection.getresponse().status == 403
    connection.close()
    assert site.cell.asked == [] and site.archive.names == []


@pytest.mark.parametrize("path", ["/live", "/cameras"])
@pytest.mark.parametrize("origin", [None, "http://evil.example", "null", "http://127.0.0.1:9"])
def test_another_page_cannot_open_a_websocket(site: Site, path: str, origin: str | None) -> None:
    async def attack() -> None:
        headers = {} if origin is None else {"Origin": origin}
        async with site.watch(path, **headers):
            raise AssertionError("was let in")

    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(attack())
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/..%2fserver.py", "/%2e%2e/%2e%2e/server.py", "/static/../../security.py",
        "//etc/passwd", "/....//....//etc/passwd", "/..%5c..%5cserver.py", "/%00", "/etc/passwd",
        "/style.css/../../server.py",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_assets(site: Site, path: str) -> None:
    answer = site.raw(f"GET {path} HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in answer[:20] or b" 400 " in answer[:20]
    assert b"import" not in answer and b"root:" not in answer


def test_names_from_a_browser_reach_the_archive_as_names_and_no_path(site: Site) -> None:
    for path in ("/api/attempts/..%2f..%2fetc%2fpasswd", "/api/attempts/%2e%2e/base/0", "/api/runs/..%2f.."):
        status, body, _ = site.call("GET", path)
        assert status in (307, 404) and b"root:" not in body  # 307: /.. is the assets' own folder
    assert site.call("GET", "/api/attempts/a/b/-1")[0] == 404
    assert site.call("GET", "/api/attempts/a/b/1e9")[0] == 404
    assert all("/" not in name or ".." in name for name in site.archive.names)


def test_what_is_too_big_or_no_json_is_refused(site: Site) -> None:
    key = {"x_recap_key": "none"}
    assert site.call("POST", "/api/do/estop", b"x" * (MOST_BYTES + 1), **key)[0] == 413
    assert site.call("POST", "/api/do/estop", b"[1]", **key)[0] == 400
    assert site.call("POST", "/api/do/estop", b"{", **key)[0] == 400
    assert site.call("POST", "/api/do/format_disk", {}, **key)[0] == 404
    assert site.cell.asked == []


def test_calls_are_rate_limited(site: Site) -> None:
    site.console._stops = Bucket(0.0, 30.0)  # as for who calls fast, however slow this machine is
    codes = [site.call("POST", "/api/do/estop", {})[0] for _ in range(60)]
    assert codes[0] == 200 and codes[-1] == 429
    assert len(site.cell.asked) < 60


def test_no_other_calls_use_up_the_emergency_stop(site: Site) -> None:
    site.console._anybody = Bucket(0.0, 30.0)
    codes = [site.call("POST", "/api/do/start", {})[0] for _ in range(60)]
    assert codes[-1] == 429
    assert site.call("POST", "/api/do/estop", {})[0] == 200
    assert site.cell.asked == ["estop"]


def test_a_bucket_fills_again() -> None:
    bucket = Bucket(10.0, 2.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert bucket.take(0.15) and not bucket.take(0.16)


# --- who commands --------------------------------------------------------------------------------------


def test_one_holds_control_and_others_are_told_who(site: Site) -> None:
    async def act() -> None:
        first, ana = await join(site, "ana")
        second, ben = await join(site, "ben")

        def press(who: dict[str, Any], path: str) -> tuple[int, str]:
            status, body, _ = site.call("POST", path, {}, x_recap_key=who["key"])
            return status, json.loads(body)["text"]

        async def pressed(who: dict[str, Any], path: str) -> tuple[int, str]:
            return await asyncio.to_thread(press, who, path)

        assert (await pressed(ana, "/api/do/start"))[0] == 200
        assert await pressed(ben, "/api/do/success") == (409, "ana is in control")
        assert (await pressed(ben, "/api/do/estop"))[0] == 200  # anybody may
        assert "ana is asked" in (await pressed(ben, "/api/control/take"))[1]
        assert "ben" in (await pressed(ana, "/api/control/give"))[1]
        assert (await pressed(ana, "/api/do/success"))[1] == "ben is in control"
        assert (await pressed(ben, "/api/do/success"))[0] == 200
        assert (await pressed({"key": "guessed"}, "/api/do/success"))[0] == 409
        assert (await pressed({"key": "guessed"}, "/api/control/take"))[0] == 403
        await first.close()
        await second.close()

    asyncio.run(act())
    assert site.cell.asked == ["start_episode", "estop", "end_episode"]


def test_a_slow_browser_gets_the_newest_picture_and_no_queue(site: Site) -> None:
    async def act() -> list[int]:
        numbers = []
        async with site.watch("/cameras", Origin=f"http://{site.host}") as cameras:
            for _ in range(5):
                await cameras.send("0")
                message = await cameras.recv()
                assert message[16:] == JPEG  # byte for byte as it came
                numbers.append(int.from_bytes(message[4:8], "little"))
                for _ in range(20):  # twenty pass by while it draws
                    site.cell.feed.camera(0, JPEG, time.monotonic())
                site.console.wake()
                await asyncio.sleep(0.02)
        return numbers

    assert asyncio.run(act()) == [1, 21, 41, 61, 81]


def test_a_browser_that_never_answers_is_sent_one_state_and_one_batch(site: Site) -> None:
    async def act() -> int:
        live, _ = await join(site, "mute")
        count = 0
        for _ in range(40):
            site.cell.feed.command(np.zeros(3), 0, time.monotonic())
            site.pump()
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            while True:
                await asyncio.wait_for(live.recv(), 0.3)
                count += 1
        await live.close()
        return count

    assert asyncio.run(act()) <= 2


@pytest.mark.parametrize("nonsense", ["-1", "99", "x" * 50, "1;2", "", b"\x00"])
def test_nonsense_on_a_websocket_closes_it(site: Site, nonsense: str | bytes) -> None:
    async def act() -> None:
        async with site.watch("/cameras", Origin=f"http://{site.host}") as cameras:
            await cameras.send(nonsense)
            await asyncio.wait_for(cameras.recv(), 5)

    with pytest.raises(ConnectionClosed):
        asyncio.run(act())


# --- with a token --------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_shown(guarded: Site) -> None:
    for path in ("/", "/app.js", "/api/health", "/api/attempts"):
        assert guarded.call("GET", path)[0] == 403
    for headers in (
        {"Authorization": "Bearer guess"},
        {"Authorization": "Bearer "},
        {"Cookie": "recap_console=x"},
    ):
        assert guarded.call("GET", "/", **headers)[0] == 403
    assert guarded.call("GET", "/enter?token=guess")[0] == 403
    assert guarded.call("GET", "/enter")[0] == 403
    assert guarded.call("GET", f"/?token={guarded.console.door.token}")[0] == 403


def test_the_printed_link_lets_in_by_a_cookie_that_other_sites_do_not_send(guarded: Site) -> None:
    token = guarded.console.door.token
    assert guarded.console.door.address(80).endswith(f"/enter?token={token}")
    status, _, headers = guarded.call("GET", f"/enter?token={token}")
    assert status == 303 and headers["location"] == "/"
    cookie = headers["set-cookie"]
    assert "SameSite=Strict" in cookie and "HttpOnly" in cookie
    assert guarded.call("GET", "/", Cookie=cookie.partition(";")[0])[0] == 200
    assert guarded.call("GET", "/", Authorization=f"Bearer {token}")[0] == 200


def test_the_cookie_alone_presses_no_button_for_another_page(guarded: Site) -> None:
    cookie = f"recap_console={guarded.console.door.token}"
    assert guarded.call("POST", "/api/do/estop", {}, Cookie=cookie, Origin="http://evil.example")[0] == 403
    assert guarded.call("POST", "/api/do/estop", {}, Cookie=cookie, Origin=f"http://{guarded.host}")[0] == 200


def test_a_websocket_wants_the_token_too(guarded: Site) -> None:
    async def attack(**headers: str) -> None:
        async with guarded.watch("/live", Origin=f"http://{guarded.host}", **headers) as live:
            await live.recv()

    with pytest.raises(InvalidStatus):
        asyncio.run(attack())
    asyncio.run(attack(Cookie=f"recap_console={guarded.console.door.token}"))


def test_a_port_that_is_taken_is_passed_over_and_a_host_that_is_not_ours_is_refused() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = listen("127.0.0.1", port)
    assert second.getsockname()[1] > port
    first.close()
    second.close()
    with pytest.raises(ContractError, match="cannot listen on"):
        listen("192.0.2.1", 8090)
