"""The Beam graph of `filter` and `tokenize`, the same on every runner."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from oxe_curate.beam.task import Share, Task, Work


def build_pipeline(pipeline: Any, elements: Sequence[Task] | Sequence[Share], work: Work) -> Any:
    """The Beam graph, the same on every runner: Create, Reshuffle, ParDo."""
    from oxe_curate.beam.fn import DoTask, beam

    return (
        pipeline
        | "Tasks" >> beam.Create(list(elements))
        | "Spread" >> beam.Reshuffle()
        | "Work" >> beam.ParDo(DoTask(work))
    )


def make_pipeline(elements: Sequence[Task] | Sequence[Share], work: Work, beam_args: Sequence[str], runner: Any) -> Any:
    """A pipeline with the graph; it starts with `run`.

    An element is a task where the runner spreads them, and a share in a process that has one: an element costs
    FnApiRunner a fifth of a millisecond and several copies of the task.
    """
    from oxe_curate.beam.fn import PipelineOptions, beam

    # a task's error is returned as its outcome; Beam would print it a second time
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if runner else logging.ERROR)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(beam_args)))
    build_pipeline(pipeline, elements, work)
    return pipeline
