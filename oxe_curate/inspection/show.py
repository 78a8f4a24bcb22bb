"""Reports and comparisons as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from oxe_curate.inspection.check import Checked
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.questions import open_questions
from oxe_curate.inspection.report import Inspection, NumberFeature
from oxe_curate.quality.findings import sentences
from oxe_curate.ui.tables import Column, ResultTable, counted

_VERDICTS = {"agrees": "green", "contradicts": "red", "undecided": "dim"}


def inspected(report: Inspection) -> Group:
    """All of a report: cameras, numbers, instructions, flags, findings."""
    lengths = sorted(report.lengths)
    splits = ", ".join(
        f"{name}: {counted(n['episodes'], 'episode')} in {counted(n['shards'], 'shard')}"
        for name, n in report.splits.items()
    )
    parts: list[RenderableType] = [
        Text(f"{report.name} {report.version}", "bold"),
        Text(f"splits   {splits}; {report.num_bytes / 1e6:,.1f} MB"),
        Text(
            f"read     {counted(len(lengths), 'episode')} of {lengths[0]} to {lengths[-1]} steps "
            f"(median {_median(lengths)})"
        ),
        _cameras(report),
        _numbers("Actions", report.actions),
        _numbers("State", report.states),
    ]
    if report.others:
        parts.append(_numbers("Other numbers", report.others))
    parts += [_instructions(report), *_notes(report), findings_table(report.findings)]
    parts += [Text(f"open question: {question}", "bold red") for question in open_questions(report.conventions)]
    return Group(*parts)


_WHY = Column("why", left=True, wrap=True)


def _text(title: str) -> Column:
    return Column(title, left=True, wrap=True)


def findings_table(found: Iterable[Finding]) -> ResultTable:
    """Questions and answers, with the confidence in each and the reason."""
    table = ResultTable("Findings", Column("question", wrap=True), _text("answer"), "confidence", _WHY)
    for finding in found:
        table.add_row(
            finding.question,
            Text(finding.answer, _colour(finding)),
            _sure(finding.confidence),
            Text(finding.why, "dim"),
        )
    return table


def checked(result: Checked) -> Group:
    """A card compared with the data: contradictions first, then agreements, then undecided questions."""
    title = f"Card {result.card} compared with {result.dataset} ({counted(result.episodes, 'episode')})"
    table = ResultTable(title, Column("question", wrap=True), _text("card"), _text("data"), "confidence", _WHY)
    for verdict in ("contradicts", "agrees", "undecided"):
        for c in (c for c in result.comparisons if c.verdict == verdict):
            style = _VERDICTS[verdict]
            table.add_row(c.question, c.card, Text(c.data, style), _sure(c.confidence), Text(c.why, "dim"))
        table.add_section()
    count = len(result.contradictions)
    agree = sum(c.verdict == "agrees" for c in result.comparisons)
    undecided = len(result.comparisons) - count - agree
    verdict = f"{counted(count, 'contradiction')}, {counted(agree, 'agreement')}, {undecided} undecided"
    lines = [
        Text.assemble((f"{f.severity}: ", "bold red" if f.severity == "error" else "bold yellow"), line)
        for f, line in zip(result.findings, sentences(result.findings, result.card), strict=True)
    ]
    return Group(table, *lines, Text(verdict, "bold red" if result.fails else "bold green"))


def _cameras(report: Inspection) -> ResultTable:
    table = ResultTable(
        "Cameras", "key", Column("size", left=True), Column("encoding", left=True), "frames read", "black", "missing",
        "unreadable",
    )  # fmt: skip
    for c in sorted(report.cameras, key=lambda c: c.key):
        size = "x".join("?" if d is None else str(d) for d in c.shape)
        stored = c.encoding if c.dtype == "uint8" else f"{c.encoding} {c.dtype}"
        table.add_row(c.key, size, stored, f"{c.looked_at:,}", *(_share(s) for s in (c.black, c.missing, c.unreadable)))
    return table


def _numbers(title: str, features: tuple[NumberFeature, ...]) -> ResultTable:
    table = ResultTable(
        title, "key", Column("type", left=True, optional=1), "min", "q01", "mean", "q99", "max", Column("", left=True)
    )
    for feature in features:
        for i, r in enumerate(feature.ranges):
            name = f"{feature.key}[{i}]" if len(feature.ranges) > 1 or feature.shape else feature.key
            remark = Text("constant" if r.constant else "", "yellow")
            if r.not_finite:
                remark = Text(f"{r.not_finite} not finite", "red")
            numbers = (f"{v:.4g}" for v in (r.low, r.q01, r.mean, r.q99, r.high))
            table.add_row(name, feature.dtype if i == 0 else "", *numbers, remark)
    return table


def _instructions(report: Inspection) -> ResultTable:
    table = ResultTable(
        "Instructions", "key", Column("kind", left=True), "distinct", "episodes without", _text("examples")
    )
    for t in report.texts:
        shown = " | ".join(repr(s) for s in t.samples[:3])
        table.add_row(t.key, t.kind, f"{t.distinct:,}", _share(t.empty), Text(shown))
    return table


def _notes(report: Inspection) -> list[Text]:
    lines = []
    if report.flags:
        flags = ", ".join(f"{key} {_share(share)}" for key, share in report.flags.items())
        lines.append(Text(f"flags, share true: {flags}"))
    others = [key for key in report.metadata if key not in report.flags]
    if others:
        lines.append(Text(f"other metadata, not read: {', '.join(others)}", "dim"))
    if report.ignored:
        lines.append(Text(f"ignored, since the name is not that of a version: {', '.join(report.ignored)}", "yellow"))
    if report.not_read:
        lines.append(Text(f"not read: {', '.join(f'{k} ({why})' for k, why in report.not_read.items())}", "dim"))
    return lines


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _sure(confidence: float) -> str:
    return f"{confidence:.2f}" if confidence else "–"


def _colour(finding: Finding) -> str:
    return "dim" if not finding.known else "green" if finding.confidence >= 0.8 else "yellow"


def _median(values: list[int]) -> int:
    return values[len(values) // 2]
