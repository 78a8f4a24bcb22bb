"""A mixture, its findings and its differences as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oxe_curate.mixture.check import Problem
from oxe_curate.mixture.diff import Difference, MixtureChange
from oxe_curate.mixture.propose import Proposal
from oxe_curate.mixture.published import Published
from oxe_curate.mixture.shares import Breakdown, Row
from oxe_curate.mixture.text_sizes import TextSize

_SUFFIX = "_converted_externally_to_rlds"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def mixture(result: Breakdown, texts: Sequence[TextSize] = ()) -> RenderableType:
    """Weight, share and size per data set, image-text sources, and what a reader must know of the numbers."""
    columns = ["data set", "weight", "share", "steps", "episodes", "hours"]
    table = _table(f"Mixture {result.name}", *columns, *(["epochs"] if result.samples else []))
    bound = "≤ " if result.unknown else ""
    for row in result.rows:
        cells: list[RenderableType] = [
            f"{row.weight:.6g}", _percent(row.share, bound), _size(row, row.steps), _size(row, row.episodes),
            _size(row, row.hours),
        ]  # fmt: skip
        table.add_row(_name(row.name), *cells, *([_short(row.epochs, bound)] if result.samples else []))
    table.add_section()
    table.add_row("one pass", "", "", f"{result.one_pass:,.0f}", "", _short(result.hours))
    notes = []
    if any(row.origin != "index" for row in result.rows):
        notes.append("* published count of the whole data set, not of what is on disk")
    if result.unknown:
        count = f"{len(result.unknown)} of {len(result.rows)}"
        notes.append(f"?  not known ({count}): shares are of the others alone, so upper bounds")
    if result.stride > 1:
        notes.append(f"a sample is a window, drawn at every {result.stride} steps")
    if result.samples:
        notes.append(f"epochs in {result.samples:,} samples")
    return Group(table, *([_texts(texts)] if texts else []), *(Text(note, "dim") for note in notes))


def _texts(sizes: Sequence[TextSize]) -> RenderableType:
    table = _table("Image-text rows", "source", "weight", "rows", "one pass")
    for size in sizes:
        rows, drawn = ("?" if n is None else f"{n:,.0f}" for n in (size.rows, size.drawn))
        table.add_row(size.name, f"{size.weight:.6g}", rows, drawn)
    problems = [Text(f"?  {size.problem}", "yellow") for size in sizes if size.problem]
    return Group(table, *problems)


def _size(row: Row, value: float | None) -> Text:
    if value is None:
        return Text("?", "yellow")
    text = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
    return Text.assemble(text, ("*", "dim")) if row.origin != "index" else Text(text)


def _name(name: str) -> str:
    return name.removesuffix(_SUFFIX) + "…" if name.endswith(_SUFFIX) else name


def _percent(value: float | None, bound: str = "") -> str:
    if value is None:
        return "?"
    return f"{bound}{100 * value:.2f} %" if value >= 0.0001 or value == 0 else f"{bound}{100 * value:.1e} %"


def _short(value: float | None, bound: str = "") -> str:
    if value is None:
        return "?"
    return f"{bound}{value:,.0f}" if value >= 1000 else f"{bound}{value:.3g}"


def findings(found: Sequence[Problem], where: str) -> RenderableType:
    """Errors, then warnings; those that say the same of several data sets stand together."""
    errors = sum(f.level == "error" for f in found)
    parts: list[Text] = []
    for code in dict.fromkeys((f.level, f.code, f.advice) for f in found):
        group = [f for f in found if (f.level, f.code, f.advice) == code]
        for finding in group:
            colour = "red" if finding.level == "error" else "yellow"
            place = f"{where}:{finding.line}" if finding.line else where
            parts.append(Text.assemble((f"{finding.level}: ", f"bold {colour}"), f"{place}: {finding.message}."))
        parts.append(Text(f"  {group[0].advice}", "dim"))
    verdict = f"{errors} error{'s' * (errors != 1)}, {len(found) - errors} warning{'s' * (len(found) - errors != 1)}"
    return Group(*parts, Text(verdict, "red" if errors else "green"))


def difference(result: Difference, unchanged: bool = False) -> RenderableType:
    """What came, went and changed; the rest on request."""
    table = _table(f"{result.before} -> {result.after}", "data set", "", "weight", "->", "factor", "share", "-> share")
    colours = {"added": "green", "removed": "red", "changed": "yellow", "same": "dim"}
    for change in result.changes:
        if change.status != "same" or unchanged:
            table.add_row(_name(change.name), Text(change.status, colours[change.status]), *_cells(change))
    same = "" if unchanged else f"{result.counted('same')} data sets have the same weight"
    settings = [f"{key}: {before} -> {after}" for key, before, after in result.settings]
    return Group(table, *(Text(line) for line in [*settings, same] if line))


def _cells(change: MixtureChange) -> list[str]:
    before, after = change.weight
    return [
        "–" if before is None else f"{before:.4g}",
        "–" if after is None else f"{after:.4g}",
        "" if change.factor is None else f"x {change.factor:.3g}",
        "–" if before is None else _percent(change.share[0]),
        "–" if after is None else _percent(change.share[1]),
    ]


def proposal(result: Proposal) -> RenderableType:
    """The change, and the reason for each weight."""
    reasons = [Text(f"- {row.reason}") for row in result.rows]
    absent = f"not in the index, weights kept: {', '.join(result.absent)}" if result.absent else ""
    return Group(difference(result.change, unchanged=True), *reasons, *([Text(absent, "dim")] if absent else []))


def quantities(values: dict[str, float]) -> str:
    """A "name: number" file."""
    return "".join(f"{name}: {value!r}\n" for name, value in values.items())


def published(known: Sequence[Published]) -> RenderableType:
    """The published mixtures and their sources."""
    table = _table(f"{len(known)} published mixtures", "name", "project")
    table.add_column("source", overflow="fold")
    for entry in known:
        table.add_row(entry.name, entry.project, entry.source)
    return table
