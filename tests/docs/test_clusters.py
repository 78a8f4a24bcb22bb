"""The recipes of docs/clusters.md, run as they are printed, with other folders and fewer parts."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import ROOT, bridge
from tests.beam.cluster import environment, tree, until

PAGE = (ROOT / "docs/clusters.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (?:file|run): (\S+) -->\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))


def block(name: str, folder: Path) -> str:
    """A block of the page, with the test's source in place of /data/oxe and 3 parts in place of 100."""
    return BLOCKS[name].replace("/data", str(folder)).replace("--parts 100", "--parts 3")


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Write data to `oxe`, and the commands of SLURM and this project to `bin`; return the environment to run in."""
    episodes = {"train": [*(bridge.episode(i, 6 + i % 5) for i in range(9)), bridge.episode(0, 6)]}
    bridge.write(tmp_path / "oxe", episodes=episodes, shards=5)
    (tmp_path / "bin").mkdir()
    (tmp_path / "state").mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\n{(ROOT / 'tests/beam/slurm.py').read_text()}")
    (tmp_path / "bin/slurm.py").symlink_to(ROOT / "tests/beam/slurm.py")
    (tmp_path / "bin/oxe-curate").write_text(f'#!/bin/sh\nexec {sys.executable} -m oxe_curate "$@"\n')
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755) if not path.is_symlink() else None
    path = f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment(PATH=path, STANDIN=str(tmp_path / "state"))


def run(code: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(["sh", "-ec", code], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_array_job_makes_the_index_of_one_run(tmp_path: Path, slurm: dict[str, str]) -> None:
    for name in ("filter.sbatch", "merge.sbatch"):
        (tmp_path / name).write_text(block(name, tmp_path))
    assert run(block("array", tmp_path), tmp_path, slurm) == "Submitted batch job 2\n"
    ended = until(lambda: (done := tmp_path / "state/2.done").exists() and done.read_text(), "end of the jobs")
    assert ended == "0", [path.read_text() for path in sorted((tmp_path / "state").glob("*.out"))]
    assert len((tmp_path / "slices.txt").read_text().splitlines()) == 3
    run_filter(tmp_path / "oxe", tmp_path / "whole", FilterOptions(workers=1, progress=False))
    assert tree(tmp_path / "index") == tree(tmp_path / "whole")


def test_the_script_for_dask_jobqueue(tmp_path: Path, slurm: dict[str, str]) -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    (tmp_path / "slurm.py").write_text(block("slurm.py", tmp_path).replace("jobs=4", "jobs=2"))
    (tmp_path / "mixture.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]")
    try:
        run(block("jobqueue", tmp_path), tmp_path, slurm)
    finally:
        for job in (tmp_path / "state").glob("*.job"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(job.read_text()), signal.SIGKILL)
    jobs = len(list((tmp_path / "state").glob("*.job")))
    assert 1 <= jobs <= 2  # the first may have done all the work before the second is submitted
    run_filter(tmp_path / "oxe", tmp_path / "whole", FilterOptions(workers=1, progress=False))
    assert tree(tmp_path / "index") == tree(tmp_path / "whole")
    options = TokenizeOptions(workers=1, progress=False)
    run_tokenize(tmp_path / "mixture.yaml", tmp_path / "whole", tmp_path / "local", options)
    there, here = tree(tmp_path / "mixture"), tree(tmp_path / "local")
    assert {name: data for name, data in there.items() if name.endswith(".parquet")} == {
        name: data for name, data in here.items() if name.endswith(".parquet")
    }


def test_the_indexed_job_of_kubernetes(tmp_path: Path, slurm: dict[str, str]) -> None:
    job = yaml.safe_load(block("filter.yaml", tmp_path))
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert job["spec"]["completionMode"] == "Indexed"
    assert container["command"] == ["sh", "-c"]
    run(f"oxe-curate slices {tmp_path}/oxe --parts 2 > {tmp_path}/slices.txt", tmp_path, slurm)
    for index in range(2):  # what Kubernetes sets in each pod
        run(container["args"][0], tmp_path, {**slurm, "JOB_COMPLETION_INDEX": str(index)})
    run(f"oxe-curate merge-index {tmp_path}/parts/* --out {tmp_path}/index", tmp_path, slurm)
    run_filter(tmp_path / "oxe", tmp_path / "whole", FilterOptions(workers=1, progress=False))
    assert tree(tmp_path / "index") == tree(tmp_path / "whole")


def test_the_options_that_the_page_names_exist() -> None:
    from oxe_curate.beam.options import check_beam_options

    commands = re.findall(r"oxe-curate (?:filter|tokenize)[^`]*? -- ([^`]*?)(?=\n```|\ndocker|\n\n)", PAGE)
    assert len(commands) == 4
    for options in commands:
        check_beam_options(options.replace("\\\n", " ").split())
