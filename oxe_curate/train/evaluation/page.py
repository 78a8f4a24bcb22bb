"""An evaluation as one HTML page that makes no network request: a table, then curves of whole episodes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
import numpy as np
import simplejpeg
from markupsafe import Markup
from numpy.typing import NDArray
from rich.text import Text

from oxe_curate import __version__
from oxe_curate.train.evaluation.curves import Chart, episode_charts
from oxe_curate.train.evaluation.scores import NAMES, UNITS, Scores, percent
from oxe_curate.ui.svg import number
from oxe_curate.ui.tables import Column, ResultTable


@dataclass(frozen=True)
class Drawn:
    """An episode to show.

    Attributes:
        steps: int64 (T,), ascending. target, predicted: float64 (T, 7), in metres and radians.
        frames: uint8 (n, S, S, 3), some frames of the first camera.
    """

    dataset: str
    episode_id: str
    instruction: str
    steps: NDArray[np.int64]
    target: NDArray[np.float64]
    predicted: NDArray[np.float64]
    frames: NDArray[np.uint8] = field(repr=False)


def evaluation_page(
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Scores],
    whole: Scores,
    episodes: Sequence[Drawn],
    notes: Sequence[str],
) -> str:
    """Render the page; the template escapes every text.

    Args:
        title: heading of the page.
        facts: name -> value, in the line below the title.
        scores: data set -> its scores.
        whole: of all steps.
        episodes: to show.
        notes: sentences on how the numbers were obtained.
    """
    return _template().render(
        title=title,
        facts=facts,
        scores=scores,
        whole=whole,
        drawn={name: [one for one in episodes if one.dataset == name] for name in scores},
        notes=notes,
        axes=list(zip(NAMES, UNITS, strict=True)),
        style=Markup((files("oxe_curate.report") / "style.css").read_text()),  # our own file
        version=__version__,
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("oxe_curate.train.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "percent": percent, "jpeg": _jpeg, "charts": _charts}
    return environment.get_template("page.html")


def _charts(episode: Drawn) -> list[Chart]:
    return episode_charts(episode.steps, episode.target, episode.predicted)


def _jpeg(frame: NDArray[np.uint8]) -> str:
    return base64.b64encode(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 80, colorspace="RGB")).decode()


def score_table(scores: Mapping[str, Scores], whole: Scores) -> ResultTable:
    """The scores as a table; x, y and z in millimetres."""
    shown = ResultTable(
        "Mean error of held-out episodes", "data set", Column("steps", optional=2), Column("share", optional=3),
        Column("tokens", optional=1), "x mm", "y mm", "z mm", "roll°", "pitch°", "yaw°", "gripper",
    )  # fmt: skip
    scale = np.where(np.array(UNITS) == "m", 1000, 1)[:6]
    entries = [*scores.items(), *([("all", whole)] if len(scores) > 1 else [])]
    for name, part in entries:
        cells = (f"{part.steps:,}", percent(part.share), percent(part.token_accuracy))
        errors = (number(e) for e in part.l1[:6] * scale)
        shown.add_row(name, *cells, *errors, percent(part.gripper_accuracy))
        plain = (Text(number(e), "dim") for e in part.constant_l1[:6] * scale)
        usual = Text(percent(part.constant_gripper_accuracy), "dim")
        shown.add_row(Text("  mean action", "dim"), "", "", "", *plain, usual)
    return shown
