"""A process per kind of model, so that none inherits another's memory: rows come back as lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

_MARK = "ROW "


def tell(rows: Iterable[dict[str, Any]]) -> None:
    """In a child: hand each row to the parent as it comes."""
    for row in rows:
        print(_MARK + json.dumps(row), flush=True)


def run_all(
    module: str,
    kinds: Sequence[str],
    options: Sequence[str],
    environment: dict[str, Any],
    report: Callable[[list[Any], dict[str, Any]], str],
    out: Path | None,
    name: str,
) -> None:
    """Run `python -m module --one KIND options...` for each kind, print the report, and write it below `out`.

    What a child says on stderr is shown; the rows it gave before it failed count. The files are written after each
    kind, so that a run that ends early leaves what it measured.
    """
    rows: list[Any] = []
    for kind in kinds:
        command = [sys.executable, "-m", module, "--one", kind, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows += [json.loads(line[len(_MARK) :]) for line in done.stdout.splitlines() if line.startswith(_MARK)]
        if done.returncode or done.stderr:
            print(f"{kind}: exit code {done.returncode}\n{done.stderr[-3000:]}", file=sys.stderr)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.md").write_text(report(rows, environment))
            (out / f"{name}.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    print(report(rows, environment))
