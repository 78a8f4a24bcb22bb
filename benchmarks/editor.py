"""The group editor: how fast the mixture editor's page opens and follows a slider, in a real browser."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.rows import Row
from benchmarks.settings import Settings

_LINE = re.compile(r" *(\d+) +([\d.]+) +(\d+) / (\d+) +(\d+) / (\d+)")


def parsed(text: str) -> Iterator[Row]:
    """The table that tests.editor.speed prints, as rows."""
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            count, opened, *times = found.groups()
            where = f"mixture of {count} rows"
            yield Row("editor", f"{where}: the page opens", float(opened), "s")
            for what, middle, late in (("text", *times[:2]), ("shares", *times[2:])):
                yield Row("editor", f"{where}: from a slider to the {what}", float(middle), "ms", note=f"p95 {late} ms")


def rows(settings: Settings) -> Iterator[Row]:
    """Run tests.editor.speed, which requires Chromium and playwright."""
    if not (shutil.which("chromium") and importlib.util.find_spec("playwright")):
        settings.skip("the editor", "needs chromium and playwright")
        return
    done = subprocess.run([sys.executable, "-m", "tests.editor.speed"], stdout=subprocess.PIPE, text=True, check=True)
    yield from parsed(done.stdout)
