"""The store behind the page of results, benchmarks/results/results.json: rows by group, and the runs they are from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

RESULTS = Path(__file__).parent / "results"
STORE = RESULTS / "results.json"


@dataclass(frozen=True)
class Stored:
    """A row, and the run it is from, a key of `Store.runs`."""

    row: Row
    run: str


@dataclass
class Store:
    """Rows by group, and for each run its facts: date, commit, machine, versions."""

    groups: dict[str, list[Stored]] = field(default_factory=dict)
    runs: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Store:
        """The store at `path`; empty if there is none."""
        if not path.exists():
            return cls()
        data = json.loads(path.read_text())
        groups = {
            name: [Stored(Row.from_json(entry["row"]), entry["run"]) for entry in rows]
            for name, rows in data["groups"].items()
        }
        return cls(groups, data["runs"])

    def update(self, group: str, rows: Iterable[Row], facts: Mapping[str, str], *, complete: bool) -> None:
        """Replace the rows that were measured again; the group's others stay unless the run was `complete`.

        A run is named after its group and date, so that a run of one group never changes what another's rows say.
        """
        run = f"{group} {facts['date']}"
        rows = list(rows)
        new = {row.key: Stored(row, run) for row in rows}
        if len(new) < len(rows):
            raise ValueError(f"{group}: several rows are named alike: {sorted(row.key for row in rows)}")
        old = {} if complete else {stored.row.key: stored for stored in self.groups.get(group, [])}
        self.groups[group] = list((old | new).values())
        self.runs[run] = dict(facts)
        used = {stored.run for rows_ in self.groups.values() for stored in rows_}
        self.runs = {name: found for name, found in self.runs.items() if name in used}

    def write(self, path: Path) -> None:
        """Write the store at once, so that an interrupted run leaves the old one."""
        groups = {
            name: [{"row": stored.row.to_json(), "run": stored.run} for stored in rows]
            for name, rows in sorted(self.groups.items())
        }
        data: dict[str, Any] = {"groups": groups, "runs": dict(sorted(self.runs.items()))}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(data, indent=1) + "\n")
        unfinished.replace(path)
