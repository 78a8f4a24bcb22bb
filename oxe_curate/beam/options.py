"""Beam's own options, as they follow `--` on the command line."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import logging
from collections.abc import Sequence

from oxe_curate import errors


def runner_name(beam_args: Sequence[str]) -> str:
    """The runner that the options name, "" for none."""
    pairs = itertools.pairwise([*beam_args, ""])
    named = [after if a == "--runner" else a[9:] for a, after in pairs if a == "--runner" or a.startswith("--runner=")]
    return named[-1] if named else ""


def check_beam_options(beam_args: Sequence[str]) -> None:
    """Raise ConfigError for an option that Beam does not know or cannot read; Beam itself passes over the former."""
    if not beam_args:
        return
    from oxe_curate.beam.fn import PipelineOptions

    module = runner_name(beam_args).rpartition(".")[0]
    if module:  # a runner's options are known once it is imported
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise errors.ConfigError(f"Beam's runner {runner_name(beam_args)} cannot be imported: {error}") from None
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("apache_beam.options.pipeline_options")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        with contextlib.redirect_stderr(io.StringIO()) as usage:
            PipelineOptions(list(beam_args)).get_all_options()
    except SystemExit:
        said.append(usage.getvalue().strip().rsplit("error: ", 1)[-1])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    if said:
        raise errors.ConfigError(f"Beam refuses the options after --: {said[0]}")
