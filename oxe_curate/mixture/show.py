"""A mixture, its problems and its differences as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from oxe_curate.mixture.check import Problem
from oxe_curate.mixture.diff import Difference, MixtureChange
from oxe_curate.mixture.propose import Proposal
from oxe_curate.mixture.published import Published
from oxe_curate.mixture.shares import Breakdown, Row
from oxe_curate.mixture.text_sizes import TextSize
from oxe_curate.ui.tables import Column, ResultTable, counted


def mixture_table(result: Breakdown, texts: Sequence[TextSize] = ()) -> RenderableType:
    """Weight, share and size per data set, image-text sources, and notes on the numbers."""
    epochs = ["epochs"] if result.samples else []
    table = ResultTable(
        f"Mixture {result.name}", "data set", "weight", "share", "steps", Column("episodes", optional=2),
        Column("hours", optional=1), *epochs,
    )  # fmt: skip
    bound = "≤ " if result.unknown else ""
    for row in result.rows:
        table.add_row(
            row.name, f"{row.weight:.6g}", _percent(row.share, bound), _size(row, row.steps), _size(row, row.episodes),
            _size(row, row.hours), *([_short(row.epochs, bound)] if result.samples else []),
        )  # fmt: skip
    table.add_section()
    table.add_row("one pass", "", "", f"{result.one_pass:,.0f}", "", _short(result.hours), *("" for _ in epochs))
    notes = []
    if any(row.origin != "index" for row in result.rows):
        notes.append("* published count of the whole data set, not of what is on disk")
    if result.unknown:
        unknown = f"{len(result.unknown)} of {len(result.rows)}"
        notes.append(f"? unknown size ({unknown} data sets): shares are upper bounds, relative to the other data sets")
    if result.stride > 1:
        notes.append(f"a sample is a window; one is drawn every {result.stride} steps")
    if result.samples:
        notes.append(f"epochs in {result.samples:,} samples")
    return Group(table, *([_texts_table(texts)] if texts else []), *(Text(note, "dim") for note in notes))


def _texts_table(sizes: Sequence[TextSize]) -> RenderableType:
    table = ResultTable("Image-text rows", "source", "weight", "rows", "one pass")
    for size in sizes:
        rows, drawn = ("?" if n is None else f"{n:,.0f}" for n in (size.rows, size.drawn))
        table.add_row(size.name, f"{size.weight:.6g}", rows, drawn)
    problems = [Text(f"? {size.problem}", "yellow") for size in sizes if size.problem]
    return Group(table, *problems)


def _size(row: Row, value: float | None) -> Text:
    if value is None:
        return Text("?", "yellow")
    text = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
    return Text.assemble(text, ("*", "dim")) if row.origin != "index" else Text(text)


def _percent(value: float | None, bound: str = "") -> str:
    if value is None:
        return "?"
    return f"{bound}{100 * value:.2f} %" if value >= 0.0001 or value == 0 else f"{bound}{100 * value:.1e} %"


def _short(value: float | None, bound: str = "") -> str:
    if value is None:
        return "?"
    return f"{bound}{value:,.0f}" if value >= 1000 else f"{bound}{value:.3g}"


def problems_text(found: Sequence[Problem], where: str) -> RenderableType:
    """Errors, then warnings, each kind once with its count; the accepted ones in a line."""
    parts: list[Text] = []
    shown = [p for p in found if p.level != "accepted"]
    for kind in dict.fromkeys((p.level, p.code) for p in shown):
        group = [p for p in shown if (p.level, p.code) == kind]
        colour = "red" if kind[0] == "error" else "yellow"
        for problem in group if len(group) <= _LISTED else group[:1]:
            place = f"{where}:{problem.line}" if problem.line else where
            end = "" if problem.message.endswith((".", "?")) else "."
            message = f"{place}: {problem.message}{end}"
            parts.append(Text.assemble((f"{problem.level}: ", f"bold {colour}"), message))
        if len(group) > _LISTED:
            parts.append(Text(f"  {len(group):,} findings of this kind; also {_others(group[1:])}"))
        advice = list(dict.fromkeys(p.advice for p in group))[:_LISTED]
        parts += [Text(f"  {line} [{kind[1]}]", "dim") for line in advice]
    errors = sum(problem.level == "error" for problem in shown)
    verdict = f"{counted(errors, 'error')}, {counted(len(shown) - errors, 'warning')}"
    accepted = [p for p in found if p.level == "accepted"]
    for code, count in Counter(p.code for p in accepted).items():
        reason = next(p.accepted for p in accepted if p.code == code)
        parts.append(Text(f"accepted: {code} ({count:,}): {reason}", "dim"))
    if accepted:
        verdict += f", {len(accepted):,} accepted"
    return Group(*parts, Text(verdict, "red" if errors else "green"))


_LISTED = 3
"""Findings of a kind that are all written out."""


def _others(group: Sequence[Problem]) -> str:
    """The data sets of further findings, or their lines."""
    names = [f"{p.dataset} (line {p.line})" if p.dataset else f"line {p.line}" for p in group]
    names = list(dict.fromkeys(names))
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


def difference_table(result: Difference, unchanged: bool = False) -> RenderableType:
    """Data sets that were added, removed or changed; the others where `unchanged` is set."""
    change = Column("change", left=True)
    table = ResultTable(
        f"{result.before} -> {result.after}", "data set", change, "weight", "-> weight", Column("factor", optional=2),
        Column("share", optional=1), Column("-> share", optional=1),
    )  # fmt: skip
    colours = {"added": "green", "removed": "red", "changed": "yellow", "same": "dim"}
    for entry in result.changes:
        if entry.status != "same" or unchanged:
            table.add_row(entry.name, Text(entry.status, colours[entry.status]), *_cells(entry))
    same = "" if unchanged else f"{counted(result.counted('same'), 'data set')} with the same weight"
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


def proposal_table(result: Proposal) -> RenderableType:
    """The proposed change, and the reason for each weight."""
    reasons = [Text(f"- {row.reason}") for row in result.rows]
    absent = f"not in the index, weights unchanged: {', '.join(result.absent)}" if result.absent else ""
    return Group(difference_table(result.change, unchanged=True), *reasons, *([Text(absent, "dim")] if absent else []))


def quantities_text(values: dict[str, float]) -> str:
    """Lines of `name: number`."""
    return "".join(f"{name}: {value!r}\n" for name, value in values.items())


def published_table(known: Sequence[Published]) -> ResultTable:
    """The published mixtures and their sources."""
    table = ResultTable(
        counted(len(known), "published mixture"), "name", Column("project", left=True),
        Column("source", left=True, wrap=True),
    )  # fmt: skip
    for entry in known:
        table.add_row(entry.name, entry.project, entry.source)
    return table
