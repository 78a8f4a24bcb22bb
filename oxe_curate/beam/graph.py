"""The Beam graph of `filter` and `tokenize`, the same on every runner."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from oxe_curate.beam.task import Task, Work


def build_pipeline(pipeline: Any, tasks: Sequence[Task], work: Work) -> Any:
    """The Beam graph, the same on every runner: Create, Reshuffle, ParDo."""
    from oxe_curate.beam.fn import DoTask, beam

    return (
        pipeline
        | "Tasks" >> beam.Create(list(tasks))
        | "Spread" >> beam.Reshuffle()
        | "Work" >> beam.ParDo(DoTask(work))
    )


def make_pipeline(tasks: Sequence[Task], work: Work, beam_args: Sequence[str], runner: Any) -> Any:
    """A pipeline with the graph; it starts with `run`."""
    from oxe_curate.beam.fn import PipelineOptions, beam

    # a task's error is returned as its outcome; Beam would print it a second time
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if runner else logging.ERROR)
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(beam_args)))
    build_pipeline(pipeline, tasks, work)
    return pipeline
