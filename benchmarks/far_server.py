"""A simulated object store: enough of S3 to read a folder, at a stated delay per request and bandwidth per connection.

A request for n bytes takes `delay + n / bandwidth` seconds, whatever else is in flight: the store itself has no limit.
The server is a process of its own, which sends with sendfile(2): at 400 MB/s it uses a tenth of a core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import urlopen
from xml.sax.saxutils import escape

_LIST = '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>'
_FILE = "<Contents><Key>{}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
_FOLDER = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"
_BURST = 1 << 20
"""Bytes that are sent at once; the pauses between them give the bandwidth."""


@dataclass
class Counts:
    """Requests since the last look.

    Attributes:
        requests: of every kind.
        reads, bytes: requests for parts of source shards, and the bytes that they sent.
        at_once: the most requests that were in flight.
    """

    requests: int = 0
    reads: int = 0
    bytes: int = 0
    at_once: int = 0
    flying: int = field(default=0, repr=False)


class _Handler(BaseHTTPRequestHandler):
    """The files below `root` are the objects of every bucket; /count returns and resets the counts."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small answer waits 40 ms for the client's acknowledgement of its header
    root: Path
    delay: float
    bandwidth: float
    counts: Counts
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/count":
            self._answer(200, json.dumps(asdict(self.counts)).encode())
            vars(self.counts).update(vars(Counts()))
            return
        with self.lock:
            self.counts.requests += 1
            self.counts.flying += 1
            self.counts.at_once = max(self.counts.at_once, self.counts.flying)
        try:
            self._serve(unquote(parts.path).lstrip("/").partition("/")[2], parts.query)
        finally:
            with self.lock:
                self.counts.flying -= 1

    def _serve(self, key: str, query: str) -> None:
        start = time.perf_counter() + self.delay
        time.sleep(self.delay)
        if "list-type" in query:
            return self._list({name: values[0] for name, values in parse_qs(query).items()})
        path = self.root / key
        if not key:  # the bucket
            return self._answer(200, b"")
        if not path.is_file():
            return self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = path.stat().st_size
        if self.command == "HEAD":
            return self._answer(200, b"", size)
        first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
        if ".tfrecord" in key:
            with self.lock:
                self.counts.reads += 1
                self.counts.bytes += last + 1 - first
        self._head(206 if found else 200, last + 1 - first)
        with path.open("rb") as file:
            for at in range(first, last + 1, _BURST):
                stop = min(at + _BURST, last + 1)
                pause = start + (stop - first) / self.bandwidth - time.perf_counter()
                time.sleep(max(pause, 0))
                while at < stop:
                    at += os.sendfile(self.connection.fileno(), file.fileno(), at, stop - at)
        return None

    def _list(self, query: dict[str, str]) -> None:
        prefix, found = query.get("prefix", ""), []
        for path in sorted(self.root.rglob("*")):
            key = str(path.relative_to(self.root))
            if not key.startswith(prefix):
                continue
            if "delimiter" in query and "/" in key[len(prefix) :]:
                continue
            if path.is_file():
                found.append(_FILE.format(escape(key), path.stat().st_size))
            elif "delimiter" in query:
                found.append(_FOLDER.format(escape(key + "/")))
        self._answer(200, _LIST.format("".join(found)).encode())

    def _answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self._head(status, len(body) if length is None else length)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()


def _serve_forever(root: Path, delay: float, bandwidth: float, pipe: Any) -> None:
    server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 256, "daemon_threads": True})
    server.handle_error = lambda *_: None  # type: ignore[attr-defined]  # of clients that ended meanwhile
    facts = {"root": root, "delay": delay, "bandwidth": bandwidth, "counts": Counts()}
    made = server(("127.0.0.1", 0), type("Handler", (_Handler,), facts))
    pipe.send(made.server_port)
    made.serve_forever()


@contextmanager
def far(root: Path, delay: float, bandwidth: float) -> Iterator[int]:
    """Serve `root` from a process of its own; the port."""
    context = multiprocessing.get_context("spawn")
    pipe, there = context.Pipe()
    process = context.Process(target=_serve_forever, args=(root, delay, bandwidth, there), daemon=True)
    process.start()
    try:
        yield pipe.recv()
    finally:
        process.terminate()
        process.join()


def take_counts(port: int) -> Counts:
    """What was requested since the last call."""
    with urlopen(f"http://127.0.0.1:{port}/count") as answer:
        return Counts(**json.load(answer))


def environment(port: int, in_flight: int) -> dict[str, str]:
    """The variables with which a child process reads `s3://bucket` from the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "OXE_CURATE_STORE_REQUESTS": str(in_flight),
    }  # fmt: skip
