"""The runner: on one process, on several, killed, failing, and on Dask."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.beam import local, runner
from oxe_curate.beam.overlap import run_at_once
from oxe_curate.errors import ConfigError, DataError, WorkerError
from oxe_curate.storage import Folder
from tests import ROOT, bridge


@dataclass(frozen=True)
class Double:
    """Writes twice a number; what else it does is in `act`."""

    out: Folder
    number: int
    act: str = ""
    size: int = 1

    @property
    def name(self) -> str:
        return f"task {self.number}"

    @property
    def output(self) -> str:
        return f"{self.number:03d}.txt"


def work(task: Double) -> None:
    if task.act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.act == "half":  # a report of 1,000 bytes, of which one is written
        os.write(sender().fileno(), (1000).to_bytes(4, "big") + b"x")
        os.kill(os.getpid(), signal.SIGKILL)
    if task.act == "crash":
        sender().close()
    if task.act == "bus":
        os.kill(os.getpid(), signal.SIGBUS)
    if task.act == "hang":
        until(lambda: (task.out.path() / "go").exists())
    if task.act == "data":
        raise DataError(f"task {task.number} is damaged")
    if task.act == "bug":
        raise ZeroDivisionError("a bug")
    task.out.publish_bytes(task.output, str(2 * task.number).encode())


def sender() -> Any:
    """This worker's end of its pipe."""
    from oxe_curate.beam import task

    reporter: Any = task._reporter
    return reporter.__closure__[0].cell_contents


def until(event: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not event():
        assert time.monotonic() < end
        time.sleep(0.02)


def slow(task: Double) -> None:
    work(task)
    time.sleep(1)


def tasks(out: Path, **acts: str) -> list[Double]:
    return [Double(Folder.of(out), n, acts.get(f"n{n}", "")) for n in range(7)]


def run(todo: list[Double], **options: Any) -> None:
    runner.run_tasks(todo, work, title="double", progress=False, **options)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_done(tmp_path: Path, workers: int) -> None:
    run(tasks(tmp_path), workers=workers)
    assert [(tmp_path / f"{n:03d}.txt").read_text() for n in range(7)] == [str(2 * n) for n in range(7)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_is_raised_and_the_other_tasks_are_done(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=r"(?s)task 2 is damaged.*1 more of 7 tasks failed.*are kept in"):
        run(tasks(tmp_path, n2="data", n5="data"), workers=workers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000.txt", "001.txt", "003.txt", "004.txt", "006.txt"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_keeps_its_traceback(tmp_path: Path, workers: int) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)task 4.*ZeroDivisionError: a bug"):
        run(tasks(tmp_path, n4="bug"), workers=workers)


def test_a_killed_worker_is_detected(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"a worker process was killed .*Finished files are kept"):
        run(tasks(tmp_path, n3="die"), workers=2)
    assert time.monotonic() - start < 60
    run(tasks(tmp_path), workers=2)  # and the next run is none the worse
    assert len(list(tmp_path.iterdir())) == 7


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        ("half", WorkerError, r"was killed \(out of memory, or by a user\) while it worked on task 3, after \d of 7"),
        ("bus", WorkerError, "was killed by SIGBUS: a file that it was reading was truncated"),
        ("crash", WorkerError, "a worker process "),
    ],
)
def test_a_worker_that_ends_while_it_reports_does_not_block_the_run(
    tmp_path: Path, act: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(tasks(tmp_path, n3=act), workers=2)
    assert not multiprocessing.active_children()
    run(tasks(tmp_path), workers=2)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_silent_worker_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "_SILENCE", 0.05)
    tell, told = local._tell_silence, []

    def seen(*args: Any) -> None:
        tell(*args)
        told.append(args)
        if any(worker.task == "task 3" for worker in args[0]):
            (tmp_path / "go").touch()

    monkeypatch.setattr(local, "_tell_silence", seen)
    run(tasks(tmp_path, n3="hang"), workers=2)
    said = capfd.readouterr().err
    assert re.search(r"no task has finished for 0 minutes\. Running:\n(.*\n)*  process \d+: task 3, for 0 min", said)
    assert "To end one: kill PID" in said


@pytest.mark.parametrize("option", ["--direct_num_workers=many", "--runer=DataflowRunner"])
def test_unknown_beam_options_are_an_error(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"invalid Beam options after --: .*{option[2:].split('=')[0]}"):
        run(tasks(tmp_path), workers=1, beam_args=[option])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_control_c_ends_the_run_and_keeps_what_is_finished(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.beam.test_runner import *\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it\n"
        f"    runner.run_tasks(tasks(Path(sys.argv[1])), slow, title='', workers={workers})\n"
    )
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, script, out], env=env, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("*.txt")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "RuntimeError" not in said
    assert 1 <= len(list(out.glob("*.txt"))) < 7


def test_one_process_needs_no_beam_unless_an_option_names_it(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.beam.test_runner import run, tasks
        for options in ([], ["--runner=DirectRunner"]):
            run(tasks(Path(sys.argv[1])), workers=1, beam_args=options)
            print("apache_beam" in sys.modules)
    """)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_no_tasks_return_immediately(tmp_path: Path) -> None:
    run([])
    assert not list(tmp_path.iterdir())


DASK = """
    import sys
    from pathlib import Path
    from dask.distributed import Client, LocalCluster
    from oxe_curate import errors
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    if __name__ == "__main__":
        root = Path(sys.argv[1])
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            args = ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner", "--dask_npartitions=4",
                    f"--dask_client_address={cluster.scheduler_address}")
            run_filter(root / "in", root / "dask/index", FilterOptions(beam_args=args, progress=False))
            run_tokenize(root / "m.yaml", root / "dask/index", root / "dask/out",
                         TokenizeOptions(beam_args=args, progress=False, shard_bytes=8000))
            (next((root / "in").rglob("*val*00000*"))).write_bytes(b"damaged, on a cluster")
            try:
                run_filter(root / "in", root / "dask/index", FilterOptions(beam_args=args, progress=False))
            except errors.CorruptError as error:
                print("refused:", error)
"""


def test_dask_makes_the_same_files(tmp_path: Path) -> None:
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    pytest.importorskip("dask.distributed")
    bridge.write(tmp_path / "in")
    (tmp_path / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]")
    run_filter(tmp_path / "in", tmp_path / "here/index", FilterOptions(workers=1, progress=False))
    local = TokenizeOptions(workers=1, progress=False, shard_bytes=8000)
    run_tokenize(tmp_path / "m.yaml", tmp_path / "here/index", tmp_path / "here/out", local)
    script = tmp_path / "cluster.py"
    script.write_text(textwrap.dedent(DASK))
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stdout
    assert "val.tfrecord-00000-of-00002: record 0 at byte 0" in done.stdout

    def tree(kind: str) -> dict[str, bytes]:
        files = list((tmp_path / kind).rglob("*.parquet"))
        return {str(p.relative_to(tmp_path / kind)): p.read_bytes() for p in files}

    assert tree("dask") == tree("here")


SLOW = """
    import sys, time
    from oxe_curate.filter import scan
    from oxe_curate.tokenize import build, pipeline
    from oxe_curate.filter.pipeline import FilterOptions, run_filter

    for module, name in ((scan, "write_scanned_shard"), (build, "build_shard")):
        def slow(*args, real=getattr(module, name)):  # tokenize passes its job before the task
            result = real(*args)
            print("done", args[-1].output, flush=True)
            time.sleep(0.3)
            return result
        setattr(module, name, slow)
    step, root = sys.argv[1:]
    if step == "filter":
        run_filter(f"{root}/in", f"{root}/out/index", FilterOptions(workers=1, progress=False))
    else:
        pipeline.run_tokenize(f"{root}/m.yaml", f"{root}/index", f"{root}/out/mixture",
                              pipeline.TokenizeOptions(workers=1, progress=False, shard_bytes=8000))
"""


@pytest.mark.parametrize("step", ["filter", "tokenize"])
def test_kill_minus_nine_then_the_same_command_gives_the_same_bytes(tmp_path: Path, step: str) -> None:
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    bridge.write(tmp_path / "in", shards=2)
    (tmp_path / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]")
    run_filter(tmp_path / "in", tmp_path / "index", FilterOptions(workers=1, progress=False))
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    killed = subprocess.Popen([sys.executable, script, step, tmp_path], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    first = killed.stdout.readline()
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert first.startswith("done ")

    def again(out: Path) -> int:
        if step == "filter":
            return run_filter(tmp_path / "in", out / "index", FilterOptions(workers=1, progress=False)).shards_kept
        options = TokenizeOptions(workers=1, progress=False, shard_bytes=8000)
        return run_tokenize(tmp_path / "m.yaml", tmp_path / "index", out / "mixture", options).shards_kept

    def tree(out: Path) -> dict[str, bytes]:
        files = [p for p in out.rglob("*") if p.is_file() and p.name != "index.json"]
        return {str(p.relative_to(out)): p.read_bytes() for p in files}

    assert again(tmp_path / "out") >= 1
    assert again(tmp_path / "fresh") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


_both = threading.Barrier(2)


def meet(task: Double) -> None:
    """Return when a second task runs at the same time."""
    if task.number < 6:
        _both.wait(60)
    work(task)


def test_a_process_runs_several_tasks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "usable_cores", lambda: 2)
    runner.run_tasks(tasks(tmp_path), meet, title="", progress=False, threads=2, bytes_per_worker=1)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_number_of_workers_is_a_number_of_tasks_at_once(tmp_path: Path) -> None:
    names: set[str] = set()
    runner.run_tasks(
        tasks(tmp_path), lambda task: names.add(threading.current_thread().name) or work(task), title="",
        progress=False, threads=2, workers=1,
    )  # fmt: skip
    assert names == {"MainThread"}


def test_ctrl_c_lets_threads_remove_their_temporary_files(tmp_path: Path) -> None:
    started, ended, deadline = threading.Barrier(2), [], time.monotonic() + 60

    def endless(task: Double) -> bool:
        try:
            if started.wait(60) == 0:
                os.kill(os.getpid(), signal.SIGINT)
            while time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            ended.append(task)
        return True

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_at_once(tasks(tmp_path)[:2], endless, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 2
