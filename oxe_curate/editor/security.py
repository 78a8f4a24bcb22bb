"""Who may talk to the editor: this machine's browser, by the address that was printed, and no page of another site.

A page on the web can make a browser send requests to 127.0.0.1, and DNS rebinding can make it look like a name of its
own. So: bound to 127.0.0.1; the Host must be one of ours (421); a token from the printed address becomes an HttpOnly,
SameSite=Strict cookie; a foreign Origin is refused (403); bodies must be JSON, which no form can send (415); a strict
Content-Security-Policy lets the page load nothing from elsewhere; websockets are closed.
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

MAX_BODY = 4 << 20
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
<p>This page opens with the address that <code>oxe-curate edit</code> printed: it carries a token.</p>"""


@dataclass(frozen=True)
class Access:
    """What a request must bring.

    Attributes:
        hosts: allowed values of the Host header, lower case; with a port, or without for any port.
        port: that the server listens on; part of the cookie's name, since a cookie knows no port.
        token: of the printed address.
        session: value of the cookie.
    """

    hosts: Collection[str]
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @classmethod
    def local(cls, port: int, allowed: Collection[str] = ()) -> Access:
        """Access from this machine, and through the hosts named with --allow-host."""
        own = (f"127.0.0.1:{port}", f"localhost:{port}")
        return cls(frozenset((*own, *(host.lower() for host in allowed))), port)

    @property
    def cookie(self) -> str:
        """Name of the cookie."""
        return f"oxe_curate_edit_{self.port}"

    def host_ok(self, host: str) -> bool:
        """Whether a Host header is one of ours."""
        host = host.lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return host in self.hosts or (name in self.hosts and ":" not in name)

    def origin_ok(self, origin: str, host: str) -> bool:
        """Whether an Origin header is the page's own."""
        scheme, _, name = origin.lower().partition("://")
        return scheme in ("http", "https") and name == host.lower()

    def cookie_ok(self, header: str) -> bool:
        """Whether a Cookie header holds the session."""
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.session.encode())


class Guard:
    """ASGI middleware that lets through what `Access` allows, and puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on."""
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
            return PlainTextResponse("not a host of this server; see --allow-host\n", 421)
        origins = headers.getlist("origin")
        if any(not access.origin_ok(origin, hosts[0]) for origin in origins):
            return PlainTextResponse("requests of other pages are refused\n", 403)
        navigation = method == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not navigation:
            return PlainTextResponse("requests of other pages are refused\n", 403)
        if method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("GET and POST alone\n", 405, {"Allow": "GET, HEAD, POST"})
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
        # not a redirect: SameSite=Strict would keep the cookie from a redirect that another program's link began
        response = HTMLResponse(_ENTER, 200, {"Cache-Control": "no-store"})
        response.set_cookie(self._access.cookie, self._access.session, httponly=True, samesite="strict", path="/")
        return response

    @staticmethod
    def _refuse_post(headers: Headers, origins: list[str]) -> Response | None:
        if not origins:
            return PlainTextResponse("a change needs an Origin\n", 403)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("application/json alone\n", 415)
        length = headers.get("content-length", "")
        if not length.isdigit():
            return PlainTextResponse("a Content-Length is needed\n", 411)
        if int(length) > MAX_BODY:
            return PlainTextResponse("too large\n", 413)
        return None
