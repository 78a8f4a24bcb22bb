"""filter and tokenize on a Dask cluster of separate processes, and what a user sees when a part of it fails."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from oxe_curate.beam.job import Job
from oxe_curate.errors import StorageError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.storage import Folder
from tests import ROOT, bridge
from tests.beam.cluster import DaskProcesses, command, environment, finish, tree, until
from tests.beam.test_runner import Double, work

pytest.importorskip("dask.distributed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    bridge.write(tmp_path / "in", shards=3)
    run_filter(tmp_path / "in", tmp_path / "here", FilterOptions(workers=1, progress=False))
    return tmp_path / "in"


class Gated(DaskProcesses):
    """A cluster of two workers, each of which stops in the middle of its first file."""

    def __enter__(self) -> "Gated":
        super().__enter__()
        self.gate = self.folder / "gate"
        for _ in range(2):
            self.add_gated()
        return self

    def add_gated(self) -> None:
        env = environment(OXE_TEST_GATE=str(self.gate), PYTHONPATH=str(ROOT))
        self.add_worker(env, extra=["--preload", "tests.beam.gate"])

    def wait_at_gate(self, running: subprocess.Popen[str], number: int = 2) -> list[str]:
        """Wait until so many files are begun; return their names."""

        def waiting() -> list[str]:
            found = [path.read_text() for path in self.folder.glob("gate.*")]
            return found if len(found) >= number and all(found) else []

        names: list[str] = until(waiting, "worker at the gate", running)
        return names

    def open_gate(self, *names: str) -> None:
        """Let these files pass; all, if none is named."""
        for suffix in [f"-{name.replace('/', '-')}" for name in names] or [""]:
            self.gate.with_name(self.gate.name + suffix).touch()


def test_filter_and_tokenize_write_the_same_bytes(tmp_path: Path, source: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        "name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]\n"
        "accept: [{finding: gripper_pulses, reason: the actions are random numbers}]"
    )
    with DaskProcesses(tmp_path / "dask") as cluster:
        cluster.add_worker()
        cluster.add_worker()
        beam = ["--", *cluster.options()]
        assert finish(command("filter", source, "--out", tmp_path / "index", *beam))[::2] == (0, "")
        tokenize = ["tokenize", tmp_path / "m.yaml", "--index", tmp_path / "index", "--shard-mb", 1, "--out"]
        assert finish(command(*tokenize, tmp_path / "there", *beam))[::2] == (0, "")
        ran = [log.read_text() for log in (tmp_path / "dask").glob("worker-*.log")]
    assert tree(tmp_path / "index") == tree(tmp_path / "here")
    assert finish(command(*tokenize, tmp_path / "local"))[0] == 0
    assert tree(tmp_path / "there") == tree(tmp_path / "local")
    assert len(ran) == 2


def test_a_shard_of_a_killed_worker_is_scanned_by_another(tmp_path: Path, source: Path) -> None:
    with Gated(tmp_path / "dask") as cluster:
        running = command("filter", source, "--out", tmp_path / "index", "--", *cluster.options())
        cluster.wait_at_gate(running)
        cluster.workers[0].kill()
        cluster.open_gate()
        code, out, err = finish(running)
    assert (code, err) == (0, ""), err
    assert "5 shards scanned" in out
    assert tree(tmp_path / "index") == tree(tmp_path / "here")


def test_without_workers_the_command_waits_and_goes_on(tmp_path: Path, source: Path) -> None:
    with Gated(tmp_path / "dask") as cluster:
        log = (tmp_path / "log").open("w+")
        arguments = ["filter", source, "--out", tmp_path / "index", "--", *cluster.options(workers=300)]
        running = subprocess.Popen(
            [sys.executable, "-m", "oxe_curate", *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=log, env=environment(), text=True,
        )  # fmt: skip
        cluster.wait_at_gate(running)
        for worker in cluster.workers:
            worker.kill()
        notice = until(lambda: (tmp_path / "log").read_text(), "notice")
        cluster.open_gate()
        cluster.add_worker()
        assert running.wait(120) == 0
    log.close()
    assert notice.startswith(f"waiting for workers: DaskRunner at {cluster.address} has none; ends after 300 s")
    assert (tmp_path / "log").read_text() == notice
    assert tree(tmp_path / "index") == tree(tmp_path / "here")


def test_without_workers_the_command_ends_after_the_stated_time(tmp_path: Path, source: Path) -> None:
    with DaskProcesses(tmp_path / "dask") as cluster:
        running = command("filter", source, "--out", tmp_path / "index", "--", *cluster.options(workers=2))
        code, _, err = finish(running)
    assert code == 1
    notice, error = err.splitlines()
    assert notice.startswith("waiting for workers: ")
    assert error.startswith("error: DaskRunner at tcp://127.0.0.1:")
    assert "has had no worker for 2 s. Start workers. Finished files are kept: run the same command again" in error


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_lost_scheduler_ends_the_command_and_a_rerun_continues(tmp_path: Path, source: Path, fault: str) -> None:
    with Gated(tmp_path / "dask") as cluster:
        where = cluster.address
        options = [
            "filter",
            source,
            "--out",
            tmp_path / "index",
            "--",
            *cluster.options(**({"answer": 15} if fault == "stopped" else {})),
        ]
        running = command(*options)
        first = cluster.wait_at_gate(running)
        cluster.open_gate(*first)  # the other files wait
        until(lambda: all((tmp_path / "index" / name).exists() for name in first), "finished files")
        cluster.scheduler.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        code, _, err = finish(running)
        kept = {name for name in first if (tmp_path / "index" / name).exists()}
    assert code == 1
    said = {"killed": "lost the connection to the scheduler", "stopped": "has not answered for 15 s"}[fault]
    assert err.startswith(f"error: DaskRunner at {where}: the job failed: ")
    assert said in err.splitlines()[0]
    assert len(err.splitlines()) == 1
    assert kept == set(first)
    again = run_filter(source, tmp_path / "index", FilterOptions(workers=1, progress=False))
    assert again.shards_kept >= len(first)
    assert tree(tmp_path / "index") == tree(tmp_path / "here")


class Proxy:
    """A TCP proxy in front of the scheduler; `cut` drops every connection and refuses new ones."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").partition(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._lock, self._is_cut = threading.Lock(), False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                with self._lock:
                    if self._is_cut:
                        near.close()
                        return
                    far = socket.create_connection(self._target)
                    self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            self._server.close()
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()


def test_a_cut_connection_ends_the_command(tmp_path: Path, source: Path) -> None:
    with Gated(tmp_path / "dask") as cluster:
        proxy = Proxy(cluster.address)
        options = cluster.options(proxy.address)
        running = command("filter", source, "--out", tmp_path / "index", "--", *options)
        cluster.wait_at_gate(running)
        proxy.cut()
        code, _, err = finish(running)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "lost the connection to the scheduler (it ended, or the network is down)" in err


def test_a_stopped_worker_is_replaced(tmp_path: Path, source: Path) -> None:
    # Dask's limit for a silent worker is 5 minutes
    with Gated(tmp_path / "dask", env=environment(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="2s")) as cluster:
        running = command("filter", source, "--out", tmp_path / "index", "--", *cluster.options())
        cluster.wait_at_gate(running)
        cluster.workers[0].send_signal(signal.SIGSTOP)
        cluster.open_gate()
        code, _, err = finish(running)
    assert (code, err) == (0, ""), err
    assert tree(tmp_path / "index") == tree(tmp_path / "here")


def test_control_c_cancels_the_tasks_that_wait(tmp_path: Path, source: Path) -> None:
    from dask.distributed import Client

    with Gated(tmp_path / "dask") as cluster:
        running = command("filter", source, "--out", tmp_path / "index", "--", *cluster.options())
        cluster.wait_at_gate(running)
        running.send_signal(signal.SIGINT)
        assert finish(running)[0] == 130
        cluster.open_gate()
        with Client(cluster.address, set_as_default=False) as client:
            until(lambda: not any(client.processing().values()), "idle cluster")
    assert len(list((tmp_path / "index").rglob("[tv]*.parquet"))) <= 2
    assert not (tmp_path / "index/.job").exists()


BLOCKED = """
    import sys

    class Without:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "oxe_curate":
                raise ModuleNotFoundError("No module named 'oxe_curate'", name="oxe_curate")

    sys.meta_path.insert(0, Without())
"""


def _python_path(folder: Path, kind: str) -> dict[str, str]:
    """The environment of a host that lacks the package, or has another version or an edited copy of it."""
    folder.mkdir()
    if kind == "without":
        (folder / "sitecustomize.py").write_text(textwrap.dedent(BLOCKED))
        return environment(PYTHONPATH=str(folder))
    shutil.copytree(ROOT / "oxe_curate", folder / "oxe_curate", ignore=shutil.ignore_patterns("__pycache__"))
    edited = folder / "oxe_curate" / ("__init__.py" if kind == "older" else "lru.py")
    edited.write_text(edited.read_text().replace('"0.1.0"', '"0.0.9"') + "\n# another copy\n")
    return environment(PYTHONPATH=str(folder))


@pytest.mark.parametrize(
    ("part", "kind", "said"),
    [
        ("worker", "without", r"tcp://127\.0\.0\.1:\d+: Python package oxe_curate not found. Install oxe-curate on"),
        ("worker", "older", r"host \S+: oxe-curate is 0\.0\.9, but 0\.1\.0 where the command runs"),
        ("worker", "edited", r"host \S+: the code of oxe-curate is \w{8}, but \w{8} where the command runs"),
        ("scheduler", "without", r"scheduler: Python package oxe_curate not found"),
    ],
)
def test_other_software_is_refused_at_the_start(tmp_path: Path, source: Path, part: str, kind: str, said: str) -> None:
    env = _python_path(tmp_path / "other", kind)
    with DaskProcesses(tmp_path / "dask", env=env if part == "scheduler" else None) as cluster:
        cluster.add_worker(env if part == "worker" else None)
        code, _, err = finish(command("filter", source, "--out", tmp_path / "index", "--", *cluster.options()))
    assert code == 1
    assert len(err.splitlines()) == 1
    assert re.search(said, err)
    assert not list((tmp_path / "index").rglob("*.parquet"))


def test_a_worker_with_other_software_that_joins_later_is_refused(tmp_path: Path, source: Path) -> None:
    env = _python_path(tmp_path / "other", "older")
    with DaskProcesses(tmp_path / "dask") as cluster:
        running = command("filter", source, "--out", tmp_path / "index", "--", *cluster.options(workers=300))
        assert running.stderr is not None
        assert running.stderr.readline().startswith("waiting for workers")
        cluster.add_worker(env)
        code, _, err = finish(running)
    assert code == 1
    assert "oxe-curate is 0.0.9, but 0.1.0 where the command runs" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("in", "in/bridge_dataset/1.0.0/"),
        ("index", "cannot read the job from the output folder: "),
    ],
)
def test_a_worker_that_sees_another_folder_is_named(tmp_path: Path, source: Path, hidden: str, said: str) -> None:
    (tmp_path / "index").mkdir()
    probe = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("a mount namespace needs root")
    with DaskProcesses(tmp_path / "dask") as cluster:
        cluster.add_worker(
            within=["unshare", "-m", "sh", "-c", f"mount -t tmpfs none '{tmp_path / hidden}' && exec \"$@\"", "sh"]
        )
        code, _, err = finish(command("filter", source, "--out", tmp_path / "index", "--", *cluster.options()))
    assert code == 2
    assert said in err.splitlines()[0]
    assert f"host {socket.gethostname()}" in err


def test_a_folder_that_a_worker_lacks_is_named(tmp_path: Path) -> None:
    task = Double(Folder.of(tmp_path / "out"), 1)
    job = Job.publish([task], work)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=f"host {socket.gethostname()}: folder {tmp_path}/out not found. Mount it"):
        job.load(0)


def test_the_scheduler_must_be_named(tmp_path: Path, source: Path) -> None:
    code, _, err = finish(command("filter", source, "--out", tmp_path / "index", "--", "--runner=DaskRunner"))
    assert code == 2
    assert "needs the address of a scheduler: --dask_client_address=tcp://HOST:8786" in err


def test_an_address_without_a_scheduler_is_one_error(tmp_path: Path, source: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--runner=DaskRunner", f"--dask_client_address=tcp://127.0.0.1:{port}", "--wait_for_answer=2"]
    code, _, err = finish(command("filter", source, "--out", tmp_path / "index", "--", *options))
    assert code == 1
    assert err.startswith(f"error: DaskRunner at tcp://127.0.0.1:{port}: the job could not be started: ")
    assert len(err.splitlines()) == 1
