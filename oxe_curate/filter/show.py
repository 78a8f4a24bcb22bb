"""What `filter` prints: kept and dropped episodes by reason, and warnings."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from oxe_curate.filter.tasks import lost_tasks
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import Index
from oxe_curate.quality.findings import sentences
from oxe_curate.ui.tables import ResultTable, counted, share_of


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


def filter_warnings(summaries: Mapping[str, Summary], index: str) -> list[str]:
    """What the table does not show: findings, data sets without a kept episode, copies, leaking splits, lost tasks."""
    lines = [f"{name}: no episode is kept." for name, summary in summaries.items() if summary.kept == 0]
    for name, summary in summaries.items():
        if summary.copies:
            kept = counted(summary.copies, "kept episode is a copy of another", "kept episodes are copies of others")
            lines.append(f"{name}: {kept} (--criterion duplicate=true drops copies).")
        lines += [
            f"{name}: {split} is not held out: {counted(count, 'episode is a copy', 'episodes are copies')} of train."
            for split, count in summary.leaks.items()
        ]
    opened = Index.open(index)
    for name, entry in opened.datasets.items():
        lines += sentences(entry.findings, name) if name in summaries else []
    for name, texts in lost_tasks(opened).items():
        if summaries[name].kept:
            shown = ", ".join(map(repr, texts[:5])) + (", …" if texts[5:] else "")
            lines.append(f"{name}: no episode is left of {counted(len(texts), 'task')}: {shown}")
    return lines
