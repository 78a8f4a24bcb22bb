"""Reads damaged files in a process of its own, with a limit of memory: one JSON line in, one out.

python -m tests.fuzz.worker WORKSPACE
{"target": "mixture", "seed": 0, "number": 7} -> {"outcome": "refused", "detail": "...", "what": "..."}
"""

import contextlib
import io
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from oxe_curate.errors import CurateError
from tests.fuzz.mutate import mutation
from tests.fuzz.targets import TARGETS

MEMORY = 3 << 30
"""Bytes of address space that reading one damaged file may add."""


def _used() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def outcome(root: Path, name: str, seed: int | None, number: int, expected: str | None) -> dict[str, str]:
    """Read one damaged file (the undamaged one without a seed), and restore it."""
    target = TARGETS[name]
    path = sorted(root.glob(target.file))[0]
    data = path.read_bytes()
    what, damaged = ("undamaged", data) if seed is None else mutation(data, target.kind, seed, number)
    path.write_bytes(damaged)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            result = target.read(root)
        kind, detail = ("same" if result == expected or damaged == data else "different"), result
    except CurateError as error:
        kind, detail = "refused", str(error)
        if error.exit_code != 2 or len(detail) > 20_000 or detail.count("\n") > 60 or not detail.strip():
            kind, detail = (
                "fault",
                f"a message of {len(detail)} characters, exit code {error.exit_code}: {detail[:200]}",
            )
    except MemoryError:
        kind, detail = "fault", "MemoryError"
    except BaseException as error:
        place = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-3:]
        kind, detail = "fault", f"{type(error).__name__}: {str(error)[:200]} at {' > '.join(place)}"
    finally:
        path.write_bytes(data)
    return {"outcome": kind, "detail": detail, "what": what}


def main() -> None:
    """Answer requests until the input ends."""
    root = Path(sys.argv[1])
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for line in requests:
        request = json.loads(line)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_used() + MEMORY, hard))
        answer = outcome(root, request["target"], request["seed"], request["number"], request.get("expected"))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
