"""Access control: only a browser on this machine that opened the printed address, and no page of another site.

A web page can make a browser send requests to 127.0.0.1, and DNS rebinding can give that address another name. So the
server is bound to 127.0.0.1; the Host header must be a known one (421); a token in the printed address becomes an
HttpOnly, SameSite=Strict cookie; another Origin is refused (403); bodies must be JSON, which no form can send (415); a
strict Content-Security-Policy prevents the page from loading anything else; websockets are closed.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_BODY = 4 << 20
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_ENTER = (
    '<!doctype html><meta http-equiv="refresh" content="0;url=/"><link rel="icon" href="data:,">'
    "<title>oxe-curate</title>"
)
_LOCKED = """<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>oxe-curate</title>
<p>Open the address that <code>oxe-curate edit</code> printed; it contains an access token.</p>"""


@dataclass(frozen=True)
class Access:
    """What a request must contain.

    Attributes:
        hosts: allowed values of the Host header, lower case; without a port, any port is allowed.
        port: that the server listens on; part of the cookie's name, since cookies are not specific to a port.
        token: in the printed address.
        session: value of the cookie.
    """

    hosts: Collection[str]
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @classmethod
    def local(cls, port: int, allowed: Collection[str] = ()) -> Access:
        """Access from this machine, and through the hosts given with --allow-host."""
        own = (f"127.0.0.1:{port}", f"localhost:{port}")
        return cls(frozenset((*own, *(host.lower() for host in allowed))), port)

    @property
    def cookie(self) -> str:
        """Name of the cookie."""
        return f"oxe_curate_edit_{self.port}"

    def host_ok(self, host: str) -> bool:
        """Whether a Host header is allowed."""
        host = host.lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return host in self.hosts or (name in self.hosts and ":" not in name)

    def origin_ok(self, origin: str, host: str) -> bool:
        """Whether an Origin header is the page's own."""
        scheme, _, name = origin.lower().partition("://")
        return scheme in ("http", "https") and name == host.lower()

    def cookie_ok(self, header: str) -> bool:
        """Whether a Cookie header contains the session."""
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.session.encode())


class Guard:
    """ASGI middleware that passes on requests that `Access` allows, and adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        refusal = self._refuse(scope)
        await (refusal or self._app)(scope, receive, guarded)

    def _refuse(self, scope: Scope) -> Response | None:
        headers, method, access = Headers(scope=scope), scope["method"], self._access
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not access.host_ok(hosts[0]):
            return PlainTextResponse("unknown host; see --allow-host\n", 421)
        origins = headers.getlist("origin")
        if any(not access.origin_ok(origin, hosts[0]) for origin in origins):
            return PlainTextResponse("cross-site request refused\n", 403)
        navigation = method == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not navigation:
            return PlainTextResponse("cross-site request refused\n", 403)
        if method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("method not allowed; use GET or POST\n", 405, {"Allow": "GET, HEAD, POST"})
        if scope["path"] == "/" and method == "GET" and (entry := self._enter(scope)):
            return entry
        if not access.cookie_ok("; ".join(headers.getlist("cookie"))):
            return HTMLResponse(_LOCKED, 401, {"Cache-Control": "no-store"})
        if method == "POST":
            return self._refuse_post(headers, origins)
        return None

    def _enter(self, scope: Scope) -> Response | None:
        query = scope.get("query_string", b"").decode("latin-1")
        if not query.startswith("token="):
            return None
        if not hmac.compare_digest(query.removeprefix("token=").encode(), self._access.token.encode()):
            return HTMLResponse(_LOCKED, 401, {"Cache-Control": "no-store"})
        # not a redirect: after a link in another program, SameSite=Strict would withhold the cookie from it
        response = HTMLResponse(_ENTER, 200, {"Cache-Control": "no-store"})
        response.set_cookie(self._access.cookie, self._access.session, httponly=True, samesite="strict", path="/")
        return response

    @staticmethod
    def _refuse_post(headers: Headers, origins: list[str]) -> Response | None:
        if not origins:
            return PlainTextResponse("missing Origin header\n", 403)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("expected Content-Type: application/json\n", 415)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return PlainTextResponse("missing Content-Length header\n", 411)
        if len(length) > 15 or int(length) > _MAX_BODY:
            return PlainTextResponse("request body too large\n", 413)
        return None
