"""A policy over HTTP, with the interface of OpenVLA's deploy.py.

    POST /act     {"image": array (H, W, 3) uint8, "instruction": text, "unnorm_key": data set}  ->  array (7,) float64
    POST /reset   begin a new episode, for a policy that keeps state
    GET  /health  what is served

Arrays travel as json-numpy writes them (`wire.py`). A client without that package sends {"encoded": text}, the text
being the JSON of the request, and gets the answer's JSON as a text. Further keys of /act: "proprio" (a list of
numbers), "chunk": true (all K actions, (K, 7)); "image" may be a list, or camera -> array. A mistake is answered by
{"error": message}. One request at a time reaches the model; the others wait.
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

PORT = 8000
MAX_BYTES = 32 << 20
"""Largest request: two cameras of 1920 x 1080 as base64 have 17 MB."""
KEYS = ("image", "instruction", "unnorm_key", "proprio", "chunk")

_log = logging.getLogger(__name__)
_Answer = Callable[[Request], Awaitable[Response]]


def policy_application(policy: Policy, max_bytes: int = MAX_BYTES) -> Starlette:
    """The ASGI application of a policy.

    Args:
        policy: loaded.
        max_bytes: largest request; a larger one is answered with 413, without being read to its end.
    """
    # one thread of its own: requests cannot overlap, and what a library keeps per thread stays warm
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
    """What /health answers."""
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
    port: int = PORT,
    unnorm_key: str | None = None,
    quantize: Quantization | None = None,
    device: str | None = None,
    max_bytes: int = MAX_BYTES,
    say: Callable[[str], None] | None = None,
    **load: Any,
) -> None:
    """Load a policy and serve it until it is interrupted.

    Args:
        folder: run, exported folder or published checkpoint.
        host: address to listen at. Any but this machine's own lets others move the robot: there is no password.
        port: 0 takes a free one.
        unnorm_key: data set whose bounds are used where a request names none.
        quantize: see `Policy.load`.
        device: see `Policy.load`.
        max_bytes: largest request.
        say: prints lines for the user; by default on standard output, at once.
        load: further arguments of `Policy.load`.

    Raises:
        ConfigError, DataError: as `Policy.load`. StorageError: the address or the port cannot be used.
    """
    say = say or web.announce
    with contextlib.suppress(KeyboardInterrupt), bind(host, port) as sock:  # before minutes of loading
        address, number = sock.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        policy = Policy.load(folder, unnorm_key, quantize=quantize, device=device, **load)
        policy.warm_up()

        def ready() -> None:
            keys = policy.unnorm_key or f"the request's unnorm_key, one of {', '.join(policy.unnorm_keys)}"
            say(f"Serving {folder} at http://{shown}:{number}/act, actions by {keys}. Ctrl+C ends it.")
            if not _is_loopback(address):
                say(
                    "Warning: whoever reaches this address can read the model and move the robot; there is no password."
                )

        config = uvicorn.Config(
            policy_application(policy, max_bytes), log_level="warning", access_log=False, ws="none", lifespan="off",
            timeout_graceful_shutdown=1, server_header=False, proxy_headers=False,
        )  # fmt: skip
        web.Server(config, ready).run(sockets=[sock])


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; nobody can connect before something listens at it.

    Raises:
        StorageError: the address is not this machine's, or the port is taken.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise StorageError(f"--host {host}: is no address: {error}") from None
    sock = socket.socket(kind, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise StorageError(f"--host {host}: is not an address of this machine") from None
        taken = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise StorageError(f"port {port} {taken}. Name another with --port; 0 takes a free one.") from None
    return sock


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _act(policy: Policy, payload: Mapping[str, Any]) -> Any:
    for key in payload:
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r}. {did_you_mean(key, KEYS)}")
    for key in ("image", "instruction"):
        if key not in payload:
            raise ConfigError(f"the key {key!r} is missing")
    dataset, whole = payload.get("unnorm_key"), payload.get("chunk", False)
    if dataset is not None and not isinstance(dataset, str):
        raise ConfigError(f"unnorm_key: expected the name of a data set, found {type(dataset).__name__}")
    if not isinstance(whole, bool):
        raise ConfigError("chunk: expected true or false")
    call = policy.chunk if whole else policy
    return call(payload["image"], payload["instruction"], payload.get("proprio"), unnorm_key=dataset)


def _payload(body: bytes) -> tuple[dict[str, Any], bool]:
    """The request's keys and values, and whether they came as a text within the JSON."""
    payload, encoded = _parse(body, "the request"), False
    if isinstance(payload, dict) and "encoded" in payload:
        if len(payload) > 1 or not isinstance(payload["encoded"], str):
            raise ConfigError("encoded: expected one text with the JSON of the whole request, and no other key")
        payload, encoded = _parse(payload["encoded"], "encoded"), True
    if not isinstance(payload, dict):
        raise ConfigError(f"the request must be keys and values, found {type(payload).__name__}")
    return payload, encoded


def _parse(text: str | bytes, what: str) -> Any:
    try:
        return wire.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what} cannot be read as JSON: {error}") from None


async def _body(request: Request, limit: int) -> bytes:
    told = request.headers.get("content-length", "")
    received = bytearray()
    if not (told.isdigit() and int(told) > limit):
        async for part in request.stream():
            received += part
            if len(received) > limit:
                break
        else:
            return bytes(received)
    raise HTTPException(413, f"a request may have {limit:,} bytes; send a smaller picture, or serve with --max-mb")


def _guarded(handler: _Answer) -> _Answer:
    """Refuse what a web page sends, and answer every error as JSON, never with a traceback."""

    async def answer(request: Request) -> Response:
        # any page in a browser of this machine could post here; robots send no Origin
        if "origin" in request.headers:
            raise HTTPException(403, "requests of web pages are refused")
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise HTTPException(415, f"application/json is wanted, found {kind}")
        try:
            return await handler(request)
        except ConfigError as error:
            return _refused(str(error), 400)
        except CurateError as error:
            _log.error("%s", error)
            return _refused(str(error), 500)
        except ClientDisconnect:
            return _refused("the client went away", 400)
        except HTTPException:
            raise
        except Exception as error:
            _log.exception("internal fault")
            return _refused(f"internal fault: {type(error).__name__}. The server's terminal has the traceback.", 500)

    return answer


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        return _refused("there are POST /act, POST /reset and GET /health", 404)
    response = _refused(str(error.detail), error.status_code)
    response.headers.update(error.headers or {})
    return response


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, {"Cache-Control": "no-store"}, "application/json")


def _refused(message: str, status: int) -> Response:
    return _json(wire.dumps({"error": message}), status)
