"""What reaches other machines: the Beam graph, its pickled parts, the tasks, and the wheel of the package."""

import importlib.metadata
import pickle
import shutil
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import dataclass, replace
from email.parser import Parser
from pathlib import Path

import pytest

from oxe_curate import __version__
from oxe_curate.beam import options, staging
from oxe_curate.beam.job import HostReport, Job, compare_hosts, pack, software, tagged, unpack, untagged
from oxe_curate.errors import DataError, StorageError, WorkerError
from oxe_curate.filter import scan
from oxe_curate.filter.pipeline import FilterOptions
from oxe_curate.filter.plan import plan_tasks
from oxe_curate.rlds.dataset import find
from oxe_curate.storage import Folder
from tests import bridge
from tests.beam.test_portable import SITE

RUNNERS = {
    "DataflowRunner": ["--project=p", "--region=r", "--temp_location=gs://b/t", "--sdk_container_image=i"],
    "FlinkRunner": ["--flink_master=host:8081", "--parallelism=4"],
    "PortableRunner": ["--job_endpoint=host:8099", "--environment_type=EXTERNAL", "--environment_config=host:50000"],
    "PrismRunner": ["--environment_type=LOOPBACK"],
    "SparkRunner": ["--spark_master_url=spark://host:7077"],
    "apache_beam.runners.dask.dask_runner.DaskRunner": ["--dask_client_address=tcp://host:8786"],
}
SECRET = "not-a-path-of-the-job"


def filter_tasks(tmp_path: Path, number: int = 5) -> list[scan.FilterTask]:
    """Tasks of a small data set; more of them by repeating their shards under other numbers."""
    bridge.write(tmp_path / "in", shards=3)
    tasks = plan_tasks(find(Folder.of(tmp_path / "in")), Folder.of(tmp_path / "out"), FilterOptions())
    repeated = [(n, tasks[n % len(tasks)]) for n in range(number)]
    return [
        replace(task, shard=replace(task.shard, number=n, count=number, path=f"{task.shard.path}{n}"))
        for n, task in repeated
    ]


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_graph_of_every_runner(tmp_path: Path, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.portability.api import beam_runner_api_pb2

    from oxe_curate.beam.remote import remote_pipeline

    monkeypatch.setenv("SECRET", SECRET)
    arguments = [f"--runner={runner}", *RUNNERS[runner]]
    options.check_beam_options(arguments)
    job = Job.publish(filter_tasks(tmp_path), scan.write_scanned_shard)
    pipeline = remote_pipeline(job, [a for a in arguments if not a.startswith("--runner")])  # the graph; nothing runs
    proto = pipeline.to_runner_api()
    graph = proto.components.transforms
    (root,) = proto.root_transform_ids
    named = {graph[name].unique_name for name in graph[root].subtransforms}
    assert named == {"Tasks", "Spread", "Work"}
    do = [t for t in graph.values() if t.unique_name == "Work"]
    assert len(do) == 1
    payload = beam_runner_api_pb2.ParDoPayload.FromString(do[0].spec.payload)
    assert not payload.side_inputs
    assert not payload.state_specs
    assert not payload.timer_family_specs
    assert len(proto.SerializeToString()) < 20_000
    _check_in_a_fresh_process(payload.do_fn.payload, tmp_path)


FRESH = """
    import re, sys
    from pathlib import Path
    from apache_beam import DoFn
    from apache_beam.internal import pickler
    import oxe_curate

    assert Path(oxe_curate.__file__).is_relative_to(sys.argv[2]), oxe_curate.__file__
    made = pickler.loads(Path(sys.argv[1]).read_bytes())
    fn = made[0] if isinstance(made, tuple) else made
    print(type(fn).__module__, type(fn).__name__)
    of_beam = {"_type_hints", "input_batch_converter", "output_batch_converter"}
    print(sorted(vars(fn).keys() - vars(DoFn()).keys() - of_beam))
    job = fn._job
    print(sorted(map(str, vars(job).values())))
    fn.setup()
    fn.process(0)
    print(sorted(path.name for path in Path(str(job.out)).rglob("*.parquet")))
"""


def _check_in_a_fresh_process(do_fn: bytes, tmp_path: Path) -> None:
    """Unpickle and run a DoFn where only the staged wheel and the package's requirements are installed."""
    wheel = staging.write_wheel(tmp_path / "wheel")
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    (tmp_path / "fn").write_bytes(do_fn)
    code = textwrap.dedent(FRESH)
    # the first task's shard does not exist: its failure is written down, as by any worker
    arguments = [sys.executable, "-S", "-c", code, str(tmp_path / "fn"), str(target)]
    env = {"PYTHONPATH": f"{target}:{SITE}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(arguments, env=env, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, names, values, _ = done.stdout.splitlines()
    assert where == "oxe_curate.beam.remote DoNumbered"
    assert names == "['_job']"
    assert str(tmp_path / "in") in values
    assert SECRET not in values
    assert len(list((tmp_path / "out/.failed").iterdir())) == 1
    paths = {word.strip("(',)[]\"") for word in values.split() if "/" in word}
    known = {str(tmp_path / "in"), str(tmp_path / "out")}
    assert {path for path in paths if path.startswith("/")} == known


def test_the_graph_is_small_for_many_tasks(tmp_path: Path) -> None:
    from oxe_curate.beam.remote import remote_pipeline

    tasks = filter_tasks(tmp_path, 10_000)
    job = Job.publish(tasks, scan.write_scanned_shard)
    graph = len(remote_pipeline(job, []).to_runner_api().SerializeToString())
    file = (tmp_path / "out" / job.file).stat().st_size
    assert graph < 200_000  # Dataflow takes 10 MB, gRPC 4 MB by default
    assert file < 6_000_000
    assert file * 5 < len(tasks) * len(pickle.dumps(tasks[0]))


def test_tasks_survive_the_journey(tmp_path: Path) -> None:
    tasks = filter_tasks(tmp_path)
    data, folders = pack(tasks, scan.write_scanned_shard)
    shared, work, packed = pickle.loads(data)
    objects = pickle.loads(shared)
    assert unpack(objects, work) is scan.write_scanned_shard
    back = [unpack(objects, task) for task in packed]
    assert back == tasks
    assert [task.fingerprint for task in back] == [task.fingerprint for task in tasks]
    assert folders == {Folder.of(tmp_path / "in"), Folder.of(tmp_path / "out")}
    assert back[0].card is back[1].card


def test_a_folder_that_the_commands_host_lacks_is_not_asked_of_workers(tmp_path: Path) -> None:
    """Such as the source that a mixture by reference only names."""
    tasks = filter_tasks(tmp_path)
    assert Job.publish(tasks, scan.write_scanned_shard).folders == (str(tmp_path / "in"), str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "in")
    job = Job.publish(tasks, scan.write_scanned_shard)
    assert job.folders == (str(tmp_path / "out"),)
    job.check_host()


def test_a_changed_job_file_is_refused(tmp_path: Path) -> None:
    job = Job.publish(filter_tasks(tmp_path), scan.write_scanned_shard)
    file = tmp_path / "out" / job.file
    file.write_bytes(file.read_bytes() + b".")
    with pytest.raises(StorageError, match=r"host \S+: .* differs from what the command wrote"):
        job.load(0)


def test_a_worker_cannot_write_after_the_end_of_its_job(tmp_path: Path) -> None:
    job = Job.publish(filter_tasks(tmp_path), scan.write_scanned_shard)
    out = job.load(0)[0].out
    out.publish_bytes("a", b"during the job")
    (tmp_path / "out" / job.file).unlink()
    with pytest.raises(StorageError, match="a: not written, because the command has ended this job"):
        out.publish_bytes("a", b"after it")
    assert (tmp_path / "out/a").read_bytes() == b"during the job"


@pytest.mark.parametrize("name", software())
def test_any_other_version_is_refused(name: str) -> None:
    here = software()
    assert compare_hosts(here, HostReport("node1", here, ())) is None
    problem = compare_hosts(here, HostReport("node1", {**here, name: "0"}, ()))
    assert isinstance(problem, WorkerError)
    assert str(problem).startswith(f"host node1: {name} is 0, but {here[name]} where the command runs")
    assert isinstance(compare_hosts(here, HostReport("node1", here, ("/data",))), StorageError)


def test_an_error_survives_the_text_of_any_runner() -> None:
    message = "shard 3:\nexpected 'a', got \"b\""
    error = tagged(DataError(message))
    for text in (str(error), f"Traceback ...\nRuntimeError: {error} [while running 'Work']", repr(error)):
        ((kind, found),) = untagged(text)
        assert kind == "DataError"
        assert found.replace("\\'", "'") == message


def test_the_wheel_is_installable_and_pins_what_the_command_uses(tmp_path: Path) -> None:
    wheel = staging.write_wheel(tmp_path / "a")
    assert wheel.read_bytes() == staging.write_wheel(tmp_path / "b").read_bytes()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(tmp_path / "site"), str(wheel)], check=True)
    code = "import oxe_curate, oxe_curate.filter.scan, oxe_curate.tokenize.build; print(oxe_curate.__file__)"
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{SITE}"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "site/oxe_curate/__init__.py")
    info = next((tmp_path / "site").glob("oxe_curate-*.dist-info"))
    metadata = Parser().parsestr((info / "METADATA").read_text())
    assert metadata["Version"] == __version__
    needed = metadata.get_all("Requires-Dist", [])
    assert f"pyarrow=={importlib.metadata.version('pyarrow')}" in needed
    assert all("==" in requirement and "extra" not in requirement for requirement in needed)
    assert not [requirement for requirement in needed if requirement.startswith(("torch", "transformers", "dask"))]
    assert len(needed) == len([r for r in importlib.metadata.requires("oxe-curate") or [] if "extra" not in r])


@pytest.mark.parametrize(
    ("kind", "given", "staged"),
    [
        ("dataflow", [], True),
        ("flink", [], True),
        ("portable", ["--environment_type=EXTERNAL"], True),
        ("portable", ["--environment_type=LOOPBACK"], False),
        ("prism", [], False),
        ("prism", ["--environment_type=DOCKER"], True),
        ("dask", [], False),
        ("dataflow", ["--sdk_container_image=i"], False),
        ("flink", ["--extra_package", "a.whl"], False),
        ("flink", ["--setup_file=./setup.py"], False),
    ],
)
def test_when_the_package_is_staged(kind: str, given: list[str], staged: bool) -> None:
    assert staging.stages_package(kind, given) is staged


def test_a_runner_is_found_by_any_of_its_names() -> None:
    full = "apache_beam.runners.dask.dask_runner.DaskRunner"
    for given in (["--runner=DaskRunner"], ["--runner", "dask"], [f"--runner={full}"]):
        arguments, patience = options.split_options([*given, "--dask_npartitions=3", "--wait_for_workers=7"])
        assert arguments == ["--dask_npartitions=3", f"--runner={full}"]
        assert options.runner_kind(arguments) == "dask"
        assert (patience.workers, patience.answer) == (7, 60)
    assert options.is_here([])
    assert options.is_here(["--runner=DirectRunner"])
    assert not options.is_here(["--runner=FlinkRunner"])


@dataclass(frozen=True)
class Lonely:
    """A task that shares nothing with others."""

    out: Folder
    name: str = "one"
    output: str = "one"
    size: int = 1


def test_one_task_is_packed_too(tmp_path: Path) -> None:
    task = Lonely(Folder.of(tmp_path))
    shared, _, packed = pickle.loads(pack([task], print)[0])
    assert unpack(pickle.loads(shared), packed[0]) == task
