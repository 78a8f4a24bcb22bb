"""Training rows: the part of a row that a run reads, and the numbers of a row group as one compact array.

A robot row takes 36 (W + K - 1) + W + 4 P + 16 W C + 12 bytes for W observations, K actions, P numbers of proprio and C
cameras, including a reference to its instruction: 65 bytes for one image and one action, 1 kB for a window of 12 from
two cameras with 10 actions. Images are not kept; they are read for each batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.summary import ActionSummary
from oxe_curate.errors import ConfigError, DataError, did_you_mean
from oxe_curate.tokenize.folder import MixtureFolder

ACTION_WIDTH = 7


@dataclass(frozen=True)
class SampleFormat:
    """The part of a mixture's rows that a run reads.

    Attributes:
        cameras: roles, in the model's order.
        window, chunk: observations and actions that the run reads.
        stored_window, stored_chunk: observations and actions of a stored row, at least as many.
        proprio: width of the robot state, 0 for none.
        names: data sets. summaries: statistics of their proprio, None for a data set without.
        reference: rows locate their frames in source shards instead of holding copies.
    """

    cameras: tuple[str, ...]
    window: int
    chunk: int
    stored_window: int
    stored_chunk: int
    proprio: int
    names: tuple[str, ...]
    summaries: tuple[ActionSummary | None, ...]
    reference: bool = False

    @classmethod
    def of(
        cls,
        mixture: MixtureFolder,
        cameras: Sequence[str] | None = None,
        window: int | None = None,
        chunk: int | None = None,
        proprio: bool = False,
    ) -> SampleFormat:
        """The format for a run; None for a value means all that the mixture has.

        Raises:
            ConfigError: the mixture has no such camera, a shorter window or chunk, or no proprio.
        """
        spec = mixture.mixture
        roles = tuple(cameras or spec.image.cameras)
        for role in roles:
            if role not in spec.image.cameras:
                raise ConfigError(
                    f"cameras: {mixture.folder} has no {role!r} camera. {did_you_mean(role, spec.image.cameras)} "
                    "To add one, set image.cameras in the mixture and run tokenize again."
                )
        if len(set(roles)) != len(roles):
            raise ConfigError(f"cameras: {', '.join(roles)}: duplicate camera")
        for name, asked, held in (("window", window, spec.window), ("chunk", chunk, spec.chunk)):
            if asked is not None and not 1 <= asked <= held:
                raise ConfigError(
                    f"{name}: expected 1 to {held}, as in the rows of {mixture.folder}, got {asked}. "
                    f"For more, set {name}: {asked} in the mixture and run tokenize again."
                )
        summaries = tuple(mixture.statistics[name].proprio for name in mixture.names)
        width = max((s.width for s in summaries if s is not None), default=0)
        if proprio and width == 0:
            raise ConfigError(f"proprio: no data set of {mixture.folder} has a robot state; train without --proprio")
        return cls(
            roles, window or spec.window, chunk or spec.chunk, spec.window, spec.chunk, width if proprio else 0,
            mixture.names, summaries, not mixture.copies,
        )  # fmt: skip

    @property
    def actions(self) -> int:
        """Steps whose action a row holds: window + chunk - 1."""
        return self.window + self.chunk - 1

    @property
    def record(self) -> np.dtype[Any]:
        """The numbers of one row; `frame` (W, C, 2) holds the offset and length of each image.

        They are in the mixture's shard or, of a mixture by reference, in the source shard with the number `source`.
        """
        return np.dtype(
            [
                ("action", "<f4", (self.actions, ACTION_WIDTH)),
                ("bins", "u1", (self.actions, ACTION_WIDTH)),
                ("action_mask", "?", (self.actions,)),
                ("observation_mask", "?", (self.window,)),
                ("proprio", "<f4", (self.proprio,)),
                ("dataset", "<i4"),
                ("frame", "<i8", (self.window, len(self.cameras), 2)),
                *([("source", "<i4")] if self.reference else []),
            ]
        )

    def columns(self) -> list[str]:
        """The columns that `read_records` reads."""
        names = ["dataset", "instruction", "action", "bins", "action_mask"]
        names += ["proprio"] * bool(self.proprio) + ["observation_mask"] * (self.stored_window > 1)
        return names + (["source", *self.images()] if self.reference else [])

    def images(self) -> list[str]:
        """The image columns."""
        return [f"image_{role}" for role in self.cameras]


TEXT_RECORD = np.dtype([("frame", "<i8", (1, 1, 2))])
"""The numbers of an image-text row: offset and length of its image."""
TEXT_COLUMNS = ["question", "answer"]


class RowBlock(Protocol):
    """A row group in memory: robot rows (`SampleFormat.record`, texts: instruction) or image-text rows (`TEXT_RECORD`,
    texts: question and answer).
    """

    @property
    def records(self) -> NDArray[Any]:
        """Structured (n,)."""

    @property
    def texts(self) -> tuple[Sequence[str], ...]:
        """Columns of n texts each."""

    def frame(self, row: int, observation: int, camera: int) -> bytes | memoryview:
        """Read an encoded image."""

    def swapped(self, row: int, camera: int) -> bool:
        """Whether the frame is stored as BGR, as some sources do; a copying mixture has converted it."""

    def damaged(self, row: int, observation: int, camera: int, reason: str) -> DataError:
        """The error for an image that cannot be decoded."""

    def where(self, row: int) -> str:
        """Shard and row, for messages."""

    def sample_id(self, row: int) -> str:
        """Read the sample's id from the shard, for messages and checks."""


def dictionary(text: bool) -> list[str]:
    """The columns of few different texts, which are read as codes."""
    return [] if text else ["dataset", "instruction"]


Located = tuple[RowBlock, int]
"""A sample: its row group, and the index in it."""


def damaged_copy(block: RowBlock, row: int, reason: str) -> DataError:
    """See `RowBlock.damaged`; of a shard that holds the image itself."""
    return DataError(
        f"{block.where(row)} ({block.sample_id(row)}): cannot decode the image ({reason}). "
        "The shard is damaged; remove it and run tokenize again."
    )


def read_records(
    table: Any, sample_format: SampleFormat, known: dict[str, str] | None = None
) -> tuple[NDArray[Any], list[str]]:
    """Convert the columns of a row group into records, and instructions.

    Args:
        table: the columns.
        sample_format: the part of a row to read.
        known: texts of other row groups, whose memory equal instructions share.

    Returns:
        Structured (n,), with frames only if rows refer to source shards; n texts.

    Raises:
        DataError: a column does not match the mixture; the message names no file.
    """
    n = len(table)
    records = np.zeros(n, sample_format.record)
    stored = sample_format.stored_window + sample_format.stored_chunk - 1
    first = sample_format.stored_window - sample_format.window  # a shorter window keeps the latest observations
    taken = slice(first, first + sample_format.actions)
    records["action"] = _cells(table, "action", (n, stored, ACTION_WIDTH))[:, taken]
    records["bins"] = _cells(table, "bins", (n, stored, ACTION_WIDTH))[:, taken]
    records["action_mask"] = _cells(table, "action_mask", (n, stored))[:, taken]
    mask = stored_observations(table, sample_format)
    records["observation_mask"] = mask[:, first:]
    names, codes = _distinct(table["dataset"])
    numbers = {name: number for number, name in enumerate(sample_format.names)}
    if unknown := set(names) - numbers.keys():
        raise DataError(f"a row of data set {sorted(unknown)[0]!r}, which is not in the mixture")
    records["dataset"] = np.array([numbers[name] for name in names], np.int32)[codes]
    if sample_format.proprio:
        records["proprio"] = _proprio(table["proprio"], records["dataset"], sample_format)
    if sample_format.reference:
        records["source"] = table["source"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
        for camera, name in enumerate(sample_format.images()):
            records["frame"][:, :, camera] = _references(table[name], mask)[:, first:]
    texts, codes = _distinct(table["instruction"])
    shared = [text if known is None else known.setdefault(text, text) for text in texts]
    return records, np.array(shared, object)[codes].tolist()


def _distinct(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of a column, null as "", and the code of each row."""
    array = column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    texts = [text or "" for text in array.dictionary.to_pylist()]
    codes = np.asarray(array.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False), np.int64)
    return [*texts, *([""] if array.null_count else [])], codes


def _references(column: Any, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Byte ranges as a column -> offsets and lengths, int64 (n, W, 2), for a mask (n, W); zeros where it is False."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type):
        array = array.flatten()
    if not pa.types.is_struct(array.type) or {field.name for field in array.type} != {"offset", "length"}:
        raise DataError(f"expected offsets and lengths of frames, got {array.type}")
    found = np.zeros((*mask.shape, 2), np.int64)
    if len(array) != mask.size or array.is_null().to_numpy(zero_copy_only=False)[mask.ravel()].any():
        raise DataError(f"expected {mask.sum()} frames, got {len(array) - array.null_count}")
    for part, name in enumerate(("offset", "length")):
        values = pc.struct_field(array, name).fill_null(0).to_numpy(zero_copy_only=False)
        found[..., part] = values.reshape(mask.shape)
    return found


def stored_observations(table: Any, sample_format: SampleFormat) -> NDArray[np.bool_]:
    """bool (n, stored window): False where an observation is padding, whose image is null."""
    shape = (len(table), sample_format.stored_window)
    return np.ones(shape, bool) if sample_format.stored_window == 1 else _cells(table, "observation_mask", shape)


def _cells(table: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A column of nested lists as an array. Raises DataError unless all rows have the expected number of entries."""
    values = table[name].combine_chunks().flatten()
    rows = len(values)
    if len(shape) == 3:
        values = values.flatten()
    if rows != shape[0] * shape[1] or len(values) != np.prod(shape) or values.null_count:
        raise DataError(
            f"expected {shape[1]} entries of {name!r} per row, got {rows / max(shape[0], 1):g}; "
            "the shards are of another version, run tokenize again"
        )
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _proprio(column: Any, dataset: NDArray[np.int32], sample_format: SampleFormat) -> NDArray[np.float32]:
    """A ragged column -> float32 (n, P), each row normalized by its data set's bounds and padded with zeros."""
    array = column.combine_chunks()
    widths = np.asarray(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    values = np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.float32)
    starts = np.cumsum(widths) - widths
    out = np.zeros((len(array), sample_format.proprio), np.float32)
    for code in np.unique(dataset):
        summary = sample_format.summaries[code]
        here = np.flatnonzero((dataset == code) & (widths > 0))
        if summary is None or len(here) == 0:
            continue
        if (widths[here] != summary.width).any():
            raise DataError(
                f"the proprio of a row of {sample_format.names[code]} has another width than the statistics"
            )
        states = values[starts[here, None] + np.arange(summary.width)]
        out[here] = normalize_proprio(states, summary, sample_format.proprio)
    return out


def normalize_proprio(states: ArrayLike, summary: ActionSummary, width: int) -> NDArray[np.float32]:
    """Normalize a robot state like actions: q01 .. q99 becomes -1 .. 1, clipped; constants become 0.

    Args:
        states: (..., p) in the data set's units.
        summary: statistics of p dimensions.
        width: P >= p; padded with zeros.

    Returns:
        float32 (..., P).

    Raises:
        DataError: `states` has another number of dimensions.
    """
    x = np.asarray(states, np.float32)
    if x.shape[-1] != summary.width:
        raise DataError(f"expected a proprio of {summary.width} numbers, as in the statistics, got {x.shape[-1]}")
    span = (summary.q99 - summary.q01 + 1e-8).astype(np.float32)
    scaled = np.clip(np.float32(2) * (x - summary.q01.astype(np.float32)) / span - np.float32(1), -1, 1)
    out = np.zeros((*x.shape[:-1], width), np.float32)
    out[..., : summary.width] = np.where(summary.min == summary.max, np.float32(0), scaled)
    return out
