"""The report's HTML, piece by piece: pure functions from numbers to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from oxe_curate.report.gather import AXES, Actions, Gathered, Histogram
from oxe_curate.report.thumbnails import Picture
from oxe_curate.ui import svg
from oxe_curate.ui.svg import Mark, number

TOP_TASKS = 30
DRAWN = (0, 1, 2, 6, 3, 4, 5)
"""Order of the action's charts: x, y, z, gripper in one row of four, the rotation below."""
LISTED = 20
"""Lost tasks and unreadable records that are listed one by one."""

Shown = Mapping[str | None, Sequence[tuple[Mapping[str, Any], Sequence[Picture]]]]
"""reason (None: kept) -> (index row, pictures) of the episodes that are shown."""


def head(title: str) -> str:
    """Everything before the body. The policy forbids every request, so that a page cannot tell who reads it."""
    style = (files("oxe_curate.report") / "style.css").read_text()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
    )


def overview(title: str, source: str, datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """Title and the table of all data sets."""
    rows = []
    total = {
        key: sum(entry[key] for entry in datasets.values()) for key in ("seen", "kept", "steps_seen", "steps_kept")
    }
    for name, entry in datasets.items():
        rows.append(f'<tr><th scope="row"><a href="#{anchor(name)}">{escape(name)}</a></th>{_counts(entry)}</tr>')
    if len(datasets) > 1:
        rows.append(f'<tr class="total"><th scope="row">all</th>{_counts(total)}</tr>')
    return (
        f"<header><h1>{escape(title)}</h1>"
        f'<p class="soft">What the filter kept and dropped of <code>{escape(source)}</code>, and why.</p></header>\n'
        "<main>\n"
        '<div class="scroll"><table class="counts"><caption>Episodes and steps of each data set</caption><thead><tr>'
        '<th scope="col">data set</th><th scope="col" class="num">episodes</th><th scope="col" class="num">kept</th>'
        '<th scope="col" class="num">share</th><th scope="col" class="bar"><span hidden>kept</span></th>'
        '<th scope="col" class="num wide">steps</th><th scope="col" class="num wide">kept</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _counts(entry: Mapping[str, Any]) -> str:
    return (
        f'<td class="num">{entry["seen"]:,}</td><td class="num">{entry["kept"]:,}</td>'
        f'<td class="num">{share(entry["kept"], entry["seen"])}</td>'
        f'<td class="bar">{_bar(entry["seen"], entry["seen"], entry["kept"])}</td>'
        f'<td class="num wide">{entry["steps_seen"]:,}</td><td class="num wide">{entry["steps_kept"]:,}</td>'
    )


def anchor(name: str) -> str:
    """A data set's place on the page."""
    return "data-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def share(part: float, whole: float) -> str:
    """A percentage that is 0 or 100 only when it is exactly that."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    text = f"{percent:.1f}"
    if text == "100.0" and part != whole:
        text = "99.9"
    if text == "0.0" and part:
        text = "<0.1"
    return escape(f"{text} %")


def _bar(value: float, largest: float, inside: float | None = None, kind: str = "") -> str:
    """A bar of `value`; with `inside`, a coloured part of a pale one."""
    width = 100 * value / largest if largest else 0
    empty = "" if value else " none"
    if inside is None:
        return f'<i class="{kind}{empty}" style="width:{width:.1f}%"></i>'
    part = 100 * inside / value if value else 0
    return (
        f'<i class="both{empty}" style="width:{width:.1f}%">'
        f'<i class="{"" if inside else "none"}" style="width:{part:.1f}%"></i></i>'
    )


def dataset(name: str, entry: Mapping[str, Any], found: Gathered, shown: Shown) -> str:
    """One data set's section."""
    parts = [
        f'<section class="dataset" id="{anchor(name)}"><h2>{escape(name)}</h2>',
        f'<p class="soft">version {escape(str(entry["version"]))}, splits {escape(", ".join(entry["splits"]))} · card '
        f"<code>{escape(str(entry['card']))}</code>, recipe {escape(str(entry['recipe']))}, verdict "
        f"{escape(str(entry['verdict']))}</p>",
        _tiles(entry, found),
        _warnings(entry, found),
        _reasons(entry),
        _actions(found.actions),
        _episodes(found),
        _tasks(found),
        _thumbnails(shown),
        _unreadable(entry["corrupt"]),
        "</section>\n",
    ]
    return "\n".join(part for part in parts if part)


def _tiles(entry: Mapping[str, Any], found: Gathered) -> str:
    tiles = [
        (f"{entry['kept']:,}", f"of {entry['seen']:,} episodes kept"),
        (f"{entry['steps_kept']:,}", f"of {entry['steps_seen']:,} steps kept"),
        (f"{len(found.tasks.kept):,}", f"of {len(found.tasks.seen):,} tasks kept"),
    ]
    if "steps" in found.medians:
        tiles.append((number(found.medians["steps"]), "steps, median episode"))
    if "idle_share" in found.medians:
        tiles.append((f"{100 * found.medians['idle_share']:.0f} %", "idle steps, median episode"))
    if "path_length" in found.medians:
        tiles.append((number(found.medians["path_length"]), "path length, median episode"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>' for a, b in tiles)
        + "</div>"
    )


def _warnings(entry: Mapping[str, Any], found: Gathered) -> str:
    texts = []
    if not entry["kept"]:
        texts.append("<p><b>Nothing is kept.</b></p>")
    lost = found.tasks.lost if entry["kept"] else []
    if lost:
        some = "".join(f"<li>{escape(text)} ({found.tasks.seen[text]:,})</li>" for text in lost[:LISTED])
        more = f"<li>… and {len(lost) - LISTED:,} more</li>" if len(lost) > LISTED else ""
        what = "A task disappears" if len(lost) == 1 else f"{len(lost):,} tasks disappear"
        texts.append(f"<p><b>{what}:</b> not one episode is kept that says</p><ul>{some}{more}</ul>")
    for split, copies in entry.get("leaks", {}).items():
        texts.append(
            f"<p><b>The split {escape(split)} is not held out:</b> {copies:,} of its episodes are copies of episodes "
            "of the train split. The criterion <code>duplicate: true</code> drops them.</p>"
        )
    copies = entry.get("copies", 0)
    if copies > sum(entry.get("leaks", {}).values()):
        texts.append(f"<p>{copies:,} kept episodes are copies of others.</p>")
    return "".join(f'<div class="warning">{text}</div>' for text in texts)


def _reasons(entry: Mapping[str, Any]) -> str:
    dropped = sorted(entry["dropped"].items(), key=lambda item: -item[1][0])
    rows = [("kept", entry["kept"], entry["steps_kept"], ""), *((r, n, s, "dropped") for r, (n, s) in dropped)]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="num">{episodes:,}</td>'
        f'<td class="num">{share(episodes, entry["seen"])}</td>'
        f'<td class="bar">{_bar(episodes, entry["seen"], kind=kind)}</td>'
        f'<td class="num">{steps:,}</td><td class="num">{share(steps, entry["steps_seen"])}</td></tr>'
        for name, episodes, steps, kind in rows
    )
    return (
        '<h3>Kept and dropped</h3><div class="scroll"><table class="counts"><caption>An episode counts under the first '
        'reason that holds</caption><thead><tr><th scope="col">reason</th><th scope="col" class="num">episodes</th>'
        '<th scope="col" class="num">share</th><th scope="col" class="bar"><span hidden>share</span></th>'
        '<th scope="col" class="num">steps</th><th scope="col" class="num">share</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _actions(actions: Actions | None) -> str:
    if actions is None:
        return '<h3>Actions</h3><p class="soft">There are no standardised actions: the card has no recipe.</p>'
    changed = actions.kept is not None and actions.kept is not actions.seen
    legend = [("", "all episodes"), ("line", "1 % and 99 % of all")]
    if changed:
        legend[1:1] = [("kept", "kept")]
        legend.append(("line after", "1 % and 99 % of the kept"))
    elif actions.kept is not None:
        legend[0] = ("kept", "all episodes are kept")
    charts = []
    for d in DRAWN:
        marks = [Mark(float(q[d]), "before") for q in (actions.seen.q01, actions.seen.q99)]
        if changed and actions.kept is not None:
            marks += [Mark(float(q[d]), "after") for q in (actions.kept.q01, actions.kept.q99)]
        told = f"1 % to 99 % of all steps: {number(actions.seen.q01[d])} to {number(actions.seen.q99[d])}"
        h = actions.histograms[d]
        charts.append(svg.histogram(AXES[d], h.edges, h.seen, h.kept, marks, told))
    keys = "".join(f'<li><span class="swatch {kind}"></span>{text}</li>' for kind, text in legend)
    return (
        '<h3>Actions</h3><p class="soft">Standardised: displacement a step (metres and radians, unless the data set '
        "uses its own units), gripper 1 = open. Heights are square roots of counts; values further outside the 1 % … "
        f'99 % range than a quarter of it stand in the outermost bars.</p><ul class="legend">{keys}</ul>'
        f'<div class="charts">{"".join(charts)}</div>{_statistics(actions)}'
    )


def _statistics(actions: Actions) -> str:
    columns = ("q01", "q99", "min", "max", "mean", "std")
    names = ("1 %", "99 %", "least", "greatest", "mean", "std")
    pairs = [("all", actions.seen)]
    if actions.kept is not None and actions.kept is not actions.seen:
        pairs.append(("kept", actions.kept))
    rows = []
    for d, axis in enumerate(AXES):
        for what, summary in pairs:
            cells = "".join(f'<td class="num">{number(float(getattr(summary, c)[d]))}</td>' for c in columns)
            label = f"{axis}, {what}" if len(pairs) > 1 else axis
            rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col" class="num">{n}</th>' for n in names)
    return (
        '<details><summary class="soft">The same in numbers</summary><div class="scroll"><table><caption>Statistics of '
        f'each action dimension over steps</caption><thead><tr><th scope="col">dimension</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _episodes(found: Gathered) -> str:
    titles = {"Steps": found.lengths, "Share of idle steps": found.idle, "Path length": found.path}
    charts = [
        svg.histogram(title, h.edges, h.seen, h.kept, (), _in_words(h)) for title, h in titles.items() if h is not None
    ]
    if not charts:
        return ""
    return (
        '<h3>Episodes</h3><p class="soft">Idle: neither pose nor gripper moves, by OpenVLA\'s rule for LIBERO. Path '
        "length: sum of the displacements, in the units of x, y and z. Pale: all episodes.</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


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


def _tasks(found: Gathered) -> str:
    ranked = sorted(found.tasks.seen.items(), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return '<h3>Tasks</h3><p class="soft">No episode has an instruction.</p>'
    largest = ranked[0][1]
    rows = "".join(
        f'<tr><th scope="row">{escape(text)}</th><td class="bar">{_bar(n, largest, found.tasks.kept[text])}</td>'
        f'<td class="num">{found.tasks.kept[text]:,}</td><td class="num">{n:,}</td></tr>'
        for text, n in ranked[:TOP_TASKS]
    )
    others = ranked[TOP_TASKS:]
    rest = ""
    if others:
        kept = sum(found.tasks.kept[text] for text, _ in others)
        rest = (
            f'<tr class="soft"><th scope="row">{len(others):,} other tasks</th><td class="bar"></td>'
            f'<td class="num">{kept:,}</td><td class="num">{sum(n for _, n in others):,}</td></tr>'
        )
    return (
        '<h3>Tasks</h3><div class="scroll"><table><caption>Episodes by instruction, the most frequent first</caption>'
        '<thead><tr><th scope="col">instruction</th><th scope="col" class="bar"><span hidden>episodes</span></th>'
        '<th scope="col" class="num">kept</th><th scope="col" class="num">all</th></tr></thead>'
        f"<tbody>{rows}{rest}</tbody></table></div>"
    )


def _thumbnails(shown: Shown) -> str:
    parts = ["<h3>Examples</h3>"]
    for reason, episodes in shown.items():
        if not episodes:
            continue
        single = all(len(pictures) < 2 for _, pictures in episodes)
        figures = "".join(_figure(row, pictures) for row, pictures in episodes)
        title = "Kept" if reason is None else f"Dropped: {escape(reason)}"
        parts.append(f'<h4>{title}</h4><div class="episodes{" single" if single else ""}">{figures}</div>')
    return "".join(parts) if len(parts) > 1 else ""


def _figure(row: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    text = row["instruction"] or "no instruction"
    strip = []
    for picture in pictures:
        if picture.problem:
            strip.append(f'<div class="missing">{escape(picture.problem)}</div>')
            continue
        alt = escape(f"{picture.role} camera at step {picture.step}: {text}", quote=True)
        strip.append(f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{alt}">')
    name = "/".join(row["episode_id"].split("/")[-3:])
    words = escape(text) if row["instruction"] else '<span class="soft">no instruction</span>'
    return (
        f'<figure class="episode"><div class="strip">{"".join(strip)}</div><figcaption>{words}'
        f"<code>{escape(name)} · {row['num_steps']:,} steps</code></figcaption></figure>"
    )


def _unreadable(corrupt: Sequence[str]) -> str:
    if not corrupt:
        return ""
    items = "".join(f"<li><code>{escape(line)}</code></li>" for line in corrupt[:LISTED])
    more = f"<li>… and {len(corrupt) - LISTED:,} more</li>" if len(corrupt) > LISTED else ""
    return f'<h3>Unreadable records</h3><p>Left out by --skip-corrupt.</p><ul class="plain">{items}{more}</ul>'


def foot(criteria: Mapping[str, Any], defaults: Mapping[str, Any], software: str) -> str:
    """Criteria, those that differ from the defaults in bold, and the end of the page."""
    rows = []
    for key, value in criteria.items():
        changed = value != defaults.get(key)
        cell = f"<b>{escape(_yaml(value))}</b>" if changed else escape(_yaml(value))
        rows.append(
            f'<tr><th scope="row"><code>{escape(key)}</code></th><td>{cell}</td>'
            f'<td class="soft">{escape(_yaml(defaults.get(key))) if changed else ""}</td></tr>'
        )
    return (
        '<section class="dataset"><h2>Criteria</h2><div class="scroll"><table class="criteria">'
        "<caption>As they can stand in a file for --criteria; the default is given where it differs</caption>"
        '<thead><tr><th scope="col">key</th><th scope="col">value</th><th scope="col">default</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>\n</main>\n"
        f"<footer>Written by {escape(software)}.</footer>\n</body>\n</html>\n"
    )


def _yaml(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )
