"""What a training row holds, and how a row group's numbers become one compact array.

A robot row takes 36 (W + K - 1) + W + 4 P + 16 W C + 12 bytes: W observations, K actions, P numbers of proprio, C
cameras, a reference to its instruction included. That is 65 for one image and one action, and 1 kB for a window of 12
from two cameras with 10 actions. Images are not held: they are read when a batch wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.summary import ActionSummary
from oxe_curate.errors import ConfigError, DataError, did_you_mean
from oxe_curate.tokenize.folder import MixtureFolder

ACTION = 7


@dataclass(frozen=True)
class Form:
    """Which part of a mixture's rows a run looks at.

    Attributes:
        cameras: roles, in the order in which the model takes them.
        window, chunk: observations and actions that the run takes.
        stored_window, stored_chunk: those that a row holds, at least as many.
        proprio: width of the robot's state, 0 for none.
        names: the data sets. summaries: their statistics of proprio; None where they have none.
    """

    cameras: tuple[str, ...]
    window: int
    chunk: int
    stored_window: int
    stored_chunk: int
    proprio: int
    names: tuple[str, ...]
    summaries: tuple[ActionSummary | None, ...]

    @classmethod
    def of(
        cls,
        mixture: MixtureFolder,
        cameras: Sequence[str] | None = None,
        window: int | None = None,
        chunk: int | None = None,
        proprio: bool = False,
    ) -> Form:
        """The form that a run asks for; None: all that the mixture has.

        Raises:
            ConfigError: the mixture has no such camera, a shorter window or chunk, or no proprio.
        """
        spec = mixture.mixture
        wanted = tuple(cameras or spec.image.cameras)
        for role in wanted:
            if role not in spec.image.cameras:
                raise ConfigError(
                    f"cameras: {mixture.folder} has no {role!r}. {did_you_mean(role, spec.image.cameras)} "
                    "Others need another tokenize, with image.cameras in the mixture."
                )
        if len(set(wanted)) != len(wanted):
            raise ConfigError(f"cameras: {', '.join(wanted)}: name each once")
        for name, asked, held in (("window", window, spec.window), ("chunk", chunk, spec.chunk)):
            if asked is not None and not 1 <= asked <= held:
                raise ConfigError(
                    f"{name}: {asked} asked for, but the rows of {mixture.folder} hold {held}. "
                    f"Ask for 1 to {held}, or run tokenize again with {name}: {asked} in the mixture."
                )
        summaries = tuple(mixture.statistics[name].proprio for name in mixture.names)
        width = max((s.width for s in summaries if s is not None), default=0)
        if proprio and width == 0:
            raise ConfigError(f"proprio: no data set of {mixture.folder} has any. Train without it.")
        return cls(
            wanted, window or spec.window, chunk or spec.chunk, spec.window, spec.chunk, width if proprio else 0,
            mixture.names, summaries,
        )  # fmt: skip

    @property
    def actions(self) -> int:
        """Steps whose action a row holds: window + chunk - 1."""
        return self.window + self.chunk - 1

    @property
    def record(self) -> np.dtype[Any]:
        """One row's numbers; `frame` (W, C, 2) is each image's offset and length."""
        return np.dtype(
            [
                ("action", "<f4", (self.actions, ACTION)),
                ("bins", "u1", (self.actions, ACTION)),
                ("action_mask", "?", (self.actions,)),
                ("observation_mask", "?", (self.window,)),
                ("proprio", "<f4", (self.proprio,)),
                ("dataset", "<i4"),
                ("frame", "<i8", (self.window, len(self.cameras), 2)),
            ]
        )

    def columns(self) -> list[str]:
        """The columns that `numbers` reads."""
        names = ["dataset", "instruction", "action", "bins", "action_mask"]
        return names + ["proprio"] * bool(self.proprio) + ["observation_mask"] * (self.stored_window > 1)


TEXT_RECORD = np.dtype([("frame", "<i8", (1, 1, 2))])
"""An image-text row's numbers: where its one image lies."""
TEXT_COLUMNS = ["question", "answer"]


class RowBlock(Protocol):
    """A row group in memory: robot rows (`Form.record`, texts: instruction), or image-text rows (`TEXT_RECORD`,
    texts: question and answer).
    """

    @property
    def records(self) -> NDArray[Any]:
        """Structured (n,)."""

    @property
    def texts(self) -> tuple[Sequence[str], ...]:
        """Columns of n texts."""

    def frame(self, row: int, observation: int, camera: int) -> bytes | memoryview:
        """An encoded image."""

    def where(self, row: int) -> str:
        """The shard and the row in it, for messages."""

    def sample_id(self, row: int) -> str:
        """Read it from the shard: nobody needs it but messages and checks."""


Located = tuple[RowBlock, int]
"""A sample: its row group, and the row in it."""


def numbers(table: Any, form: Form) -> tuple[NDArray[Any], list[str]]:
    """A row group's columns -> its records without frames, and the instructions.

    Raises:
        DataError: a column is not what the mixture says; names no file.
    """
    n = len(table)
    records = np.zeros(n, form.record)
    stored = form.stored_window + form.stored_chunk - 1
    first = form.stored_window - form.window  # a shorter window keeps the latest observations
    taken = slice(first, first + form.actions)
    records["action"] = _cells(table, "action", (n, stored, ACTION))[:, taken]
    records["bins"] = _cells(table, "bins", (n, stored, ACTION))[:, taken]
    records["action_mask"] = _cells(table, "action_mask", (n, stored))[:, taken]
    records["observation_mask"] = stored_observations(table, form)[:, first:]
    codes = {name: code for code, name in enumerate(form.names)}
    try:
        records["dataset"] = [codes[name] for name in table["dataset"].to_pylist()]
    except KeyError as error:
        raise DataError(f"a row of the data set {error}, which the mixture does not name") from None
    if form.proprio:
        records["proprio"] = _proprio(table["proprio"], records["dataset"], form)
    return records, [text or "" for text in table["instruction"].to_pylist()]


def stored_observations(table: Any, form: Form) -> NDArray[np.bool_]:
    """bool (n, stored window): which observations a row holds; the others are padding, and their images null."""
    shape = (len(table), form.stored_window)
    return np.ones(shape, bool) if form.stored_window == 1 else _cells(table, "observation_mask", shape)


def _cells(table: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A column of nested lists as an array; DataError unless every row has the same number of entries."""
    values = table[name].combine_chunks().flatten()
    rows = len(values)
    if len(shape) == 3:
        values = values.flatten()
    if rows != shape[0] * shape[1] or len(values) != np.prod(shape) or values.null_count:
        raise DataError(
            f"its rows hold {rows / max(shape[0], 1):g} entries of {name!r} instead of {shape[1]}; "
            "shards of another version of tokenize: run it again"
        )
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _proprio(column: Any, dataset: NDArray[np.int32], form: Form) -> NDArray[np.float32]:
    """A ragged column -> float32 (n, P), each row normalised by its data set's bounds, zeros behind."""
    array = column.combine_chunks()
    widths = np.asarray(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    values = np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.float32)
    starts = np.cumsum(widths) - widths
    out = np.zeros((len(array), form.proprio), np.float32)
    for code in np.unique(dataset):
        summary = form.summaries[code]
        here = np.flatnonzero((dataset == code) & (widths > 0))
        if summary is None or len(here) == 0:
            continue
        if (widths[here] != summary.width).any():
            raise DataError(f"a row of {form.names[code]} has a proprio of another width than its statistics")
        states = values[starts[here, None] + np.arange(summary.width)]
        out[here] = normalize_proprio(states, summary, form.proprio)
    return out


def normalize_proprio(states: ArrayLike, summary: ActionSummary, width: int) -> NDArray[np.float32]:
    """Scale a robot's state as its actions are: q01 .. q99 becomes -1 .. 1, clipped; constants become 0.

    Args:
        states: (..., p) in the data set's units.
        summary: statistics of p dimensions.
        width: P >= p; zeros fill up.

    Returns:
        float32 (..., P).

    Raises:
        DataError: another number of dimensions.
    """
    x = np.asarray(states, np.float32)
    if x.shape[-1] != summary.width:
        raise DataError(f"proprio has {x.shape[-1]} numbers, the statistics have {summary.width}")
    span = (summary.q99 - summary.q01 + 1e-8).astype(np.float32)
    scaled = np.clip(np.float32(2) * (x - summary.q01.astype(np.float32)) / span - np.float32(1), -1, 1)
    out = np.zeros((*x.shape[:-1], width), np.float32)
    out[..., : summary.width] = np.where(summary.min == summary.max, np.float32(0), scaled)
    return out
