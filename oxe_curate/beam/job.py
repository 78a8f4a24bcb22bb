"""A job for other machines: its tasks in one file of the output folder, so that the Beam graph stays small.

The graph carries task numbers and a `Job`, whatever the number and size of the tasks. A worker reads the file once,
after it has compared its software and its view of the folders with those of the command.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import platform
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import oxe_curate
from oxe_curate.beam.task import Task, Work
from oxe_curate.errors import CurateError, StorageError, WorkerError
from oxe_curate.storage import Folder

JOB = ".job"
"""Folder below the output folder, with the descriptions of the tasks of a job on other machines."""
STARTED = f"{JOB}/worker-"
"""Prefix of the empty files that show which workers have started."""

_WRITERS = ("pyarrow", "numpy", "pillow", "simplejpeg")  # their versions may change the bytes of an output file
_REPORT = re.compile(r"\[\[oxe-curate (\w+)\]\] (.*?) \[\[end\]\]", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """What the graph carries to the workers.

    Attributes:
        out: the output folder.
        file: the file with the tasks, relative to `out`; named after its SHA-256.
        tasks: number of tasks.
        software: package or "Python" -> version, of the command.
        folders: the local folders that the tasks read and write, as far as the command's host has them: a mixture by
            reference can name a source that is elsewhere.
    """

    out: Folder
    file: str
    tasks: int
    software: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]

    @classmethod
    def publish(cls, tasks: Sequence[Task], work: Work) -> Job:
        """Write the tasks, and the function that runs one of them, to their output folder."""
        data, folders = pack(tasks, work)
        file = f"{JOB}/{hashlib.sha256(data).hexdigest()}"
        out = tasks[0].out
        out.publish_bytes(file, data)
        local = tuple(sorted(folder.uri for folder in folders if folder.is_local and folder.exists()))
        return cls(out, file, len(tasks), tuple(software().items()), local)

    def check_host(self) -> None:
        """Raise WorkerError or StorageError if this host cannot run the tasks: other software, missing folders."""
        problem = compare_hosts(dict(self.software), host_report(self.folders))
        if problem:
            raise problem

    def load(self, number: int) -> tuple[Any, Work]:
        """Read a task and the function that runs it, on a worker.

        Raises:
            WorkerError, StorageError: this host cannot run the tasks; the message names it.
        """
        self.check_host()
        _announce(self.out, os.getpid())
        shared, work, tasks = _load(self.out, self.file)
        task = unpack(shared, tasks[number])
        return replace(task, out=JobFolder(task.out.uri, self.file)), work


@functools.lru_cache(maxsize=2)
def _announce(out: Folder, pid: int) -> None:
    """Leave a file that shows the command that a worker has started."""
    try:
        out.publish_bytes(f"{STARTED}{socket.gethostname()}-{pid}", b"")
    except CurateError as error:
        raise StorageError(f"host {socket.gethostname()}: cannot write to the output folder: {error}") from None


@dataclass(frozen=True)
class JobFolder(Folder):
    """The output folder of a running job: nothing can be written to it once the command has ended the job.

    A worker that was cut off may come back when its task has been repeated elsewhere, and the file rewritten since.
    """

    job: str = ""

    def publish(self, relative: str, write: Callable[[Any], None], sync: bool = True) -> None:
        """Write a file, but not after the end of the job."""

        def write_if_running(sink: Any) -> None:
            write(sink)
            if not self.exists(self.job):
                raise StorageError(f"{self}/{relative}: not written, because the command has ended this job")

        super().publish(relative, write_if_running, sync)


@functools.lru_cache(maxsize=2)
def _load(out: Folder, file: str) -> tuple[list[Any], Work, list[bytes]]:
    try:
        data = out.read_bytes(file)
    except CurateError as error:
        raise StorageError(
            f"host {socket.gethostname()}: cannot read the job from the output folder: {error}"
        ) from None
    if hashlib.sha256(data).hexdigest() != file.rpartition("/")[2]:
        raise StorageError(
            f"host {socket.gethostname()}: {out}/{file} differs from what the command wrote; run the command again"
        )
    packed_shared, work, tasks = pickle.loads(data)
    shared = pickle.loads(packed_shared)
    return shared, unpack(shared, work), tasks


class _Packer(pickle.Pickler):
    """Pickles with numbers in place of the objects that tasks share, and notes the folders."""

    def __init__(self, sink: io.BytesIO, shared: dict[int, int], folders: set[Folder]) -> None:
        super().__init__(sink, protocol=5)
        self._shared, self._folders = shared, folders

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, Folder):
            self._folders.add(obj)
        return self._shared.get(id(obj))


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, shared: list[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._shared = shared

    def persistent_load(self, pid: int) -> Any:
        return self._shared[pid]


def pack(tasks: Sequence[Task], work: Work) -> tuple[bytes, set[Folder]]:
    """Pickle tasks and their function, an object that several have as an attribute only once; and note the folders."""
    values = [getattr(task, field.name) for task in tasks for field in fields(task)]  # type: ignore[arg-type]
    values = [value for value in values if not isinstance(value, int | float | None)]
    counts = Counter(map(id, values))
    shared = list({id(value): value for value in values if counts[id(value)] > 1}.values())
    folders: set[Folder] = set()

    def dump(obj: Any, numbers: dict[int, int]) -> bytes:
        sink = io.BytesIO()
        _Packer(sink, numbers, folders).dump(obj)
        return sink.getvalue()

    numbers = {id(value): number for number, value in enumerate(shared)}
    packed = dump(shared, {}), dump(work, numbers), [dump(task, numbers) for task in tasks]
    return pickle.dumps(packed, protocol=5), folders


def unpack(shared: list[Any], data: bytes) -> Any:
    """The inverse of `pack`, for one task or the function."""
    return _Unpacker(data, shared).load()


@functools.cache
def software() -> dict[str, str]:
    """Versions that a worker must share with the command: its outputs depend on them."""
    versions = {
        "oxe-curate": oxe_curate.__version__,
        "the code of oxe-curate": _code(),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }
    for name in (*_WRITERS, "apache-beam"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def _code() -> str:
    """A short digest of the modules that tasks use: a checkout may differ without another version."""
    root = Path(oxe_curate.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.partition("/")[0] not in ("cli", "editor", "demo", "train", "report", "inspection", "ui"):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


@dataclass(frozen=True)
class HostReport:
    """What a worker says about itself: its host, its software, the folders that it does not see."""

    host: str
    software: dict[str, str]
    missing: tuple[str, ...]


def host_report(folders: Sequence[str]) -> HostReport:
    """Describe this process to the command."""
    return HostReport(socket.gethostname(), software(), tuple(name for name in folders if not Path(name).is_dir()))


def compare_hosts(here: dict[str, str], worker: HostReport) -> CurateError | None:
    """The error that keeps a worker from running the command's tasks, None if it may."""
    for name, version in here.items():
        if worker.software.get(name) != version:
            return WorkerError(
                f"host {worker.host}: {name} is {worker.software.get(name)}, but {version} where the command runs. "
                "Install the same versions everywhere: the files would differ."
            )
    if worker.missing:
        return StorageError(
            f"host {worker.host}: folder {worker.missing[0]} not found. "
            "Mount it under the same path on every worker, or use gs:// or s3://."
        )
    return None


def tagged(error: CurateError) -> RuntimeError:
    """An exception whose text a runner carries back as it is, so that `untagged` finds the error in it."""
    return RuntimeError(f"[[oxe-curate {type(error).__name__}]] {error} [[end]]")


def untagged(text: str) -> Iterator[tuple[str, str]]:
    """Yield (class name, message) of the errors that `tagged` put into a runner's report."""
    for found in _REPORT.finditer(text.replace("\\n", "\n")):
        yield found[1], found[2]
