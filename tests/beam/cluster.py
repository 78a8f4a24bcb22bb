"""A Dask cluster of separate processes, as on a cluster of machines, and a command that uses it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import ROOT

LIMIT = 60.0  # seconds that any event may take


def until(happened: Callable[[], Any], what: str, running: subprocess.Popen[str] | None = None) -> Any:
    """Wait for an event; fail with the output of the process if it ends before."""
    end = time.monotonic() + LIMIT
    while not (value := happened()):
        assert running is None or running.poll() is None, (what, running.communicate())
        assert time.monotonic() < end, f"no {what} within {LIMIT:.0f} s"
        time.sleep(0.05)
    return value


def environment(**extra: str) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **extra}


@dataclass
class DaskProcesses:
    """`dask scheduler` and `dask worker`, each a process of its own; `with` ends them all."""

    folder: Path
    scheduler: subprocess.Popen[str] = field(init=False)
    env: Mapping[str, str] | None = None
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> "DaskProcesses":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file, env=self.env
        )
        until(lambda: self.file.exists() and self.file.read_text(), "scheduler", self.scheduler)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, self.scheduler]:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def add_worker(
        self, env: Mapping[str, str] | None = None, extra: Sequence[str] = (), within: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        where = ["--scheduler-file", self.file]
        options = ["--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--local-directory", self.folder, *extra]
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(self._start("worker", *where, *options, env=env, log=log, within=within))
        until(lambda: "Starting established connection" in log.read_text(), "worker", self.workers[-1])
        return self.workers[-1]

    def _start(
        self,
        kind: str,
        *options: Any,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        within: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        command = [*within, sys.executable, "-m", f"distributed.cli.dask_{kind}", *map(str, options), "--no-dashboard"]
        with (log or self.folder / f"{kind}.log").open("w") as sink:
            # its own working directory: `python -m` would find the checkout in the current one
            return subprocess.Popen(
                command, stdout=sink, stderr=sink, text=True, env=env or environment(), cwd=self.folder
            )

    def options(self, address: str | None = None, **patience: float) -> list[str]:
        named = [f"--wait_for_{name}={seconds}" for name, seconds in patience.items()]
        return ["--runner=DaskRunner", f"--dask_client_address={address or self.address}", *named]


def command(*arguments: Any, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `oxe-curate ...` from the checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", "oxe_curate", *map(str, arguments)],
        env=env or environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path -> contents of every file of an output folder, without run times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".oxe-tmp-")]
    return {str(path.relative_to(folder)): _without_times(path) for path in files}


def _without_times(path: Path) -> bytes:
    if path.name != "index.json":
        return path.read_bytes()
    data = json.loads(path.read_text())
    for entry in data["datasets"].values():
        del entry["seconds"]
    del data["checksum"]
    return json.dumps(data, sort_keys=True).encode()
