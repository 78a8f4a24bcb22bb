"""The files of the editor's page."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def static_files() -> dict[str, tuple[bytes, str]]:
    """URL path -> contents and type of each file of the page."""
    found: dict[str, tuple[bytes, str]] = {}

    def walk(folder: Any, prefix: str) -> None:
        for item in folder.iterdir():
            if item.is_dir():
                walk(item, f"{prefix}{item.name}/")
            elif (kind := _TYPES.get(Path(item.name).suffix)) is not None:
                found[prefix + item.name] = (item.read_bytes(), f"{kind}; charset=utf-8")

    walk(files("oxe_curate.editor") / "static", "/")
    found["/"] = found.pop("/index.html")
    return found


def static_route(path: str, data: bytes, kind: str) -> Route:
    """A route that answers with a file of the page."""

    async def answer(request: Request) -> Response:
        return Response(data, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

    return Route(path, answer, methods=["GET"])
