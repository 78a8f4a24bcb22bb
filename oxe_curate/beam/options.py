"""Beam's own options, given after `--` on the command line."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import logging
from collections.abc import Sequence

from oxe_curate import errors


def runner_name(beam_args: Sequence[str]) -> str:
    """Return the runner named in the options, "" for none."""
    pairs = itertools.pairwise([*beam_args, ""])
    named = [after if a == "--runner" else a[9:] for a, after in pairs if a == "--runner" or a.startswith("--runner=")]
    return named[-1] if named else ""


def check_beam_options(beam_args: Sequence[str]) -> None:
    """Raise ConfigError for an unknown or invalid Beam option; Beam itself ignores unknown ones."""
    if not beam_args:
        return
    from oxe_curate.beam.fn import PipelineOptions

    module = runner_name(beam_args).rpartition(".")[0]
    if module:  # importing a runner registers its options
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise errors.ConfigError(f"Beam's runner {runner_name(beam_args)} cannot be imported: {error}") from None
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("apache_beam.options.pipeline_options")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        with contextlib.redirect_stderr(io.StringIO()) as usage:
            PipelineOptions(list(beam_args)).get_all_options()
    except SystemExit:
        messages.append(usage.getvalue().strip().rsplit("error: ", 1)[-1])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    if messages:
        raise errors.ConfigError(f"invalid Beam options after --: {messages[0]}")
