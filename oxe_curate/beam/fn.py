"""The parts of Beam that the project uses, and the DoFn of both pipelines: an element is a task, never an image."""

from __future__ import annotations

import logging
from typing import Any

logging.disable(logging.WARNING)  # Beam warns about missing cloud clients
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # noqa: E402

logging.disable(logging.NOTSET)

from oxe_curate.beam.task import Share, Work, do_all  # noqa: E402
from oxe_curate.storage import StoreOptions  # noqa: E402


class DoTask(beam.DoFn):
    """Runs a task and emits nothing: its output is a file, so a retry or a second run is harmless."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._store = StoreOptions.current()  # pickled, for workers on other machines

    def process(self, element: Any) -> list[None]:
        """Run a task, or a share of them."""
        self._store.apply()
        do_all(element.tasks if isinstance(element, Share) else (element,), self._work)
        return []


__all__ = ["DoTask", "FnApiRunner", "PipelineOptions", "StandardOptions", "beam"]
