"""An HTTP proxy in front of an object store that counts requests and makes some of them fail."""

import http.client
import multiprocessing
import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>a test says so</Message></Error>'


@dataclass(frozen=True)
class Request:
    """A request as the proxy saw it; `number` counts those of the same method and path, from 0."""

    method: str
    path: str
    query: str
    range: str | None
    number: int

    @property
    def is_read(self) -> bool:
        """Whether it reads an object's bytes: a GET of an object, not of a listing or of metadata."""
        if "/storage/v1/" in self.path:
            return "alt=media" in self.query
        return self.method == "GET" and ("list-type" not in self.query) and self.path.count("/") > 1


@dataclass(frozen=True)
class Fault:
    """What happens instead: an HTTP status with S3's error code, "cut", "short", "reset" or "stall"."""

    kind: str
    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class Reads:
    """A rule: the first `times` reads of each range of each object with `part` in its path fail."""

    fault: Fault
    times: int = 10**9
    part: str = ""
    ranges_only: bool = False

    def __call__(self, request: Request) -> Fault | None:
        chosen = request.is_read and self.part in request.path and (request.range or not self.ranges_only)
        return self.fault if chosen and request.number < self.times else None


def no_faults(request: Request) -> Fault | None:
    """A rule: nothing fails."""


@dataclass
class Proxy:
    """The proxy: set `rule` to choose faults; `requests` are those so far; `released` ends all stalls."""

    address: str = ""
    rule: Callable[[Request], Fault | None] = no_faults
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    _seen: Counter[tuple[str, str, str | None]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, target: str, range_: str | None) -> Request:
        """Count a request."""
        parts = urlsplit(target)
        with self._lock:
            key = (method, parts.path, range_)
            request = Request(method, unquote(parts.path), parts.query, range_, self._seen[key])
            self._seen[key] += 1
            self.requests.append(request)
        return request

    def reset(self, rule: Callable[[Request], Fault | None] = no_faults) -> None:
        """Forget all requests, and choose faults by another rule."""
        with self._lock:
            self.requests.clear()
            self._seen.clear()
            self.rule = rule


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: str

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self._body()
        request = self.proxy.note(self.command, self.path, self.headers.get("Range"))
        fault = self.proxy.rule(request)
        if fault and fault.kind == "status":
            return self._answer(fault.status, [("Content-Type", "application/xml")], _XML.format(fault.code).encode())
        if fault and fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        connection.close()
        return self._answer(answer.status, kept, data, fault.kind if fault else "")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _handle  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, kind: str = "") -> None:
        sent = data[: len(data) // 2] if kind in ("cut", "short", "stall") else data
        length = str(len(sent) if kind == "short" else len(data))
        if self.command == "HEAD" and not data:
            length = {k.lower(): v for k, v in headers}.get("content-length", "0")
        self.send_response(status)
        for key, value in headers:
            if key.lower() not in ("content-length", "server", "date"):
                self.send_header(key, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if kind == "stall":
            self.wfile.flush()
            self.proxy.released.wait(120)
        if kind in ("cut", "stall"):
            self.close_connection = True


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        pass  # a client that gave up


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of `upstream` (host:port)."""
    made = Proxy()
    handler = type("Handler", (_Handler,), {"proxy": made, "upstream": upstream})
    server = _Server(("127.0.0.1", 0), handler)
    made.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class ProxyProcess:
    """A proxy in a process of its own: pyarrow's gs:// client holds the interpreter lock during some requests."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.address = pipe.recv()

    def _ask(self, *command: Any) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()

    def reset(self, rule: Callable[[Request], Fault | None] = no_faults) -> None:
        """See `Proxy.reset`; the rule must be picklable."""
        self._ask("reset", rule)

    def release(self) -> None:
        """End all stalls."""
        self._ask("release")

    @property
    def requests(self) -> list[Request]:
        """The requests so far."""
        return list(self._ask("requests"))


def _serve(upstream: str, pipe: Any) -> None:
    with proxy(upstream) as made:
        pipe.send(made.address)
        while command := pipe.recv():
            if command[0] == "reset":
                made.reset(command[1])
            elif command[0] == "release":
                made.released.set()
                made.released = threading.Event()
            pipe.send(made.requests if command[0] == "requests" else None)


@contextmanager
def proxy_process(upstream: str) -> Iterator[ProxyProcess]:
    """A proxy in front of `upstream` (host:port), in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(upstream, there), daemon=True)
    process.start()
    try:
        yield ProxyProcess(here)
    finally:
        here.send(())
        process.join(60)
