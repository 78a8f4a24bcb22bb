"""The report's HTML, piece by piece: pure functions from numbers to text. The markup is in page.html.jinja."""

from __future__ import annotations

import base64
import functools
import hashlib
import heapq
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from oxe_curate.filter.tasks import Tasks
from oxe_curate.index.index_json import DatasetEntry, Judged, Summary
from oxe_curate.report import words
from oxe_curate.report.actions import AXES, Actions, Histogram, count
from oxe_curate.report.entries import brief
from oxe_curate.report.gather import Gathered
from oxe_curate.report.reasons import Criterion
from oxe_curate.ui import svg
from oxe_curate.ui.svg import Mark, number
from oxe_curate.ui.tables import counted

_TOP_TASKS = 30
_FEWEST = 5
"""Values above the limit that make a histogram worth its place."""
_CHART_ORDER = (0, 1, 2, 6, 3, 4, 5)
"""Order of the action charts: x, y, z, gripper in one row of four, the rotation below."""
_LISTED = 20
"""Lost tasks, unreadable records and data sets of a criterion that are listed one by one."""


def head(title: str) -> str:
    """Everything before the body."""
    return _render("head", title, Markup(_file("style.css") + _file("page.css")), _script_hash())


def overview(title: str, source: str, total: Summary, marked: int, datasets: int, strict: str) -> str:
    """Title, the counts of the whole index, and links to the parts of the page.

    Args:
        title: of the page.
        source: root of the data sets.
        total: counts of all data sets.
        marked: kept episodes with a mark.
        datasets: how many.
        strict: the command that applies the preset `strict`.
    """
    return _render("overview", title, source, total, marked, datasets, strict)


def datasets(rows: Sequence[str]) -> str:
    """The list of data sets: the results of `dataset`."""
    return _render("datasets", [Markup(row) for row in rows])


def dataset(name: str, entry: DatasetEntry, found: Gathered, nothing: Sequence[str]) -> str:
    """One data set: a row of the list, and what is shown when it is opened.

    Args:
        name: of the data set.
        entry: in index.json.
        found: its numbers.
        nothing: why it kept nothing, in sentences.
    """
    charts = {"actions": _action_charts(found.actions), "episodes": _episode_charts(found)}
    shown = words.findings(entry)
    return _render("dataset", name, entry, found, _tiles(entry.summary, found), charts, nothing, shown)


def criteria(found: Sequence[Criterion]) -> str:
    """One section for each criterion that drops or marks episodes."""
    charts = [Markup(_excess_chart(one)) for one in found]
    return _render("criteria", list(zip(found, charts, strict=True)))


def episodes(entries: Sequence[Mapping[str, Any]], sampled: str) -> str:
    """The browser of episodes, and the episodes as JSON.

    Args:
        entries: of `report.entries`.
        sampled: which episodes they are, in words.
    """
    data = json.dumps(list(entries), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _render("episodes", Markup(data.replace("<", "\\u003c")), sampled, len(entries))


def foot(criteria: Mapping[str, Any], defaults: Mapping[str, Any], software: str) -> str:
    """Criteria, in bold where they differ from the defaults, the script, and the end of the page."""
    return _render("foot", criteria, {**dict.fromkeys(criteria), **defaults}, software, Markup(_file("page.js")))


def _file(name: str) -> str:
    return (files("oxe_curate.report") / name).read_text(encoding="utf-8")


def _script_hash() -> str:
    """Of page.js, the only script that the page allows."""
    return base64.b64encode(hashlib.sha256(_file("page.js").encode()).digest()).decode()


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
    filters: dict[str, Any] = {
        "thousands": "{:,}".format, "number": number, "yaml": words.yaml, "prose": _prose, "brief": brief,
    }  # fmt: skip
    environment.filters |= filters
    environment.globals |= {
        "anchor": anchor, "share": share, "by_reason": _by_reason, "ranked_tasks": _ranked, "axes": AXES,
        "by_marks": _by_marks, "listed": _LISTED, "counted": counted, "meaning": words.meaning,
    }  # fmt: skip
    return environment.get_template("page.html.jinja").module


def _prose(text: str) -> Markup:
    """A sentence with its `code` in the font of code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


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


def _by_marks(judged: Mapping[str, Judged]) -> list[tuple[str, Judged]]:
    """The criteria that mark or drop the most come first."""
    return sorted(judged.items(), key=lambda item: -item[1].marked - item[1].dropped)


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


def _excess_chart(one: Criterion) -> str:
    """Histogram of the values above the limit, in multiples of it; empty if there are few."""
    values = one.excess
    if len(values) < _FEWEST or not values.max() > values.min():
        return ""
    top = min(float(values.max()), 1.5 * float(np.quantile(values, 0.95)))
    edges = np.linspace(min(0.0, float(values.min())), max(top, 1.01), 61)
    h = Histogram(edges, counts := count(values, edges), counts)
    return svg.histogram("Value / limit", h.edges, h.seen, h.kept, [Mark(1.0, "after")], _in_words(h))


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
