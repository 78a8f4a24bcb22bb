"""What `filter` prints: kept and dropped episodes by reason, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from oxe_curate.filter.scanner import FilterTask
from oxe_curate.filter.tasks import lost_tasks
from oxe_curate.index.index_json import Judged, Summary
from oxe_curate.index.store import Index
from oxe_curate.quality.findings import sentences
from oxe_curate.ui.tables import Column, ResultTable, counted, share_of


def filtered(summaries: Mapping[str, Summary]) -> ResultTable:
    """Kept and dropped episodes by reason, per data set."""
    table = ResultTable("Episodes kept and dropped", "data set", "episodes", "share", "steps", "share")
    for name, summary in summaries.items():
        table.add_row(Text(name, "bold"), f"{summary.seen:,}", "", f"{summary.steps_seen:,}", "")
        kept = Text("  kept", "green" if summary.kept else "red")
        table.add_row(kept, *_counts(summary.kept, summary.steps_kept, summary))
        for reason, (episodes, steps) in sorted(summary.dropped.items(), key=lambda item: -item[1][0]):
            table.add_row(Text(f"  {reason}", "yellow"), *_counts(episodes, steps, summary))
        if summary.corrupt:
            table.add_row(Text("  unreadable", "red"), f"{len(summary.corrupt):,}", "", "", "")
    if len(summaries) > 1:
        total = Summary()
        for summary in summaries.values():
            total.add(summary)
        table.add_section()
        table.add_row(Text("all", "bold"), f"{total.seen:,}", "", f"{total.steps_seen:,}", "")
        table.add_row(Text("  kept", "green"), *_counts(total.kept, total.steps_kept, total))
    return table


def _counts(episodes: int, steps: int, summary: Summary) -> list[str]:
    return [f"{episodes:,}", share_of(episodes, summary.seen), f"{steps:,}", share_of(steps, summary.steps_seen)]


def compared(judged: Mapping[str, Mapping[str, Judged]]) -> ResultTable | None:
    """What the criteria that compare an episode with its data set found; None if they found nothing."""
    table = ResultTable(
        "Episodes unlike the others of their data set",
        Column("data set"), Column("criterion", left=True), "marked", "dropped", Column("limit", optional=2),
        Column("worst", optional=1), Column("episode", left=True, optional=3),
    )  # fmt: skip
    some = False
    for name, found in judged.items():
        for criterion, one in sorted(found.items(), key=lambda item: -(item[1].marked + item[1].dropped)):
            if one.marked + one.dropped:
                some = True
                table.add_row(
                    name, criterion, f"{one.marked:,}", f"{one.dropped:,}", _number(one.limit, one.unit),
                    _number(one.value, one.unit), "/".join((one.worst or "").rsplit("/", 3)[1:]),
                )  # fmt: skip
    return table if some else None


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g} {unit}".strip()


def planned(tasks: Sequence[FilterTask]) -> ResultTable:
    """What a run would read, per data set."""
    table = ResultTable(
        "To be filtered", "data set", Column("card", left=True), Column("recipe", left=True), "shards", "episodes",
        "size", Column("verdict", left=True),
    )  # fmt: skip
    for name in dict.fromkeys(task.dataset.label for task in tasks):
        mine = [task for task in tasks if task.dataset.label == name]
        card, size = mine[0].card, sum(task.size for task in mine)
        table.add_row(
            Text(name, "bold"), card.name, mine[0].recipe if card.recipes else "–", f"{len(mine):,}",
            f"{sum(task.shard.take for task in mine):,}", f"{size / 1e6:,.1f} MB", card.verdict,
        )  # fmt: skip
    return table


def filter_warnings(summaries: Mapping[str, Summary], index: str) -> list[str]:
    """What the tables do not show: findings about the actions, `count_warnings`, and lost tasks."""
    opened = Index.open(index)
    lines = [
        f"{finding.severity}: {line}"
        for name in summaries
        for finding, line in zip(
            opened.datasets[name].findings, sentences(opened.datasets[name].findings, name), strict=True
        )
    ]
    lines += count_warnings(summaries)
    for name, texts in lost_tasks(opened).items():
        if summaries[name].kept:
            shown = ", ".join(map(repr, texts[:5])) + (", …" if texts[5:] else "")
            lines.append(f"{name}: no episode is left of {counted(len(texts), 'task')}: {shown}")
    return lines


def count_warnings(summaries: Mapping[str, Summary]) -> list[str]:
    """Data sets without a kept episode, copies, leaking splits."""
    lines = [f"{name}: no episode is kept." for name, summary in summaries.items() if summary.kept == 0]
    for name, summary in summaries.items():
        if summary.copies:
            kept = counted(summary.copies, "kept episode is a copy of another", "kept episodes are copies of others")
            lines.append(f"{name}: {kept} (--criterion duplicate=true drops copies).")
        lines += [
            f"{name}: {split} is not held out: {counted(count, 'episode is a copy', 'episodes are copies')} of train."
            for split, count in summary.leaks.items()
        ]
    return lines
