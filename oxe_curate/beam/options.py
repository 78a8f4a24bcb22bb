"""Options after `--` on the command line: Beam's own, and two for jobs on other machines."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oxe_curate.errors import ConfigError, did_you_mean

_HERE = ("", "fnapirunner", "directrunner", "direct")
_DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
_REMOTE = {
    "dask": _DASK,
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "portable": "PortableRunner",
    "prism": "PrismRunner",
    "spark": "SparkRunner",
}
_WITH_JOB_SERVER = ("flink", "portable", "prism", "spark")


@dataclass(frozen=True)
class Patience:
    """How long a command waits for other machines, in seconds.

    Attributes:
        workers: while the cluster has no worker.
        answer: for an answer of the scheduler or job server.
    """

    workers: float = 600
    answer: float = 60


def runner_name(beam_args: Sequence[str]) -> str:
    """Return the runner named in the options, "" for none."""
    pairs = itertools.pairwise([*beam_args, ""])
    named = [after if a == "--runner" else a[9:] for a, after in pairs if a == "--runner" or a.startswith("--runner=")]
    return named[-1] if named else ""


def is_here(beam_args: Sequence[str]) -> bool:
    """Whether the tasks run on this machine, in processes of the command."""
    return runner_name(beam_args).lower() in _HERE


def runner_kind(beam_args: Sequence[str]) -> str:
    """Return "dask", "dataflow", "flink", "portable", "prism" or "spark"; the class name of another runner."""
    name = runner_name(beam_args).rpartition(".")[2]
    short = name.lower().removesuffix("runner")
    return short if short in _REMOTE else name


def split_options(beam_args: Sequence[str]) -> tuple[list[str], Patience]:
    """Separate Beam's options, with the full name of the runner, from those of `Patience`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--wait_for_workers", type=float, default=Patience.workers, dest="workers")
    parser.add_argument("--wait_for_answer", type=float, default=Patience.answer, dest="answer")
    try:
        known, others = parser.parse_known_args(list(beam_args))
    except argparse.ArgumentError as error:
        raise ConfigError(f"invalid Beam options after --: {error}") from None
    name, kind = runner_name(others), runner_kind(others)
    full = _REMOTE.get(kind, name) if "." not in name else name
    replaced = [a for a, before in zip(others, ["", *others], strict=False) if "--runner" not in (a, before)]
    kept = [a for a in replaced if not a.startswith("--runner=")]
    return [*kept, *([f"--runner={full}"] if full else [])], Patience(**vars(known))


def check_beam_options(beam_args: Sequence[str]) -> None:
    """Raise ConfigError for an unknown runner, or an unknown or invalid option; Beam itself ignores unknown ones.

    A job server has options of its own, so `refuse_unknown` checks those while the job is submitted.
    """
    if not beam_args:
        return
    from oxe_curate.beam.fn import PipelineOptions

    if not is_here(beam_args):
        beam_args = split_options(beam_args)[0]
    _check_runner(runner_name(beam_args))
    unknown = contextlib.nullcontext() if runner_kind(beam_args) in _WITH_JOB_SERVER else refuse_unknown()
    try:
        with unknown, contextlib.redirect_stderr(io.StringIO()) as usage:
            PipelineOptions(list(beam_args)).get_all_options(
                retain_unknown_options=runner_kind(beam_args) in _WITH_JOB_SERVER
            )
    except SystemExit:
        problem = usage.getvalue().strip().rsplit("error: ", 1)[-1]
        raise ConfigError(f"invalid Beam options after --: {problem}") from None


@contextlib.contextmanager
def refuse_unknown() -> Iterator[None]:
    """In the block, raise ConfigError where Beam warns that it ignores an option."""

    def refuse(record: logging.LogRecord) -> None:
        raise ConfigError(f"invalid Beam options after --: {record.getMessage()}")

    handler = logging.Handler()
    handler.emit = refuse  # type: ignore[method-assign]
    logger = logging.getLogger("apache_beam.options.pipeline_options")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def _check_runner(name: str) -> None:
    """Raise ConfigError for an unknown runner. Importing its module registers its options."""
    from oxe_curate.beam.fn import StandardOptions

    known = {full.rpartition(".")[2].lower(): full for full in StandardOptions.ALL_KNOWN_RUNNERS}
    module, _, runner = known.get(name.lower(), name).rpartition(".")
    if name.lower() not in _HERE and not module:
        names = [full.rpartition(".")[2] for full in known.values()]
        raise ConfigError(f"Beam has no runner {name!r}. {did_you_mean(name, [*names, 'DaskRunner'])}")
    if module and name.lower() not in _HERE:
        try:
            found = hasattr(importlib.import_module(module), runner)
        except ImportError as error:
            raise ConfigError(f"Beam's runner {name} cannot be imported: {error}") from None
        if not found:
            raise ConfigError(f"Beam's module {module} has no runner {runner!r}")
