import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import baselines, measure
from benchmarks.report import Aim

PARENT = """
import json, subprocess, sys
hold = bytearray(40_000_000)
subprocess.run([sys.executable, "-c", "import time; hold = bytearray(60_000_000); time.sleep(0.3)"], check=True)
print("a message"); print(json.dumps({"seconds": 0.25, "steps": 7}))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "x-train.tfrecord-00000-of-00001"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def test_memory_is_summed_over_all_processes(data: Path, tmp_path: Path):
    done = measure.run([sys.executable, "-c", PARENT], [data], cold=False, log=tmp_path / "log")
    assert done.seconds == 0.25
    assert done.result["steps"] == 7
    assert done.process_seconds > 0.3
    assert 100e6 < done.anonymous < done.rss < 250e6
    assert done.touched is None


FORGETFUL = """
import json, subprocess, sys
busy = "import time\\nwhile time.process_time() < 0.6: pass\\nprint(flush=True)\\ntime.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
child.stdout.readline(); child.kill()
print(json.dumps({"seconds": 1}), flush=True)
import os; os._exit(0)
"""


def test_processor_time_includes_processes_that_nobody_waits_for(data: Path, tmp_path: Path):
    done = measure.run([sys.executable, "-c", FORGETFUL], [data], cold=False, log=tmp_path / "log")
    assert done.cpu > 0.55


def test_workers_that_are_no_children_count_as_work(data: Path, tmp_path: Path):
    code = FORGETFUL.replace('{"seconds": 1}', '{"seconds": 1, "cpu": 0.01, "cpu_seconds": 0.01}')
    done = measure.run([sys.executable, "-c", code], [data], cold=False, log=tmp_path / "log")
    assert 0.55 < done.workers_cpu <= done.work_cpu < done.cpu + 0.1
    waited = measure.Measurement(1, 1, 0, 0, 0, result={"cpu": 2.0}, workers_cpu=1.9)
    assert waited.work_cpu == 2  # its children are in it


def test_a_failure_shows_the_end_of_the_log(data: Path, tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"exit code 1\n(.|\n)*no such thing"):
        measure.run([sys.executable, "-c", "raise KeyError('no such thing')"], [data], cold=False, log=tmp_path / "log")


def test_touched_counts_pages_in_the_cache(data: Path):
    measure.load([data])
    assert measure.touched([data]) == 1
    try:
        measure.drop([data])
    except RuntimeError:
        pytest.skip("this file system keeps its pages")
    assert measure.touched([data]) < 0.01


@pytest.mark.parametrize("processes", [1, 2])
def test_read_write_writes_the_sizes_it_is_given(tmp_path: Path, processes: int):
    for number in range(3):
        (tmp_path / f"x-train.tfrecord-0000{number}-of-00003").write_bytes(bytes(1_500_000))
    command = [sys.executable, baselines.__file__, "read_write", tmp_path, "--out", tmp_path / "out"]
    sizes = [2_000_000, 10, 1_100_000]
    command += ["--sizes", ",".join(map(str, sizes)), "--processes", str(processes)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert result["bytes"] == 4_500_000
    assert sorted(path.stat().st_size for path in (tmp_path / "out").iterdir()) == sorted(sizes)


def test_an_aim_is_met_on_its_side_of_the_bound():
    assert Aim("", 21, 20, at_least=True).met
    assert not Aim("", 21, 20, at_least=False).met
