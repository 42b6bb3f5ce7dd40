"""Who may ask the console for what: pure; the caller passes headers and a steady clock's seconds.

On loopback everybody on this machine may. Another address wants the token that the start prints, as
`Authorization: Bearer …` or as the cookie that `/enter?token=…` sets. Browsers say where a page comes from:
what changes something, and every websocket, must come from the console's own pages. A name that somebody
else's name server points at this machine is none of the console's own (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

COOKIE = "recap_console"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

# The console's pages load nothing from elsewhere, run nothing inline and are shown in nobody's frame.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Door:
    """Bound to `host`; `token` is "" where none is wanted. Every check → "" or why not, in one line."""

    host: str
    token: str = ""

    @staticmethod
    def for_host(host: str) -> Door:
        return Door(host, "" if is_loopback(host) else secrets.token_urlsafe(24))

    def address(self, port: int) -> str:
        """The link that opens the console."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host.strip("[]")
        base = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        return f"{base}enter?token={self.token}" if self.token else base

    def may_read(self, headers: Mapping[str, str]) -> str:
        """A GET. headers: names in small letters."""
        return self._host(headers) or self._known(headers)

    def may_change(self, headers: Mapping[str, str]) -> str:
        """A POST: JSON from the console's own pages."""
        if refused := self.may_read(headers):
            return refused
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return "wanted content-type application/json"
        site = headers.get("sec-fetch-site", "same-origin")
        if site != "same-origin":
            return f"asked from another page ({site})"
        return self._origin(headers) if "origin" in headers else ""

    def may_watch(self, headers: Mapping[str, str]) -> str:
        """A websocket: browsers let any page open one, and always say which."""
        return self.may_read(headers) or self._origin(headers)

    def knows(self, token: str) -> bool:
        return bool(self.token) and secrets.compare_digest(token.encode(), self.token.encode())

    def cookie(self) -> str:
        """Set-Cookie of somebody who has the token."""
        return f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def _host(self, headers: Mapping[str, str]) -> str:
        host = headers.get("host", "")
        if not self.token and _name(host) not in LOOPBACK_NAMES:
            return f"host {host!r}: wanted {' or '.join(LOOPBACK_NAMES)}"
        return ""

    def _known(self, headers: Mapping[str, str]) -> str:
        if not self.token:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.knows(given.strip()):
            return ""
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and self.knows(cookie.value):
            return ""
        return "wanted the token that the start of the console has printed"

    def _origin(self, headers: Mapping[str, str]) -> str:
        origin = urlsplit(headers.get("origin", ""))
        if origin.scheme in ("http", "https") and origin.netloc and origin.netloc == headers.get("host"):
            return ""
        return f"origin {headers.get('origin', 'none')!r}: wanted a page of this console"


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


@dataclass
class Bucket:
    """Lets `burst` through at once and `rate_hz` in the long run."""

    rate_hz: float
    burst: float
    left: float = field(default=-1.0)
    _at_s: float = 0.0

    def take(self, now_s: float) -> bool:
        if self.left < 0.0:
            self.left, self._at_s = self.burst, now_s
        self.left = min(self.burst, self.left + (now_s - self._at_s) * self.rate_hz)
        self._at_s = now_s
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True
