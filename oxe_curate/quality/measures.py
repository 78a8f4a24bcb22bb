"""All measures, in the order in which their criteria are decided."""

from __future__ import annotations

from oxe_curate.quality.copies import NearCopies
from oxe_curate.quality.endings import Endings
from oxe_curate.quality.explained import ExplainedMotion
from oxe_curate.quality.frozen import FrozenFrames
from oxe_curate.quality.idling import Idling
from oxe_curate.quality.in_step import InStep
from oxe_curate.quality.measure import Measure
from oxe_curate.quality.pictures import Pictures
from oxe_curate.quality.states import StateValues
from oxe_curate.quality.values import ActionValues, FullTurns
from oxe_curate.quality.views import Views
from oxe_curate.quality.words import Words
from oxe_curate.quality.wrong_text import ChangingText, WrongText

MEASURES: tuple[Measure, ...] = (
    ExplainedMotion(),
    ActionValues(),
    FullTurns(),
    StateValues(),
    Idling(),
    Endings(),
    NearCopies(),
    FrozenFrames(),
    Pictures(),
    Views(),
    InStep(),
    Words(),
    ChangingText(),
    WrongText(),
)
