"""filter and tokenize through Beam's Job API: a job server and workers in other processes, and their faults."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import ROOT, bridge
from tests.beam.cluster import command, environment, finish, tree, until

SITE = next(folder for folder in sys.path if folder.endswith("site-packages"))
MIXTURE = "name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]\n"


class JobServer:
    """Beam's own job server in Python, and a pool that starts workers as Beam's containers do."""

    def __init__(self, folder: Path, boot: str = "") -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        port, staging = folder / "port", folder / "staging"
        self.server = self._start("portability.local_job_service_main", "--port_file", port, "--staging_dir", staging)
        self.endpoint = f"127.0.0.1:{until(lambda: port.exists() and port.read_text(), 'port', self.server)}"
        self.boot = folder / "boot.sh"
        here = f"PYTHONPATH={SITE} exec {sys.executable} -S {ROOT}/tests/beam/boot.py"
        self.boot.write_text(f'#!/bin/sh\n{boot or here} "$@" >>{folder}/boot.log 2>&1\n')
        self.boot.chmod(0o755)

    def _start(self, module: str, *options: object) -> "subprocess.Popen[str]":
        with (self.folder / f"{module}.log").open("w") as log:
            self._started.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"apache_beam.runners.{module}", *map(str, options)],
                    stdout=log,
                    stderr=log,
                    env=environment(),
                    text=True,
                )
            )
        return self._started[-1]

    def options(self, kind: str) -> list[str]:
        options = ["--", "--runner=PortableRunner", f"--job_endpoint={self.endpoint}", f"--environment_type={kind}"]
        return [*options, f"--environment_config={self._pool()}"] if kind == "EXTERNAL" else options

    def _pool(self) -> str:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        module = "worker.worker_pool_main"
        pool = self._start(module, f"--service_port={port}", "--container_executable", self.boot)
        until(lambda: "Started worker pool" in (self.folder / f"{module}.log").read_text(), "worker pool", pool)
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        for process in self._started:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JobServer]:
    started = JobServer(tmp_path / "server")
    yield started
    started.close()


def run_both(source: Path, work: Path, options: list[str], out: str) -> str:
    """Run filter and tokenize with Beam's options; return what they print to standard error."""
    (work / "m.yaml").write_text(MIXTURE)
    index, mixture = f"{out}/index", f"{out}/mixture"
    said = []
    for arguments in (
        ["filter", source, "--out", index, "--frames", "exact"],
        ["tokenize", work / "m.yaml", "--index", index, "--out", mixture, "--shard-mb", 1],
    ):
        code, _, err = finish(command(*arguments, *options), 1800)
        assert code == 0, err
        said.append(err)
    return "".join(said)


def run_here(source: Path, work: Path) -> dict[str, bytes]:
    (work / "m.yaml").write_text(MIXTURE)
    run_filter(source, work / "here/index", FilterOptions(workers=1, progress=False, frames="exact"))
    options = TokenizeOptions(workers=1, progress=False, shard_bytes=1 << 20)
    run_tokenize(work / "m.yaml", work / "here/index", work / "here/mixture", options)
    return tree(work / "here")


@pytest.mark.parametrize("kind", ["LOOPBACK", "EXTERNAL"])
def test_a_job_server_writes_the_same_bytes(tmp_path: Path, shared: Path, server: JobServer, kind: str) -> None:
    # EXTERNAL: the package reaches the workers as the wheel that the command stages
    source = shared / "data/rlds/bridge_dataset"
    run_both(source, tmp_path, server.options(kind), str(tmp_path / "there"))
    assert tree(tmp_path / "there") == run_here(source, tmp_path)


def test_a_named_job_server_writes_the_same_bytes(tmp_path: Path, shared: Path) -> None:
    """OXE_CURATE_JOB_ENDPOINT names a job server of Flink, Spark, Prism or another engine.

    OXE_CURATE_JOB_OPTIONS adds options, such as --environment_type. OXE_CURATE_JOB_OUT is a folder that the workers
    see under the same path, if they do not see the test's temporary folder.
    """
    endpoint = os.environ.get("OXE_CURATE_JOB_ENDPOINT")
    if not endpoint:
        pytest.skip("no job server: set OXE_CURATE_JOB_ENDPOINT to HOST:PORT")
    options = shlex.split(os.environ.get("OXE_CURATE_JOB_OPTIONS", ""))
    out = Path(os.environ.get("OXE_CURATE_JOB_OUT", tmp_path)) / tmp_path.name
    source = shared / "data/rlds/bridge_dataset"
    run_both(source, tmp_path, ["--", "--runner=PortableRunner", f"--job_endpoint={endpoint}", *options], str(out))
    assert tree(out) == run_here(source, tmp_path)


def test_a_damaged_shard_is_one_error_with_its_host(tmp_path: Path, server: JobServer) -> None:
    bridge.write(tmp_path / "in")
    next((tmp_path / "in").rglob("*val*00000*")).write_bytes(b"damaged, on a cluster")
    running = command("filter", tmp_path / "in", "--out", tmp_path / "index", *server.options("LOOPBACK"))
    code, _, err = finish(running)
    assert code == 2
    assert "val.tfrecord-00000-of-00002: record 0 at byte 0" in err
    assert f"(on host {os.uname().nodename})" in err
    assert "Traceback" not in err
    assert len(list((tmp_path / "index").rglob("*.parquet"))) == 3
    assert not (tmp_path / "index/.failed").exists()


FAULT = """
    import sys
    from pathlib import Path
    from oxe_curate.beam import runner
    from tests.beam.test_runner import tasks, work

    runner.run_tasks(tasks(Path(sys.argv[1]), n4="bug"), work, title="", progress=False, beam_args=sys.argv[3:])
"""


def test_an_internal_fault_keeps_the_traceback_of_the_worker(tmp_path: Path, server: JobServer) -> None:
    import textwrap

    code = textwrap.dedent(FAULT)
    arguments = [sys.executable, "-c", code, str(tmp_path / "out"), *server.options("LOOPBACK")]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert "RuntimeError: task 4" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr
    assert len(list((tmp_path / "out").glob("*.txt"))) == 6


def test_a_job_that_cannot_start_is_one_error(tmp_path: Path, server: JobServer) -> None:
    bridge.write(tmp_path / "in")
    # Beam's Python server knows no such environment, and fails the job
    options = [*server.options("PROCESS"), '--environment_config={"command": "/bin/false"}']
    code, _, err = finish(command("filter", tmp_path / "in", "--out", tmp_path / "index", *options))
    assert code == 1
    assert err.startswith(f"error: PortableRunner at {server.endpoint}: the job failed: ")
    assert len(err.splitlines()) == 1


def test_workers_that_never_start_end_the_command(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    server = JobServer(tmp_path / "server", boot="exec false")
    options = [*server.options("EXTERNAL"), "--wait_for_workers=4"]
    code, _, err = finish(command("filter", tmp_path / "in", "--out", tmp_path / "index", *options))
    server.close()
    assert code == 1
    assert err.splitlines()[0].startswith(f"waiting for workers: PortableRunner at {server.endpoint} has none")
    assert "has had no worker for 4 s" in err.splitlines()[1]


@pytest.mark.parametrize(("fault", "said"), [("KILL", "the job failed"), ("STOP", "has not answered for 15 s")])
def test_a_lost_job_server_ends_the_command(tmp_path: Path, fault: str, said: str) -> None:
    bridge.write(tmp_path / "in")
    started = tmp_path / "started"
    server = JobServer(tmp_path / "server", boot=f"echo $$ > {started}; exec sleep 1000 #")
    options = [*server.options("EXTERNAL"), "--wait_for_answer=15"]
    running = command("filter", tmp_path / "in", "--out", tmp_path / "index", *options)
    until(lambda: started.exists() and started.read_text(), "worker", running)
    server.server.send_signal(getattr(signal, f"SIG{fault}"))
    code, _, err = finish(running)
    server.close()
    os.kill(int(started.read_text()), signal.SIGKILL)
    assert code == 1
    assert said in err
    assert "Finished files are kept" in err
    assert "Traceback" not in err


def test_control_c_cancels_the_job(tmp_path: Path) -> None:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    bridge.write(tmp_path / "in")
    started = tmp_path / "started"
    server = JobServer(tmp_path / "server", boot=f"echo $$ > {started}; exec sleep 1000 #")
    running = command("filter", tmp_path / "in", "--out", tmp_path / "index", *server.options("EXTERNAL"))
    until(lambda: started.exists() and started.read_text(), "worker", running)
    running.send_signal(signal.SIGINT)
    assert finish(running)[0] == 130
    with grpc.insecure_channel(server.endpoint) as channel:
        jobs = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(beam_job_api_pb2.GetJobsRequest()).job_info
    server.close()
    os.kill(int(started.read_text()), signal.SIGKILL)
    states = [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in jobs]
    assert len(states) == 1
    assert states[0] in ("CANCELLING", "CANCELLED")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--runner=PortableRunner", "--paralelism=3"], 2, "invalid Beam options after --: .*--paralelism=3"),
        (["--runner=FlinkRuner"], 2, "Beam has no runner 'FlinkRuner'. Did you mean 'FlinkRunner'?"),
        (["--runner=no.such.Runner"], 2, "Beam's runner no.such.Runner cannot be imported"),
        (["--runner=PortableRunner"], 1, "the job could not be started: You must specify a --job_endpoint"),
        (["--runner=FlinkRunner", "--wait_for_answer=soon"], 2, "--wait_for_answer: invalid float value: 'soon'"),
        (["--runner=DataflowRunner"], 2, "Dataflow's workers cannot read .*: it is on this machine. Use gs://"),
    ],
)
def test_wrong_options_are_one_error(
    tmp_path: Path, server: JobServer, options: list[str], code: int, said: str
) -> None:
    import re

    bridge.write(tmp_path / "in")
    if "--paralelism=3" in options:  # only the server knows which options it has
        options = [*options, f"--job_endpoint={server.endpoint}", "--environment_type=LOOPBACK"]
    got, _, err = finish(command("filter", tmp_path / "in", "--out", tmp_path / "index", "--", *options))
    assert got == code, err
    assert re.search(said, err)
    assert "Traceback" not in err


def test_the_address_of_no_server_is_one_error(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    options = ["--", "--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--job_server_timeout=2"]
    code, _, err = finish(command("filter", tmp_path / "in", "--out", tmp_path / "index", *options))
    assert code == 1
    assert "PortableRunner at 127.0.0.1:1: the job could not be started" in err
    warning, error = err.splitlines()
    assert warning.startswith("warning: workers in containers see ")
    assert error.startswith("error: ")
