"""The Beam graph of a job on other machines: task numbers, and a DoFn that reads the tasks from the output folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from oxe_curate.beam.fn import PipelineOptions, beam
from oxe_curate.beam.job import Job, tagged
from oxe_curate.beam.task import do
from oxe_curate.errors import CurateError


class DoNumbered(beam.DoFn):
    """Runs the task with a number and emits nothing: its output is a file, so a retry or a second run is harmless."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, number: int) -> list[None]:
        """Run one task. An error of the host ends the job: the same tasks would fail again."""
        try:
            task, work = self._job.load(number)
        except CurateError as error:
            raise tagged(error) from None
        do(task, work)
        return []


def remote_pipeline(job: Job, beam_args: Sequence[str]) -> Any:
    """A pipeline with the graph; it starts with `run`."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    pipeline = beam.Pipeline(options=PipelineOptions(list(beam_args)))
    (
        pipeline
        | "Tasks" >> beam.Create(range(job.tasks), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Work" >> beam.ParDo(DoNumbered(job))
    )  # fmt: skip
    return pipeline
