"""The report's HTML, piece by piece: pure functions from numbers to text. The markup is in page.html.jinja."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from oxe_curate.filter.tasks import Tasks
from oxe_curate.index.index_json import DatasetEntry, Summary
from oxe_curate.report.actions import AXES, Actions, Histogram
from oxe_curate.report.gather import Gathered
from oxe_curate.report.thumbnails import Thumbnail
from oxe_curate.ui import svg
from oxe_curate.ui.svg import Mark, number

_TOP_TASKS = 30
_CHART_ORDER = (0, 1, 2, 6, 3, 4, 5)
"""Order of the action charts: x, y, z, gripper in one row of four, the rotation below."""
_LISTED = 20
"""Lost tasks and unreadable records that are listed one by one."""

Shown = Mapping[str | None, Sequence[tuple[Mapping[str, Any], Sequence[Thumbnail]]]]
"""reason (None: kept) -> (index row, thumbnails) of the episodes to show."""


def head(title: str) -> str:
    """Everything before the body."""
    return _render("head", title, Markup((files("oxe_curate.report") / "style.css").read_text()))


def overview(title: str, source: str, datasets: Mapping[str, DatasetEntry]) -> str:
    """Title and the table of all data sets."""
    total = Summary()
    for entry in datasets.values():
        total.add(entry.summary)
    return _render("overview", title, source, datasets, total)


def dataset(name: str, entry: DatasetEntry, found: Gathered, shown: Shown) -> str:
    """One data set's section."""
    charts = {"actions": _action_charts(found.actions), "episodes": _episode_charts(found)}
    return _render("dataset", name, entry, found, shown, _tiles(entry.summary, found), charts)


def foot(criteria: Mapping[str, Any], defaults: Mapping[str, Any], software: str) -> str:
    """Criteria, in bold where they differ from the defaults, and the end of the page."""
    return _render("foot", criteria, {**dict.fromkeys(criteria), **defaults}, software)


def anchor(name: str) -> str:
    """A data set's id on the page."""
    return "data-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def share(part: float, whole: float) -> str:
    """A percentage that is 0 or 100 only if it is exactly that."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    text = f"{percent:.1f}"
    if text == "100.0" and part != whole:
        text = "99.9"
    if text == "0.0" and part:
        text = "<0.1"
    return f"{text} %"


@functools.cache
def _macros() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("oxe_curate.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"thousands": "{:,}".format, "number": number, "yaml": _yaml}
    environment.globals |= {
        "anchor": anchor, "share": share, "by_reason": _by_reason, "ranked_tasks": _ranked, "axes": AXES,
        "listed": _LISTED,
    }  # fmt: skip
    return environment.get_template("page.html.jinja").module


def _render(macro: str, *values: Any) -> str:
    return str(getattr(_macros(), macro)(*values))


def _tiles(summary: Summary, found: Gathered) -> list[tuple[str, str]]:
    tiles = [
        (f"{summary.kept:,}", f"of {summary.seen:,} episodes kept"),
        (f"{summary.steps_kept:,}", f"of {summary.steps_seen:,} steps kept"),
        (f"{len(found.tasks.kept):,}", f"of {len(found.tasks.seen):,} tasks kept"),
    ]
    if "steps" in found.medians:
        tiles.append((number(found.medians["steps"]), "steps, median episode"))
    if "idle_share" in found.medians:
        tiles.append((f"{100 * found.medians['idle_share']:.0f} %", "idle steps, median episode"))
    if "path_length" in found.medians:
        tiles.append((number(found.medians["path_length"]), "path length, median episode"))
    return tiles


def _by_reason(summary: Summary) -> list[tuple[str, int, int, str]]:
    """Rows (reason, episodes, steps, CSS class of the bar)."""
    dropped = sorted(summary.dropped.items(), key=lambda item: -item[1][0])
    return [("kept", summary.kept, summary.steps_kept, ""), *((r, n, s, "dropped") for r, (n, s) in dropped)]


def _ranked(tasks: Tasks) -> list[tuple[str, int, int]]:
    """Rows (instruction, episodes, kept episodes) of the most frequent instructions."""
    ranked = heapq.nsmallest(_TOP_TASKS, tasks.seen.items(), key=lambda item: (-item[1], item[0]))
    return [(text, seen, tasks.kept[text]) for text, seen in ranked]


def _action_charts(actions: Actions | None) -> list[Markup]:
    if actions is None:
        return []
    charts = []
    for d in _CHART_ORDER:
        marks = [Mark(float(q[d]), "before") for q in (actions.seen.q01, actions.seen.q99)]
        if actions.kept is not None and actions.kept is not actions.seen:
            marks += [Mark(float(q[d]), "after") for q in (actions.kept.q01, actions.kept.q99)]
        text = f"1 % to 99 % of all steps: {number(actions.seen.q01[d])} to {number(actions.seen.q99[d])}"
        h = actions.histograms[d]
        charts.append(Markup(svg.histogram(AXES[d], h.edges, h.seen, h.kept, marks, text)))
    return charts


def _episode_charts(found: Gathered) -> list[Markup]:
    titles = {"Steps": found.lengths, "Share of idle steps": found.idle, "Path length": found.path}
    return [
        Markup(svg.histogram(title, h.edges, h.seen, h.kept, (), _in_words(h)))
        for title, h in titles.items()
        if h is not None
    ]


def _in_words(h: Histogram) -> str:
    filled = np.flatnonzero(h.seen)
    if not len(filled):
        return "no values"
    most = int(h.seen.argmax())
    return (
        f"{int(h.seen.sum()):,} episodes from {number(float(h.edges[filled[0]]))} to "
        f"{number(float(h.edges[filled[-1] + 1]))}, most between {number(float(h.edges[most]))} and "
        f"{number(float(h.edges[most + 1]))}"
    )


def _yaml(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )
