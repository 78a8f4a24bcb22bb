"""All measures, in the order in which their criteria are decided."""

from __future__ import annotations

from oxe_curate.quality.measure import Measure

MEASURES: tuple[Measure, ...] = ()
