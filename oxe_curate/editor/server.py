"""The editor's server: pure functions of the text, behind HTTP on 127.0.0.1.

It keeps no state of the edit: each request carries the text. No request names a file: the mixture's path is fixed when
the server starts, data sets are looked up in the catalogue, and frames are addressed by numbers.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oxe_curate import __version__
from oxe_curate.editor import analyse
from oxe_curate.editor.catalogue import Catalogue, starting_text
from oxe_curate.editor.files import MixtureFile, Snapshot, view
from oxe_curate.editor.frames import FrameViewer
from oxe_curate.editor.page import static_files, static_route
from oxe_curate.editor.proposals import Proposals
from oxe_curate.editor.security import Access, Guard
from oxe_curate.errors import ConfigError, CurateError, StorageError, bounded, quoted
from oxe_curate.index.store import Index
from oxe_curate.mixture.published import find_published, is_packaged, is_path
from oxe_curate.ui import web

_PORT = 8441
_log = logging.getLogger(__name__)


class Editor:
    """The handlers of the routes, from JSON to JSON; they run on threads.

    Args:
        file: the mixture file.
        catalogue: the data sets that can be named.
        template: text to begin with if there is no file; None: the data sets of the index, at weight 1.
    """

    def __init__(self, file: MixtureFile, catalogue: Catalogue, template: str | None = None) -> None:
        self.file, self.catalogue, self.template = file, catalogue, template
        self.frames = FrameViewer(catalogue, catalogue.index) if catalogue.index else None
        self.proposals = Proposals(catalogue)

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────

    def opened(self) -> dict[str, Any]:
        """The file on disk, or a text to begin with."""
        now = self.file.read()
        new = now.data is None
        template = self.template or starting_text(self.file.path.stem, self.catalogue.index)
        text = template if new else now.text
        return {
            "name": self.file.path.name, "path": str(self.file.path), "text": text, "base": now.digest, "new": new,
            "linkTo": str(self.file.target) if self.file.is_link else None, "version": __version__,
            "index": str(self.catalogue.index.folder) if self.catalogue.index else None,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """The digest of the file on disk; the page polls it."""
        return {"base": self.file.read().digest}

    def save(self, body: dict[str, Any]) -> dict[str, Any]:
        """Save the text, unless the file changed on disk since the page read it."""
        done, now = self.file.save(_text(body), str(body.get("base", "")), bool(body.get("force")))
        return {"saved": done, "base": now.digest, **({} if done else {"text": _shown(now)})}

    # ── the text ─────────────────────────────────────────────────────────────────────────────────────────

    def analyse(self, body: dict[str, Any]) -> dict[str, Any]:
        """See `analyse.analyse`."""
        return analyse.analyse(_text(body), self.catalogue, _samples(body))

    def edit(self, body: dict[str, Any]) -> dict[str, Any]:
        """See `analyse.apply_action`."""
        return analyse.apply_action(_text(body), body.get("operation"), self.catalogue, _samples(body))

    def check(self, body: dict[str, Any]) -> dict[str, Any]:
        """See `analyse.problems`."""
        return {"findings": analyse.problems(_text(body), self.catalogue, _samples(body), self.file.path.parent)}

    def next_samples(self, body: dict[str, Any]) -> dict[str, Any]:
        """The samples that tokenize writes first."""
        frames = self._frames("samples")
        mixture = analyse.parse_mixture(_text(body), self.file.path.name)
        offset, count = int(_number(body, "offset", 0)), int(_number(body, "count", 64))
        if offset < 0 or not 1 <= count <= 256:
            raise ConfigError("expected an offset of at least 0 and a count of 1 to 256")
        return frames.next_samples(mixture, self.file.path.name, offset, count)

    def propose(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start to compute weights for the data sets of the text."""
        mixture = analyse.parse_mixture(_text(body), self.file.path.name)
        return self.proposals.start(mixture, str(body.get("method")))

    # ── the data sets ────────────────────────────────────────────────────────────────────────────────────

    def facts(self) -> dict[str, Any]:
        """Facts of every data set that can be named, and the published mixtures."""
        references = {
            name: {"title": r.title, "source": r.source, "weights": dict(r.weights)}
            for name, r in self.catalogue.references.items()
        }
        return {"datasets": self.catalogue.facts, "references": references}

    def details(self, body: dict[str, Any]) -> dict[str, Any]:
        """Example episodes and instructions of a data set."""
        return self._frames("frames").details(str(body.get("dataset")))

    def histograms(self, body: dict[str, Any]) -> dict[str, Any]:
        """Histograms of one or two data sets' actions."""
        low, high, names = _number(body, "low", 0.01), _number(body, "high", 0.99), body.get("datasets")
        if not isinstance(names, list):
            raise ConfigError("datasets: expected a list of names")
        return self._frames("actions").histograms([str(name) for name in names], low, high)

    def frame(self, request: Request) -> bytes:
        """A frame as a JPEG, by its numbers; without them, an example of the data set."""
        p, q = request.path_params, request.query_params
        height = _small(q.get("h", "72"))
        if "role" not in p:
            return self._frames("frames").thumbnail(p["dataset"], height)
        swap = {"0": False, "1": True}.get(q.get("swap", ""))
        file, row, step = (_small(p[key]) for key in ("file", "row", "step"))
        return self._frames("frames").image(p["dataset"], p["role"], file, row, step, height, swap)

    def _frames(self, what: str) -> FrameViewer:
        if self.frames is None:
            raise ConfigError(f"{what} need an index; start the editor with --index")
        return self.frames


def _text(body: dict[str, Any]) -> str:
    text = body.get("text")
    if not isinstance(text, str):
        raise ConfigError("text: expected a string")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError("text: half of a surrogate pair, which UTF-8 cannot hold; remove it")
    return text


def _number(body: dict[str, Any], key: str, default: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e15 < value < 1e15:
        raise ConfigError(f"{key}: expected a number, got {quoted(value)}")
    return value


def _small(text: str) -> int:
    """A number of a path or a query, which may have thousands of digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ConfigError(f"expected a number, got {quoted(text)}")
    return int(text)


def _samples(body: dict[str, Any]) -> float | None:
    samples = body.get("samples")
    if samples is None:
        return None
    if isinstance(samples, bool) or not isinstance(samples, int | float) or not 1 <= samples < 1e15:
        raise ConfigError(f"samples: expected at least 1, got {quoted(samples)}")
    return float(samples)


def _shown(now: Snapshot) -> str:
    return "" if now.data is None else now.text


def editor_application(
    file: MixtureFile, catalogue: Catalogue, access: Access, template: str | None = None
) -> Starlette:
    """The ASGI application; arguments as for `Editor`. Static files are read at the start, none by a request's path."""
    editor = Editor(file, catalogue, template)

    def get(path: str, work: Callable[[], dict[str, Any]]) -> Route:
        async def answer(request: Request) -> Response:
            return await _answer(work)

        return Route(path, answer, methods=["GET"])

    def post(path: str, work: Callable[[dict[str, Any]], dict[str, Any]]) -> Route:
        async def answer(request: Request) -> Response:
            try:
                body = await request.json()
            except (ValueError, RecursionError):
                return _refused("expected JSON", 400)
            if not isinstance(body, dict):
                return _refused("expected a JSON object", 400)
            return await _answer(lambda: work(body))

        return Route(path, answer, methods=["POST"])

    async def frame(request: Request) -> Response:
        try:
            data = await anyio.to_thread.run_sync(editor.frame, request)
        except (CurateError, ValueError) as error:
            return _refused(str(error), 404)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    routes = [
        get("/api/file", editor.opened),
        get("/api/state", editor.state),
        get("/api/catalogue", editor.facts),
        post("/api/save", editor.save),
        post("/api/analyse", editor.analyse),
        post("/api/edit", editor.edit),
        post("/api/check", editor.check),
        post("/api/samples", editor.next_samples),
        post("/api/propose", editor.propose),
        get("/api/proposal", editor.proposals.state),
        post("/api/dataset", editor.details),
        post("/api/histograms", editor.histograms),
        Route("/api/frame/{dataset}", frame, methods=["GET"]),
        Route("/api/frame/{dataset}/{role}/{file}/{row}/{step}", frame, methods=["GET"]),
        *(static_route(path, data, kind) for path, (data, kind) in static_files().items()),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, access=access)])
    app.router.redirect_slashes = False
    return app


async def _answer(work: Callable[[], dict[str, Any]]) -> Response:
    try:
        result = await anyio.to_thread.run_sync(work)
    except StorageError as error:
        return _refused(str(error), 507)
    except CurateError as error:
        return _refused(str(error), 422)
    except Exception as error:
        _log.exception("internal error")
        what = bounded(f"internal error: {type(error).__name__}: {error}")
        return _refused(f"{what}. See the terminal for the traceback.", 500)
    return JSONResponse(result, headers={"Cache-Control": "no-store"})


def _refused(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status, {"Cache-Control": "no-store"})


def listen(port: int | None) -> socket.socket:
    """A socket on 127.0.0.1, on `port`; None: on 8441, or on a free port if that is in use.

    Raises:
        StorageError: `port` is in use.
    """
    candidates = [_PORT, 0] if port is None else [port]
    for number in candidates:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", number))
            sock.listen(64)
        except OSError as error:
            sock.close()
            if number == candidates[-1]:
                reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise StorageError(f"port {number} {reason}; choose another --port, or omit it") from None
        else:
            return sock
    raise AssertionError


def serve_editor(
    mixture: str | Path,
    index: str | Path | None = None,
    *,
    cards: Path | None = None,
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    open_browser: bool = False,
    log: Callable[[str], None] = web.announce,
) -> None:
    """Serve the editor until it is interrupted.

    Args:
        mixture: the file; the first save creates it if it does not exist. The name of a published mixture opens a copy
            of it, which is saved as NAME.yaml in the current folder.
        index: folder that filter wrote; None: sizes are the published ones, and there are no frames.
        cards: a folder of the user's own cards.
        port: None: 8441, or a free port if that is in use.
        allow_hosts: additional values of the Host header, for a forwarded port ("myserver:8080").
        open_browser: open the address.
        log: prints the address, once the server listens.

    Raises:
        ConfigError: not a mixture file, a file of the installed package, or not an index.
        StorageError: the port is in use, or the folder does not exist.
    """
    path, template = _file_and_template(mixture)
    file = MixtureFile(path)
    file.read().text  # noqa: B018 (raises if it is not UTF-8)
    opened = Index.open(index) if index is not None else None
    catalogue = Catalogue(opened, cards)
    sock = listen(port)
    access = Access.local(sock.getsockname()[1], allow_hosts)
    address = f"http://127.0.0.1:{access.port}/?token={access.token}"

    def ready() -> None:
        threading.Thread(target=lambda: (catalogue.facts, catalogue.references), daemon=True).start()
        if file.is_link:
            log(f"{file.path} is a symbolic link; editing {file.target}")
        if template is not None:
            copied = "opened again" if path.exists() else "the first save creates the file"
            log(f"{path} is your copy of the published mixture {mixture}; {copied}")
        log(f"Editing {file.path}\n\n  {address}\n\nPress Ctrl+C to stop.")
        if open_browser:
            webbrowser.open(address)

    config = uvicorn.Config(
        editor_application(file, catalogue, access, template), log_level="warning", access_log=False, ws="none",
        lifespan="off", timeout_graceful_shutdown=1, server_header=False, proxy_headers=False,
    )  # fmt: skip
    with sock, contextlib.suppress(KeyboardInterrupt):
        web.Server(config, ready).run(sockets=[sock])


def _file_and_template(mixture: str | Path) -> tuple[Path, str | None]:
    """The file to edit, and the text that a copy of a published mixture begins with."""
    if not is_path(mixture):
        found = find_published(str(mixture))
        return Path(f"{found.name}.yaml"), view(found.path.read_bytes())
    path = Path(mixture)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: expected a .yaml file")
    if is_packaged(path):
        raise ConfigError(f"{path}: belongs to the installed package; edit a copy: oxe-curate edit {path.stem}")
    return path, None
