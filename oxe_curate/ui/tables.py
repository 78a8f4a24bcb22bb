"""What the commands print: results as tables, on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from oxe_curate.index.index_json import Summary

AXES = ("x mm", "y mm", "z mm", "roll °", "pitch °", "yaw °", "gripper")


def console() -> Console:
    """Standard output; 100 columns where it is not a terminal, so that logs and pipes read alike."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=100)


def show_command(screen: Console, command: str) -> None:
    """Show a command that a reader can type as it stands."""
    screen.print(f"\n$ {command}", style="bold cyan", markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def filtered(summaries: Mapping[str, Summary]) -> Table:
    """Kept and dropped by reason, per data set."""
    table = _table("Episodes kept and dropped", "data set", "episodes", "share", "steps", "share")
    for name, summary in summaries.items():
        table.add_row(Text(name, "bold"), f"{summary.seen:,}", "", f"{summary.steps_seen:,}", "")
        table.add_row(
            Text("  kept", "green" if summary.kept else "red"),
            *_counts(summary.kept, summary.steps_kept, summary),
        )
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
    return [f"{episodes:,}", _share(episodes, summary.seen), f"{steps:,}", _share(steps, summary.steps_seen)]


def filter_warnings(summaries: Mapping[str, Summary], index: str) -> list[str]:
    """What the table does not show: data sets that vanish, copies, leaking splits, tasks that disappear."""
    from oxe_curate.filter.tasks import lost_tasks
    from oxe_curate.index.store import Index

    lines = [f"{name}: nothing is kept." for name, summary in summaries.items() if summary.kept == 0]
    for name, summary in summaries.items():
        if summary.copies:
            lines.append(f"{name}: {summary.copies:,} kept episodes are copies of others (--criterion duplicate=true).")
        lines += [
            f"{name}: {count:,} episodes of {split} are copies of train episodes: it is not held out."
            for split, count in summary.leaks.items()
        ]
    for name, texts in lost_tasks(Index.open(index)).items():
        if summaries[name].kept:
            shown = ", ".join(map(repr, texts[:5])) + (" …" if texts[5:] else "")
            lines.append(f"{name}: {len(texts)} tasks disappear: {shown}")
    return lines


def tokenized(manifest: Mapping[str, Any]) -> Group:
    """Rows and shares per data set, and what binning loses."""
    rows = manifest["rows"]
    drawn = _table(f"Mixture {manifest['mixture']}", "data set", "weight", "train", "validation", "asked", "drawn")
    for name, share in manifest["share"].items():
        drawn.add_row(
            name, f"{share['weight']:g}", f"{rows['train'].get(name, 0):,}", f"{rows['validation'].get(name, 0):,}",
            f"{100 * share['asked']:.2f} %", f"{100 * share['drawn']:.2f} %",
        )  # fmt: skip
    lost = _table("Mean error of bins and back, and share of values outside the bounds", "data set", *AXES)
    for name, report in manifest["round_trip"].items():
        axes = report["dimensions"]
        lost.add_row(name, *(_error(axis) for axis in axes))
        lost.add_row(Text("  outside", "dim"), *(Text(f"{100 * axis['share_clipped']:.1f} %", "dim") for axis in axes))
    return Group(drawn, *_texts(manifest), *_frames(manifest), lost)


def _texts(manifest: Mapping[str, Any]) -> list[Table]:
    """Image-text sources, where the mixture has any."""
    if "texts" not in manifest:
        return []
    table = _table("Image-text rows", "source", "weight", "rows", "drawn", "of all training rows")
    for name, text in manifest["texts"].items():
        table.add_row(
            name, f"{text['weight']:g}", f"{text['rows']:,}", f"{text['drawn']:,}", f"{100 * text['share']:.2f} %"
        )
    return [table]


def _frames(manifest: Mapping[str, Any]) -> list[Text]:
    """How often a frame is stored, where samples are windows."""
    counts = [split for split in manifest.get("frames", {}).values() if split["distinct"]]
    if not counts:
        return []
    stored, distinct, size, once = (
        sum(c[k] for c in counts) for k in ("stored", "distinct", "bytes", "distinct_bytes")
    )
    line = f"{stored:,} frames stored of {distinct:,} different ones: {stored / distinct:.2f} copies each"
    return [Text(f"{line}, {size / 1e6:,.1f} MB of images instead of {once / 1e6:,.1f} MB.\n")]


def _error(axis: Mapping[str, Any]) -> str:
    if axis["constant"]:
        return "constant"
    return f"{axis['mean_error'] * (1000 if axis['unit'] == 'm' else 1):.2g}"


def datasets_table(rows: list[dict[str, Any]], width: int = 100) -> Table:
    """The cards, one line each; robot and cameras where `width` characters leave room for them."""
    wide = width >= 150
    columns = ["data set", "verdict", *(["robot", "cameras"] if wide else []), "Hz", "episodes", "why"]
    table = _table(f"{len(rows)} data sets", *columns)
    for i, column in enumerate(table.columns):
        column.justify = "right" if columns[i] in ("Hz", "episodes") else "left"
        column.overflow = "ellipsis"
        column.max_width = {"data set": 34, "robot": 22, "cameras": 30}.get(columns[i])
    # the longest column gives way: rich would take from all alike
    table.columns[-1].max_width = width - 34 - 11 - 4 - 9 - 10 - (56 if wide else 0)
    colours = {"pass": "green", "fail": "red", "conditional": "yellow", "unknown": "dim"}
    for row in rows:
        cameras = (role if len(keys) == 1 else f"{role} x{len(keys)}" for role, keys in row["cameras"].items())
        middle = [row["robot"], ", ".join(cameras)] if wide else []
        table.add_row(
            row["name"], Text(row["verdict"], colours[row["verdict"]]), *middle,
            f"{row['control_hz']:g}" if row["control_hz"] else "", f"{row['episodes']:,}" if row["episodes"] else "",
            row["reason"],
        )  # fmt: skip
    return table


def datasets_markdown(rows: list[dict[str, Any]]) -> str:
    """The cards as a Markdown table."""
    lines = ["| data set | verdict | robot | cameras | Hz | episodes | why |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        hz = f"{row['control_hz']:g}" if row["control_hz"] else ""
        cells = [
            row["name"],
            row["verdict"],
            row["robot"],
            ", ".join(row["cameras"]),
            hz,
            row["episodes"] or "",
            row["reason"],
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def chosen_tokens(report: list[dict[str, Any]]) -> Table:
    """The tokens that a rule chose, the first and last of them."""
    table = _table(f"{len(report)} action tokens", "bin", "token", "piece", "count", "why")
    for row in report[:12] + report[-4:]:
        table.add_row(str(row["bin"]), str(row["token_id"]), repr(row["piece"]), str(row["count"]), row["why"])
    return table
