"""Run each kind of model in its own process, so that memory is not shared; rows return as lines of JSON."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

_MARK = "ROW "


def send_rows(rows: Iterable[dict[str, Any]]) -> None:
    """In a child process: send each row to the parent as soon as it is measured."""
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
    """Run `python -m module --one KIND options...` for each kind, print the report, and write it to `out`.

    A child's stderr is shown; rows that it sent before it failed count. The files are rewritten after each row, so that
    an interrupted run leaves its results.
    """
    rows: list[Any] = []
    for kind in kinds:
        command = [sys.executable, "-m", module, "--one", kind, *options]
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
                for line in child.stdout or ():
                    if line.startswith(_MARK):
                        rows.append(json.loads(line[len(_MARK) :]))
                        _write(out, name, rows, environment, report)
            errors.seek(0)
            stderr = errors.read()
        if child.returncode or stderr:
            print(f"{kind}: exit code {child.returncode}\n{stderr[-3000:]}", file=sys.stderr)
    print(report(rows, environment))


def _write(
    out: Path | None,
    name: str,
    rows: list[Any],
    environment: dict[str, Any],
    report: Callable[[list[Any], dict[str, Any]], str],
) -> None:
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(report(rows, environment))
        about = {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", **environment}
        (out / f"{name}.json").write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")
