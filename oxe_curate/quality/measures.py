"""All measures, in the order in which their criteria are decided."""

from __future__ import annotations

from oxe_curate.quality.frozen import FrozenFrames
from oxe_curate.quality.in_step import InStep
from oxe_curate.quality.measure import Measure
from oxe_curate.quality.pictures import Pictures
from oxe_curate.quality.views import Views
from oxe_curate.quality.words import Words
from oxe_curate.quality.wrong_text import WrongText

MEASURES: tuple[Measure, ...] = (
    FrozenFrames(),
    Pictures(),
    Views(),
    InStep(),
    Words(),
    WrongText(),
)
