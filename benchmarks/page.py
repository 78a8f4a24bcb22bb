"""The page of results, benchmarks/results/README.md, from the store and from the recorded files of other benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import markdown
from benchmarks.rows import TOPICS, Anchor, Row
from benchmarks.store import Store, Stored

HEADER = ("what", "measured", "compared with", "ratio", "by processor time", "limit", "met", "command", "run")

HEAD = """\
# Results

`make bench` measures every row with a command `make bench ...` on a machine with two cores and renews this page; the
other rows keep the command that measured them. A row is measured side by side with what it is compared with: both take
turns, round after round, each in a process of its own, with the data in the page cache unless "cold" is said.

- measured: the median over the rounds, and the smallest and largest value. Times cover the work, not the interpreter's
  start and the imports; starting worker processes counts. `~`: from a part of the data, scaled to all of it.
- ratio: the median over the rounds of the ratio within a round, as "x the speed", "x the time" or "x the memory" of
  what it is compared with. The next column gives the same by processor time, which other work on the machine changes
  least.
- limit: what the ratio must reach, or the measured number where nothing is compared. "no" is a limit not met.

{met} of {limits} limits are met.
"""

DETAILS = {
    "gpu": [
        ("train-openvla.md", "every kind of step of the 7B"),
        ("train-flamingo.md", "every head of RoboFlamingo"),
        ("resize-gpu.md", "batches of other sizes, memory"),
        ("control.md", "where the time of a control step goes"),
    ],
    "scale": [("scale.md", "memory and bytes read of every command"), ("cluster.md", "the size of a job")],
    "quality": [("defects.md", "every kind of defect in every source")],
}
"""Topic -> (file, contents) of the files that say more."""


def number(value: float, unit: str) -> str:
    """Three digits and the unit; whole numbers from 1,000 on."""
    digits = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def _ratio(anchor: Anchor) -> str:
    return f"{number(anchor.ratio, '')}x the {anchor.of}"


def cells(stored: Stored, run: int) -> list[str]:
    """A row of the table; `run` is the number of its run in the list below the tables."""
    row = stored.row
    measured = number(row.value, row.unit)
    if row.spread and row.spread[0] != row.spread[1]:
        measured += f" ({number(row.spread[0], '')} to {number(row.spread[1], '')})"
    compared = ratio = cpu = limit = ""
    if anchor := row.anchor:
        compared, ratio = f"{anchor.name}, {number(anchor.value, row.unit)}", _ratio(anchor)
        cpu = "" if anchor.cpu_ratio is None else f"{number(anchor.cpu_ratio, '')}x"
    if row.limit:
        of = "x" if row.anchor else f" {row.unit}".rstrip()
        limit = f"{'≥' if row.limit.at_least else '≤'} {row.limit.bound:,g}{of}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    what = f"{row.what}; {row.note}" if row.note else row.what
    return [what, measured, compared, ratio, cpu, limit, met, f"`{row.command}`" if row.command else "", str(run)]


def line(row: Row) -> str:
    """A row in words, for the screen."""
    what, measured, compared, ratio, cpu, limit, met, *_ = cells(Stored(row, ""), 0)
    parts = [f"{what}: {measured}"]
    if compared:
        parts.append(f"{ratio} of {compared}" + (f" ({cpu} by processor time)" if cpu else ""))
    if limit:
        parts.append(f"limit {limit}: {met}")
    return "; ".join(parts)


def render(store: Store, details: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The page. `details`: topic -> (file, contents) of the files that say more about it."""
    all_rows = [stored for rows in store.groups.values() for stored in rows]
    numbers = {name: count for count, name in enumerate(sorted({stored.run for stored in all_rows}), 1)}
    met = [stored.row.met for stored in all_rows if stored.row.met is not None]
    parts = [HEAD.format(met=sum(met), limits=len(met))]
    for topic, heading in TOPICS.items():
        rows = [stored for stored in all_rows if stored.row.topic == topic]
        if not rows:
            continue
        parts.append(f"## {heading}\n")
        links = [f"[{file}]({file}): {contents}" for file, contents in details.get(topic, ())]
        if links:
            parts.append("More: " + "; ".join(links) + ".\n")
        parts.append(markdown(HEADER, [cells(stored, numbers[stored.run]) for stored in rows]) + "\n")
    parts.append("## Runs\n")
    for name, count in numbers.items():
        facts = ", ".join(f"{key} {value}" for key, value in store.runs[name].items() if value)
        parts.append(f"{count}. {name.partition(' ')[0]}: {facts}")
    return "\n".join(parts) + "\n"


def write(store: Store, out: Path, details: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write README.md to the folder `out`, with links to those of the details that are there."""
    there = {topic: [(file, text) for file, text in files if (out / file).exists()] for topic, files in details.items()}
    (out / "README.md").write_text(render(store, there))
