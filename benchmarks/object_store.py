"""Time filter and tokenize from s3://, with a server on this machine that answers each request late.

    python -m benchmarks.object_store --image-size 64 256

The server is a process of its own; it waits 50 ms before each answer and has no limit of bandwidth, so what is
measured is how well requests overlap. One worker process, with 1, 4, 16 and 32 requests in flight. Index and mixture
are written to the local disk. The data is that of make_shards.py and is made first if it is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks import make_shards, report

HERE = Path(__file__).parent
_LIST = '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>'
_FILE = "<Contents><Key>{}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
_FOLDER = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"


class Handler(BaseHTTPRequestHandler):
    """Enough of S3 to read the files below `root` as those of the bucket "bucket"; /count returns and resets counts."""

    protocol_version = "HTTP/1.1"
    root: Path
    delay: float
    counts: list[int]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/count":
            self._answer(200, json.dumps(self.counts).encode())
            self.counts[:] = [0, 0]
            return None
        time.sleep(self.delay)
        self.counts[0] += 1
        key = unquote(parts.path).removeprefix("/bucket").lstrip("/")
        if "list-type" in parts.query:
            return self._list({name: values[0] for name, values in parse_qs(parts.query).items()})
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
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        self.counts[1] += len(data)
        return self._answer(206 if found else 200, data)

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
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(root: Path, delay: float, pipe: Any) -> None:
    """Serve `root` and send the port."""
    server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 256, "daemon_threads": True})
    handler = type("Delayed", (Handler,), {"root": root, "delay": delay, "counts": [0, 0]})
    made = server(("127.0.0.1", 0), handler)
    pipe.send(made.server_port)
    made.serve_forever()


def count(port: int) -> tuple[int, int]:
    """Requests and bytes since the last call."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/count") as answer:
        requests, size = json.load(answer)
    return requests, size


def run(command: Sequence[str], environment: dict[str, str], port: int) -> dict[str, Any]:
    """Run a contender of benchmarks.product; its own seconds, requests and bytes."""
    import subprocess

    count(port)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.product", *command],
        stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    requests, size = count(port)
    return {**json.loads(done.stdout.splitlines()[-1]), "requests": requests, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder of the data (%(default)s)")
    parser.add_argument("--image-size", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--gb", type=float, default=0.8, help="size of each data set in 10^9 bytes (%(default)s)")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer (%(default)s)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--name", default="object-store")
    args = parser.parse_args()
    base = make_shards.find_base(make_shards.shared_folder(), args.data / "base")
    sizes, flying = " ".join(map(str, args.image_size)), " ".join(map(str, args.in_flight))
    command = f"`python -m benchmarks.object_store --gb {args.gb:g} --image-size {sizes} --in-flight {flying}`"
    lines = [
        f"# Benchmark: {args.name}", command,
        "\n".join(f"- {key}: {value}" for key, value in report.machine(HERE).items()),
        f"One worker; the server waits {args.delay * 1000:.0f} ms before each answer. `shard MB/s`: size of the source "
        "shards (filter) or of the images written (tokenize) per second; `read`: bytes transferred.",
    ]  # fmt: skip
    for size in args.image_size:
        source = args.data / f"{size}px-{args.gb:g}"
        make_shards.make_dataset(source, base, gb=args.gb, shards=16, size=size, seed=0)
        total = sum(path.stat().st_size for path in source.rglob("*.tfrecord-*"))
        pipe, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(source, args.delay, there), daemon=True
        )
        process.start()
        port = pipe.recv()
        rows = [f"### {size} px: {total / 1e6:,.0f} MB, 16 shards", ""]
        rows += [
            "| command | in flight | s | MB/s | requests a shard | read MB | read MB/s |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for in_flight in args.in_flight:
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1", "OXE_CURATE_STORE_REQUESTS": str(in_flight),
            }  # fmt: skip
            out = args.data / "object-store-out"
            shutil.rmtree(out, ignore_errors=True)
            filtered = run(["filter", "s3://bucket", str(out / "index"), "--workers", "1"], environment, port)
            tokenized = run(["tokenize", str(out / "index"), str(out / "mix"), "--workers", "1"], environment, port)
            for name, found, moved in (("filter", filtered, total), ("tokenize", tokenized, tokenized["written"])):
                seconds, read = found["seconds"], found["bytes"] / 1e6
                rows.append(
                    f"| {name} | {in_flight} | {seconds:.1f} | {moved / seconds / 1e6:.1f} | "
                    f"{found['requests'] / 16:.1f} | {read:.0f} | {read / seconds:.1f} |"
                )
                print(rows[-1], file=sys.stderr)
        process.terminate()
        lines.append("\n".join(rows))
    (HERE / "results" / f"{args.name}.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
