"""A stand-in for SLURM's sbatch, squeue and scancel: jobs are processes of this machine, started in the background.

Installed under these three names; STANDIN names a folder with one file per job, holding the process group's number.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

state = Path(os.environ["STANDIN"])


def sbatch(arguments: list[str]) -> None:
    """Start a job script: --parsable, --array=FIRST-LAST, --dependency=afterok:JOB."""
    options = dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
    script = Path(next(a for a in arguments if not a.startswith("--")))
    assert script.read_text().startswith("#!"), "sbatch refuses a file without an interpreter"
    job = len(list(state.glob("*.job"))) + 1
    copy = state / f"{job}.sh"  # as SLURM does: the caller may remove its file at once
    copy.write_bytes(script.read_bytes())
    first, _, last = options.get("array", "0-0").partition("-")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent)!r}); import slurm; "
        f"slurm.run({job}, {str(copy)!r}, range({int(first)}, {int(last) + 1}), {options.get('dependency', '')!r})"
    )
    with (state / f"{job}.out").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, start_new_session=True)
    (state / f"{job}.job").write_text(str(process.pid))
    print(job if "parsable" in options else f"Submitted batch job {job}")


def run(job: int, script: str, indexes: range, dependency: str) -> None:
    """Run the tasks of a job two at a time, after the jobs that it depends on; note the worst exit code."""
    for other in re.findall(r"\d+", dependency):
        while not (state / f"{other}.done").exists():
            time.sleep(0.1)
        if (state / f"{other}.done").read_text() != "0":
            (state / f"{job}.done").write_text("DependencyNeverSatisfied")
            return
    codes, left = [], list(indexes)
    while left:
        batch, left = left[:2], left[2:]
        tasks = [
            subprocess.Popen(
                ["sh", script], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(n), "SLURM_JOB_ID": str(job)}
            )
            for n in batch
        ]
        codes += [task.wait() for task in tasks]
    (state / f"{job}.done").write_text(str(max(codes)))


def scancel(arguments: list[str]) -> None:
    """End jobs."""
    for job in arguments:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((state / f"{job}.job").read_text()), signal.SIGTERM)


def squeue(_: list[str]) -> None:
    """List the jobs that have not ended."""
    print("JOBID STATE")
    for path in state.glob("*.job"):
        if not path.with_suffix(".done").exists():
            print(path.stem, "RUNNING")


if __name__ == "__main__":
    {"sbatch": sbatch, "scancel": scancel, "squeue": squeue}[Path(sys.argv[0]).name](sys.argv[1:])
