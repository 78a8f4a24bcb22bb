"""Damage every kind of file for a while, and print what happened: `make fuzz`.

python -m tests.fuzz.run [--seconds 600] [--seed N] [--target NAME ...] [--count N] [--save FOLDER]

Damaged files that end in an internal fault, a hang or a silent change are saved. The exit code is 1 if there are any.
"""

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import mutation
from tests.fuzz.targets import TARGETS
from tests.fuzz.workspace import make_workspace

LIMIT = 60.0
"""Seconds after which a reader hangs."""
OUTCOMES = ("refused", "same", "different", "fault", "hang", "killed")


class Reader:
    """A worker process over a workspace; a new one replaces it when it hangs or is killed.

    The index names its source by an absolute path, so the workspace stays where it was made.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self._copy = folder / "workspace", folder / "copy"
        make_workspace(self.root)
        shutil.copytree(self.root, self._copy)
        self._process: subprocess.Popen[str] | None = None
        self._expected: dict[str, str] = {}

    def read(self, target: str, seed: int, number: int) -> dict[str, str]:
        """The outcome of one mutation; "different" only where the undamaged file gives another result."""
        if target not in self._expected:
            answer = self._ask({"target": target, "seed": None, "number": 0})
            assert answer["outcome"] == "same", answer
            self._expected[target] = answer["detail"]
        return self._ask({"target": target, "seed": seed, "number": number, "expected": self._expected[target]})

    def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], LIMIT)
        line = process.stdout.readline() if ready else ""
        if line:
            return dict(json.loads(line))
        outcome = "killed" if ready else "hang"
        self.close()
        return {"outcome": outcome, "detail": f"no answer; exit code {process.returncode}", "what": ""}

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.fuzz.worker", str(self.root)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        return self._process

    def close(self) -> None:
        """End the process, and restore the workspace."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
            shutil.rmtree(self.root)
            shutil.copytree(self._copy, self.root)


def is_failure(target: str, answer: dict[str, str]) -> bool:
    """Whether an outcome is wrong: a fault, a hang, or a change of a file that has a checksum."""
    return answer["outcome"] in ("fault", "hang", "killed") or (
        answer["outcome"] == "different" and TARGETS[target].checked
    )


def rounds(targets: list[str], seconds: float, count: int | None) -> Iterator[tuple[str, int]]:
    """(target, number) in turns, until the time is up or each target had `count` mutations."""
    end, number = time.monotonic() + seconds, 0
    while number < (count or sys.maxsize):
        for target in targets:
            if time.monotonic() > end:
                return
            yield target, number
        number += 1


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "600")))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--count", type=int, default=None, help="mutations of each target (default: until time is up)")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    targets = options.target or list(TARGETS)
    print(f"seed {seed}", flush=True)
    counts = {target: Counter[str]() for target in targets}
    failures: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        try:
            for target, number in rounds(targets, options.seconds, options.count):
                answer = reader.read(target, seed, number)
                counts[target][answer["outcome"]] += 1
                if is_failure(target, answer):
                    path = sorted(reader.root.glob(TARGETS[target].file))[0]
                    what, damaged = mutation(path.read_bytes(), TARGETS[target].kind, seed, number)
                    options.save.mkdir(parents=True, exist_ok=True)
                    saved = options.save / f"{target.replace(' ', '-')}-{seed}-{number}{path.suffix}"
                    saved.write_bytes(damaged)
                    detail = "" if answer["outcome"] == "different" else answer["detail"]
                    line = f"{target}: {answer['outcome']}: {detail}"
                    failures[line] += 1
                    if failures[line] == 1:
                        print(f"{line}\n    {what}\n    {saved}", flush=True)
        finally:
            reader.close()
    print(f"\n{'file':28}{''.join(f'{name:>11}' for name in OUTCOMES)}")
    for target in targets:
        print(f"{target:28}{''.join(f'{counts[target][name]:>11}' for name in OUTCOMES)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
