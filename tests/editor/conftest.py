"""A small index, and the editor served over it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from oxe_curate.editor import server
from oxe_curate.editor.catalogue import Catalogue
from oxe_curate.editor.files import MixtureFile
from oxe_curate.editor.security import Access
from oxe_curate.index.store import Index

MIXTURE = """# A mixture 🤖 with comments
name: my_mixture
seed: 3 # of everything
datasets:
  # the first
  - name: bridge_dataset   # WidowX
    weight: 1.0   # as published
  - name: fractal20220817_data
    weight: 0.54087122203
  - name: jaco_play
    weight: 2.0
validation: 0.1
"""


@pytest.fixture(scope="session")
def index(tmp_path_factory) -> Index:
    """Bridge, RT-1 and Jaco episodes of the demo, filtered; nyu_door keeps none."""
    from oxe_curate.demo import write_demo
    from oxe_curate.filter.pipeline import FilterOptions, run_filter

    root = tmp_path_factory.mktemp("demo")
    write_demo(root / "rlds", progress=False)
    run_filter(root / "rlds", root / "index", FilterOptions(workers=1, progress=False))
    return Index.open(root / "index")


@pytest.fixture(scope="session")
def catalogue(index) -> Catalogue:
    return Catalogue(index)


@dataclass
class Served:
    """A running editor."""

    path: Path
    port: int
    access: Access
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.access.token}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


def start(path: Path, catalogue: Catalogue, port: int = 0, allowed: tuple[str, ...] = ()) -> Served:
    """Serve a file from a thread; returns when it accepts connections."""
    sock = server.listen(port)
    access = Access.local(sock.getsockname()[1], allowed)
    config = uvicorn.Config(
        server.editor_application(MixtureFile(path), catalogue, access), log_level="warning", ws="none", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not running.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.started
    return Served(path, access.port, access, running, thread)


@pytest.fixture
def served(tmp_path, catalogue) -> Iterator[Served]:
    """The editor over a fresh copy of `MIXTURE`."""
    path = tmp_path / "my.yaml"
    path.write_text(MIXTURE, encoding="utf-8")
    running = start(path, catalogue)
    yield running
    running.stop()
