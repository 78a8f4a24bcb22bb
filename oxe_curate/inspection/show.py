"""Reports and comparisons as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oxe_curate.inspection.check import Checked
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.report import Inspection, NumberFeature

_VERDICTS = {"agrees": "green", "contradicts": "red", "undecided": "dim"}


def inspected(report: Inspection) -> Group:
    """Everything of a report: cameras, numbers, texts, flags, findings."""
    lengths = sorted(report.lengths)
    splits = ", ".join(f"{name}: {n['episodes']:,} in {n['shards']} shards" for name, n in report.splits.items())
    parts: list[RenderableType] = [
        Text(f"{report.name} {report.version}", "bold"),
        Text(f"episodes   {splits}; {report.num_bytes / 1e6:,.1f} MB"),
        Text(f"read       {len(lengths)} of them, {lengths[0]} to {lengths[-1]} steps (median {_median(lengths)})"),
        _cameras(report),
        _numbers("Actions", report.actions),
        _numbers("State", report.states),
    ]
    if report.others:
        parts.append(_numbers("Other numbers", report.others))
    parts += [_texts(report), *_beside(report), findings(report.findings)]
    return Group(*parts)


def findings(found: Iterable[Finding]) -> Table:
    """Questions and answers, with how sure each is and why."""
    table = _table("What the data tell", "question", "answer", "sure")
    table.add_column("why", overflow="fold", ratio=1)
    for finding in found:
        table.add_row(
            finding.question,
            Text(finding.answer, _colour(finding)),
            _sure(finding.confidence),
            Text(finding.why, "dim"),
        )
    return table


def checked(result: Checked) -> Group:
    """A card against the data: contradictions first, then what agrees, then what cannot be told."""
    title = f"Card {result.card} against {result.dataset} ({result.episodes} episodes)"
    table = _table(title, "question", "card says", "data say", "sure")
    table.add_column("why", overflow="fold", ratio=1)
    for verdict in ("contradicts", "agrees", "undecided"):
        for c in (c for c in result.comparisons if c.verdict == verdict):
            style = _VERDICTS[verdict]
            table.add_row(c.question, c.card, Text(c.data, style), _sure(c.confidence), Text(c.why, "dim"))
        table.add_section()
    count = len(result.contradictions)
    agree = sum(c.verdict == "agrees" for c in result.comparisons)
    told = f"{count} contradiction{'' if count == 1 else 's'}, {agree} agree"
    told += f", {len(result.comparisons) - count - agree} cannot be told"
    return Group(table, Text(told, "bold red" if count else "bold green"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _numeric(title: str, names: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = _table(title, *names)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cameras(report: Inspection) -> Table:
    table = _numeric("Cameras", ("key", "size", "stored as"), ("looked at", "black", "missing", "unreadable"))
    for c in sorted(report.cameras, key=lambda c: c.key):
        size = "x".join("?" if d is None else str(d) for d in c.shape)
        stored = c.encoding if c.dtype == "uint8" else f"{c.encoding} {c.dtype}"
        table.add_row(c.key, size, stored, f"{c.looked_at:,}", *(_share(s) for s in (c.black, c.missing, c.unreadable)))
    return table


def _numbers(title: str, features: tuple[NumberFeature, ...]) -> Table:
    table = _numeric(title, ("key", "type"), ("min", "q01", "mean", "q99", "max", ""))
    for feature in features:
        for i, r in enumerate(feature.ranges):
            name = f"{feature.key}[{i}]" if len(feature.ranges) > 1 or feature.shape else feature.key
            remark = Text("constant" if r.constant else "", "yellow")
            if r.not_finite:
                remark = Text(f"{r.not_finite} not finite", "red")
            numbers = (f"{v:.4g}" for v in (r.low, r.q01, r.mean, r.q99, r.high))
            table.add_row(name, feature.dtype if i == 0 else "", *numbers, remark)
    return table


def _texts(report: Inspection) -> Table:
    table = _numeric("Texts", ("key", "kind"), ("distinct", "episodes without"))
    table.add_column("such as", overflow="fold", ratio=1)
    for t in report.texts:
        shown = " | ".join(repr(s) for s in t.samples[:3])
        table.add_row(t.key, t.kind, f"{t.distinct:,}", _share(t.empty), Text(shown))
    return table


def _beside(report: Inspection) -> list[Text]:
    lines = []
    if report.flags:
        flags = ", ".join(f"{key} {_share(share)}" for key, share in report.flags.items())
        lines.append(Text(f"flags that are true: {flags}"))
    others = [key for key in report.metadata if key not in report.flags]
    if others:
        lines.append(Text(f"other metadata, not read: {', '.join(others)}", "dim"))
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
