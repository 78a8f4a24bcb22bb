"""An evaluation as one HTML page without a request to the network: table, then curves of whole episodes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from oxe_curate import __version__
from oxe_curate.report.page import anchor, head, share
from oxe_curate.train.evaluation import curves
from oxe_curate.train.evaluation.scores import NAMES, UNITS, Scores
from oxe_curate.ui.svg import number


@dataclass(frozen=True)
class Drawn:
    """An episode to be shown.

    Attributes:
        steps: int64 (T,), ascending. target, predicted: float64 (T, 7), in metres and radians.
        frames: uint8 (n, S, S, 3), a few of what the first camera saw.
    """

    dataset: str
    episode_id: str
    instruction: str
    steps: NDArray[np.int64]
    target: NDArray[np.float64]
    predicted: NDArray[np.float64]
    frames: NDArray[np.uint8] = field(repr=False)


def page(
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Scores],
    whole: Scores,
    episodes: Sequence[Drawn],
    notes: Sequence[str],
) -> str:
    """The page.

    Args:
        title: stands above.
        facts: name -> value, in the line below the title.
        scores: data set -> its scores.
        whole: of all steps.
        episodes: those drawn.
        notes: sentences on how the numbers came to be.
    """
    line = " · ".join(f"{escape(name)} <code>{escape(value)}</code>" for name, value in facts.items())
    parts = [
        head(title).replace("</style>", f"{curves.STYLE}</style>"),
        f'<header><h1>{escape(title)}</h1><p class="soft">{line}</p></header>\n<main>\n',
        _tiles(whole, len(scores)),
        _table(scores, whole),
        "".join(f'<p class="soft">{escape(note)}</p>' for note in notes),
    ]
    for name in scores:
        mine = [episode for episode in episodes if episode.dataset == name]
        if mine:
            parts.append(_section(name, mine))
    parts.append(f"</main>\n<footer>Written by oxe-curate {escape(__version__)}.</footer>\n</body>\n</html>\n")
    return "".join(parts)


def _tiles(whole: Scores, datasets: int) -> str:
    gripper = _percent(whole.gripper_accuracy)
    tiles = [
        (f"{100 * whole.token_accuracy:.1f} %", "action-token accuracy"),
        (f"{number(1000 * float(np.mean(whole.l1[:3])))} mm", "mean error of x, y, z"),
        (f"{number(float(np.mean(whole.l1[3:6])))}°", "mean error of roll, pitch, yaw"),
        (gripper, "gripper on the right side"),
        (f"{whole.steps:,}", f"steps of {datasets} data set{'s' * (datasets != 1)}"),
    ]
    cells = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{cells}</div>'


def _table(scores: Mapping[str, Scores], whole: Scores) -> str:
    heads = "".join(
        f'<th scope="col" class="num">{escape(name)}{f" [{escape(unit)}]" if unit else ""}</th>'
        for name, unit in zip(NAMES, UNITS, strict=True)
    )
    rows = [_rows(name, part, True) for name, part in scores.items()]
    if len(scores) > 1:
        rows.append(_rows("all", whole, False))
    return (
        '<h3>Errors</h3><div class="scroll"><table><caption>Mean absolute error of each dimension. A number in another '
        "colour is no better than always doing the data set's mean action.</caption><thead><tr>"
        '<th scope="col">data set</th><th scope="col" class="num">steps</th><th scope="col" class="num">share</th>'
        f'<th scope="col" class="num">tokens</th>{heads}<th scope="col" class="num">gripper right</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _rows(name: str, scores: Scores, linked: bool) -> str:
    label = f'<a href="#{anchor(name)}">{escape(name)}</a>' if linked else escape(name)
    cells = "".join(
        f'<td class="num{" worse" if error >= constant else ""}">{number(error)}</td>'
        for error, constant in zip(scores.l1, scores.constant_l1, strict=True)
    )
    kind = "" if linked else ' class="total"'
    rows = (
        f'<tr{kind}><th scope="row">{label}</th><td class="num">{scores.steps:,}</td>'
        f'<td class="num">{share(scores.share, 1)}</td><td class="num">{100 * scores.token_accuracy:.1f} %</td>{cells}'
        f'<td class="num">{_percent(scores.gripper_accuracy)}</td></tr>'
    )
    further = [("the mean action", scores.constant_l1, _percent(scores.constant_gripper_accuracy))]
    if scores.chunk_l1 is not None:
        further.append(("whole chunks", scores.chunk_l1, ""))
    for what, errors, right in further:
        plain = "".join(f'<td class="num">{number(error)}</td>' for error in errors)
        rows += (
            f'<tr class="soft"><th scope="row">&emsp;{what}</th><td></td><td></td><td></td>{plain}'
            f'<td class="num">{right}</td></tr>'
        )
    return rows


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _section(name: str, episodes: Sequence[Drawn]) -> str:
    parts = [f'<section class="dataset" id="{anchor(name)}"><h2>{escape(name)}</h2>', curves.LEGEND]
    for episode in episodes:
        text = escape(episode.instruction) or '<span class="soft">no instruction</span>'
        parts.append(
            f'<div class="episode-curves"><h3>{text}</h3><code class="soft">{escape(episode.episode_id)} · '
            f"{len(episode.steps):,} steps</code>{_frames(episode)}"
            f"{curves.episode(episode.steps, episode.target, episode.predicted)}</div>"
        )
    return "\n".join([*parts, "</section>\n"])


def _frames(episode: Drawn) -> str:
    pictures = []
    for i, frame in enumerate(episode.frames):
        data = base64.b64encode(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 80, colorspace="RGB")).decode()
        alt = f"frame {i + 1} of {len(episode.frames)}: {episode.instruction}"
        pictures.append(
            f'<img src="data:image/jpeg;base64,{data}" width="{frame.shape[1]}" height="{frame.shape[0]}" '
            f'alt="{escape(alt, quote=True)}">'
        )
    return f'<div class="frames">{"".join(pictures)}</div>' if pictures else ""


def score_table(scores: Mapping[str, Scores], whole: Scores) -> Any:
    """The same in short for a terminal of 80 columns (rich): x, y and z in millimetres."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("data set", overflow="ellipsis", no_wrap=True, min_width=13)
    for name in ("steps", "share", "tokens", "x mm", "y mm", "z mm", "roll°", "pitch°", "yaw°", "gripper"):
        shown.add_column(name, justify="right", no_wrap=True)
    scale = np.where(np.array(UNITS) == "m", 1000, 1)[:6]
    entries = [*scores.items(), *([("all", whole)] if len(scores) > 1 else [])]
    for name, part in entries:
        right, usual = _percent(part.gripper_accuracy), _percent(part.constant_gripper_accuracy)
        cells = (f"{part.steps:,}", f"{100 * part.share:.1f} %", f"{100 * part.token_accuracy:.1f} %")
        shown.add_row(Text(name), *cells, *(number(e) for e in part.l1[:6] * scale), right)
        plain = (Text(number(e), "dim") for e in part.constant_l1[:6] * scale)
        shown.add_row(Text(" mean action", "dim"), "", "", "", *plain, Text(usual, "dim"))
    return shown
