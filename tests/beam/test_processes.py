"""Commands whose main process is killed or asked to end: nothing stays behind, and the next run completes them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oxe_curate.atomic import LOCK, TEMPORARY, is_internal
from tests import ROOT, bridge

# Every task but one stops while its file is half written; the main process stops before or after the tasks.
GATED = """
    import os, time
    from pathlib import Path
    from oxe_curate.atomic import atomic_file, make_folders
    from oxe_curate.beam import runner
    from oxe_curate.cli.main import main
    from oxe_curate.filter import scan
    from oxe_curate.tokenize import build, pipeline

    root, moment = Path(os.environ["ROOT"]), os.environ["MOMENT"]

    def gate():
        (root / f"gate-{os.getpid()}").touch()
        while not (root / "open").exists():
            time.sleep(0.02)

    def gated(*args, real):
        task = args[-1]  # tokenize passes its job before the task
        if moment == "middle" and "train-00000" not in task.output:
            make_folders(task.out.path(task.output).parent)
            with atomic_file(task.out.path(task.output)) as temporary:
                temporary.write_bytes(b"half")
                gate()
        return real(*args)

    def scanned(*args, real=scan.write_scanned_shard):
        return gated(*args, real=real)

    def built(*args, real=build.build_shard):
        return gated(*args, real=real)

    def run_tasks(*args, real=runner.run_tasks, **options):
        if moment == "start":
            gate()
        real(*args, **options)
        if moment == "end":
            gate()

    scan.write_scanned_shard, build.build_shard, runner.run_tasks = scanned, built, run_tasks
    if __name__ == "__main__":
        main()
"""
MOMENTS = [
    ("filter", "start", "KILL"), ("filter", "middle", "KILL"), ("filter", "end", "KILL"),
    ("filter", "start", "TERM"), ("filter", "middle", "TERM"), ("filter", "end", "TERM"),
    ("filter", "middle", "INT"), ("filter", "middle", "HUP"),
    ("tokenize", "middle", "KILL"), ("tokenize", "middle", "TERM"),
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, a mixture, and what uninterrupted runs make of them."""
    folder = tmp_path_factory.mktemp("source")
    bridge.write(folder / "in", shards=2)
    (folder / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]\nvalidation: 0.5")
    for step in ("filter", "tokenize"):
        done = subprocess.run(command(folder, step, folder / step), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def command(source: Path, step: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "oxe_curate", *arguments(source, step, out)]


def arguments(source: Path, step: str, out: Path) -> list[str]:
    words = [source / "in"] if step == "filter" else [source / "m.yaml", "--index", source / "filter"]
    return [step, *map(str, words), "--out", str(out), "--workers", "2"]


def wait_for(event: Callable[[], object], running: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not event():
        assert time.monotonic() < end, "nothing happened"
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)


def members(group: int) -> list[str]:
    """The living processes of a group."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,pid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
    return [" ".join(row) for row in rows if int(row[0]) == group and not row[2].startswith("Z")]


def assert_ends(group: int, seconds: float = 60) -> None:
    """Wait until no process of the group is left."""
    end = time.monotonic() + seconds
    while left := members(group):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def internal(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if is_internal(path.name)]


def tree(folder: Path) -> dict[str, bytes]:
    """The files, but not what says how long they took."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name.endswith(("parquet", "yaml"))}


class Gated:
    """A command that stops at a moment."""

    def __init__(self, started: list["Gated"], root: Path, source: Path, step: str, moment: str) -> None:
        self.root, self.out = root, root / "out"
        script = root / "gated.py"
        script.write_text(textwrap.dedent(GATED))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "ROOT": str(root), "MOMENT": moment}
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments(source, step, self.out)], cwd=root, env=env, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=signals_as_usual,
        )  # fmt: skip
        started.append(self)
        wait_for(lambda: len(self.waiting()) == (2 if (step, moment) == ("filter", "middle") else 1), self.process)
        if moment == "middle":
            wait_for(lambda: list(self.out.rglob("train-00000*")), self.process)

    def waiting(self) -> list[int]:
        """The processes that have stopped."""
        return [int(path.name.partition("-")[2]) for path in self.root.glob("gate-*")]


def signals_as_usual() -> None:
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture
def gated(tmp_path: Path, source: Path) -> Iterator[Callable[[str, str], Gated]]:
    started: list[Gated] = []

    def start(step: str, moment: str) -> Gated:
        return Gated(started, tmp_path, source, step, moment)

    yield start
    for one in started:
        if members(one.process.pid):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


@pytest.mark.parametrize(("step", "moment", "name"), MOMENTS)
def test_no_process_outlives_its_command_and_the_next_run_completes_it(
    gated: Callable[[str, str], Gated], source: Path, step: str, moment: str, name: str
) -> None:
    running = gated(step, moment)
    assert len(members(running.process.pid)) >= (3 if moment == "middle" else 1)  # with fork server and workers
    running.process.send_signal(getattr(signal, f"SIG{name}"))
    assert_ends(running.process.pid)
    _, said = running.process.communicate(timeout=60)
    if name == "KILL":
        assert running.process.returncode == -signal.SIGKILL
        assert LOCK in internal(running.out)
        assert any(found.startswith(TEMPORARY) for found in internal(running.out)) == (moment == "middle")
    else:
        assert running.process.returncode == 128 + getattr(signal, f"SIG{name}")
        assert said == "error: interrupted; finished files are kept: run the same command again\n"
        assert not internal(running.root)
    again = subprocess.run(command(source, step, running.out), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {"start": "0 already", "middle": "1 already", "end": "4 already"}[moment] in again.stdout
    assert not internal(running.root)
    assert tree(running.out) == tree(source / step)


def test_a_stopped_worker_ends_with_its_command(gated: Callable[[str, str], Gated]) -> None:
    running = gated("filter", "middle")
    os.kill(running.waiting()[0], signal.SIGSTOP)
    running.process.terminate()
    assert_ends(running.process.pid)
    assert running.process.wait() == 128 + signal.SIGTERM


def test_a_killed_worker_ends_the_command_with_the_name_of_its_task(gated: Callable[[str, str], Gated]) -> None:
    running = gated("filter", "middle")
    os.kill(running.waiting()[0], signal.SIGKILL)
    _, said = running.process.communicate(timeout=60)
    assert running.process.returncode == 1
    assert "a worker process was killed (out of memory, or by a user) while it worked on " in said
    assert "tfrecord" in said
    assert_ends(running.process.pid)
    assert not internal(running.root)


def test_a_second_command_is_refused_and_changes_nothing(gated: Callable[[str, str], Gated], source: Path) -> None:
    running = gated("filter", "middle")
    before = sorted(running.out.rglob("*"))
    second = subprocess.run(command(source, "filter", running.out), cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2
    assert (
        f"--out {running.out}: another process is writing here (gated.py filter {source}/in, process " in second.stderr
    )
    assert f"process {running.process.pid} on {os.uname().nodename}, user " in second.stderr
    assert f"remove {running.out}/{LOCK}" in second.stderr
    assert sorted(running.out.rglob("*")) == before
    other = subprocess.run(command(source, "tokenize", running.out), cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 2
    (running.root / "open").touch()
    _, said = running.process.communicate(timeout=60)
    assert running.process.returncode == 0, said
    assert tree(running.out) == tree(source / "filter")
    assert json.loads((running.out / "index.json").read_text())["datasets"]
