"""A policy over HTTP, with the interface of OpenVLA's deploy.py.

    POST /act     {"image": array (H, W, 3) uint8, "instruction": text, "unnorm_key": data set}  ->  array (7,) float64
    POST /reset   start a new episode, for a policy with state
    GET  /health  description of the policy

Arrays are encoded as json-numpy does (`wire.py`). A client may also send {"encoded": text}, where the text is the JSON
of the request, and receives the JSON of the answer as a text. Other keys of /act: "proprio" (a list of
numbers), "chunk": true (all K actions, (K, 7)); "image" may also be a list, or camera -> array. Errors are answered
with {"error": message}. The model handles one request at a time; the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from oxe_curate import __version__
from oxe_curate.errors import ConfigError, CurateError, StorageError, did_you_mean
from oxe_curate.train.models.weights import Quantization
from oxe_curate.train.serving import wire
from oxe_curate.train.serving.policy import Policy
from oxe_curate.ui import web

_PORT = 8000
_MAX_BYTES = 32 << 20
"""Maximum size of a request; two images of 1920 x 1080 in base64 take 17 MB."""
_KEYS = ("image", "instruction", "unnorm_key", "proprio", "chunk")

_log = logging.getLogger(__name__)
_Answer = Callable[[Request], Awaitable[Response]]


def policy_application(policy: Policy, max_bytes: int = _MAX_BYTES) -> Starlette:
    """The ASGI application of a policy.

    Args:
        policy: a loaded policy.
        max_bytes: maximum size of a request; a larger one is answered with 413 and not read to the end.
    """
    # one thread: requests cannot overlap, and thread-local caches of libraries are reused
    worker = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def run(work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(worker, work)

    async def act(request: Request) -> Response:
        payload, encoded = _payload(await _body(request, max_bytes))
        answer = wire.dumps(await run(lambda: _act(policy, payload)))
        return _json(wire.dumps(answer) if encoded else answer)

    async def reset(request: Request) -> Response:
        await run(policy.reset)
        return _json(wire.dumps({"status": "ok"}))

    async def health(request: Request) -> Response:
        return _json(wire.dumps(describe(policy)))

    return Starlette(
        routes=[
            Route("/act", _guarded(act), methods=["POST"]),
            Route("/reset", _guarded(reset), methods=["POST"]),
            Route("/health", _guarded(health), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error},
    )


def describe(policy: Policy) -> dict[str, Any]:
    """The answer of /health."""
    spec = policy.spec
    return {
        "status": "ok",
        "software": f"oxe-curate {__version__}",
        "cameras": list(spec.cameras),
        "window": spec.window,
        "chunk": spec.chunk,
        "proprio": spec.proprio,
        "unnorm_key": policy.unnorm_key,
        "unnorm_keys": list(policy.unnorm_keys),
    }


def serve_policy(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = _PORT,
    unnorm_key: str | None = None,
    quantize: Quantization | None = None,
    device: str | None = None,
    max_bytes: int = _MAX_BYTES,
    report: Callable[[str], None] | None = None,
    **load: Any,
) -> None:
    """Load a policy and serve it until it is interrupted.

    Args:
        folder: run, exported model or published checkpoint.
        host: address to listen on. Any address but localhost lets others move the robot, as there is no password.
        port: 0 takes a free one.
        unnorm_key: data set whose bounds are used unless a request names another.
        quantize: see `Policy.load`.
        device: see `Policy.load`.
        max_bytes: maximum size of a request.
        report: prints a line for the user; default: standard output, flushed.
        load: other arguments of `Policy.load`.

    Raises:
        ConfigError, DataError: see `Policy.load`. StorageError: the address or the port cannot be used.
    """
    report = report or web.announce
    with contextlib.suppress(KeyboardInterrupt), bind(host, port) as sock:  # before loading, which takes minutes
        address, number = sock.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        policy = Policy.load(folder, unnorm_key, quantize=quantize, device=device, **load)
        policy.warm_up()

        def ready() -> None:
            keys = policy.unnorm_key or f"given in each request: {', '.join(policy.unnorm_keys)}"
            report(f"Serving {folder} at http://{shown}:{number}/act (unnorm_key: {keys}). Press Ctrl+C to stop.")
            if not _is_loopback(address):
                report("Warning: there is no password; anyone who can reach this address can move the robot.")

        config = uvicorn.Config(
            policy_application(policy, max_bytes), log_level="warning", access_log=False, ws="none", lifespan="off",
            timeout_graceful_shutdown=1, server_header=False, proxy_headers=False,
        )  # fmt: skip
        web.Server(config, ready).run(sockets=[sock])


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to an address, without listening yet.

    Raises:
        StorageError: not an address of this machine, or the port is in use.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise StorageError(f"--host {host}: not a valid address: {error}") from None
    sock = socket.socket(kind, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise StorageError(f"--host {host}: not an address of this machine") from None
        taken = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise StorageError(f"port {port} {taken}; choose another with --port (0 takes a free one)") from None
    return sock


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _act(policy: Policy, payload: Mapping[str, Any]) -> Any:
    for key in payload:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r}. {did_you_mean(key, _KEYS)}")
    for key in ("image", "instruction"):
        if key not in payload:
            raise ConfigError(f"the key {key!r} is missing")
    dataset, chunk = payload.get("unnorm_key"), payload.get("chunk", False)
    if dataset is not None and not isinstance(dataset, str):
        raise ConfigError(f"unnorm_key: expected the name of a data set, got {type(dataset).__name__}")
    if not isinstance(chunk, bool):
        raise ConfigError("chunk: expected true or false")
    call = policy.chunk if chunk else policy
    return call(payload["image"], payload["instruction"], payload.get("proprio"), unnorm_key=dataset)


def _payload(body: bytes) -> tuple[dict[str, Any], bool]:
    """The content of a request, and whether it was sent as an encoded text."""
    payload, encoded = _parse(body, "the request"), False
    if isinstance(payload, dict) and "encoded" in payload:
        if len(payload) > 1 or not isinstance(payload["encoded"], str):
            raise ConfigError("encoded: expected a text with the JSON of the whole request, and no other key")
        payload, encoded = _parse(payload["encoded"], "encoded"), True
    if not isinstance(payload, dict):
        raise ConfigError(f"expected a JSON object, got {type(payload).__name__}")
    return payload, encoded


def _parse(text: str | bytes, what: str) -> Any:
    try:
        return wire.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what} is not valid JSON: {error}") from None


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    received = bytearray()
    if not (declared.isdigit() and int(declared) > limit):
        async for part in request.stream():
            received += part
            if len(received) > limit:
                break
        else:
            return bytes(received)
    raise HTTPException(413, f"the request exceeds {limit:,} bytes; send smaller images or raise --max-mb")


def _guarded(handler: _Answer) -> _Answer:
    """Refuse requests of web pages, and answer every error as JSON without a traceback."""

    async def answer(request: Request) -> Response:
        # any web page open on this machine could post here; robots send no Origin
        if "origin" in request.headers:
            raise HTTPException(403, "requests from web pages are not allowed")
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise HTTPException(415, f"expected application/json, got {kind}")
        try:
            return await handler(request)
        except ConfigError as error:
            return _refused(str(error), 400)
        except CurateError as error:
            _log.error("%s", error)
            return _refused(str(error), 500)
        except ClientDisconnect:
            return _refused("the client disconnected", 400)
        except HTTPException:
            raise
        except Exception as error:
            _log.exception("internal fault")
            return _refused(f"internal fault: {type(error).__name__}; the server's terminal has the traceback", 500)

    return answer


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        return _refused("not found; use POST /act, POST /reset or GET /health", 404)
    response = _refused(str(error.detail), error.status_code)
    response.headers.update(error.headers or {})
    return response


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, {"Cache-Control": "no-store"}, "application/json")


def _refused(message: str, status: int) -> Response:
    return _json(wire.dumps({"error": message}), status)
