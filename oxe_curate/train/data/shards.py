"""The shards of a mixture: which there are, and what both readers (`local.py`, `stream.py`) share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.errors import DataError
from oxe_curate.tokenize.folder import MixtureFolder

REPAIR = "Remove the shard and run tokenize again, which rebuilds missing shards"
DAMAGED = (pa.ArrowException, ValueError, KeyError, IndexError, TypeError, AttributeError, MemoryError)
"""What pyarrow and the code after it raise for a damaged file, in addition to OSError."""


@dataclass(frozen=True)
class ShardFile:
    """A shard as the manifest lists it: name, rows, bytes, and whether it holds image-text rows."""

    name: str
    rows: int
    size: int
    text: bool


def split_shards(mixture: MixtureFolder, *splits: str) -> list[ShardFile]:
    """The shards of some splits ("train", "validation", "text"), as the manifest lists them."""
    outputs = mixture.manifest["outputs"]
    try:
        return [
            ShardFile(name, int(outputs[name]["rows"]), int(outputs[name]["bytes"]), split == "text")
            for split in splits
            for name in mixture.shards(split)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{mixture.folder}/manifest.json: damaged ({error}). {REPAIR}") from None


class TextColumn(Sequence[str]):
    """A column of texts in Arrow's memory; null reads as "".

    Args:
        column: chunked string array.
    """

    def __init__(self, column: Any) -> None:
        self._column = column.combine_chunks()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[int(row)].as_py() or ""


def image_leaf(column: str, list_of: bool) -> str:
    """The Parquet path of an image column's bytes."""
    return f"{column}.list.element.bytes" if list_of else f"{column}.bytes"


def group_starts(metadata: Any, rows: int, name: str) -> NDArray[np.int64]:
    """int64 (groups,): the first row of each row group. Raises DataError unless the shard holds `rows` rows."""
    if metadata.num_rows != rows:
        raise DataError(f"{name}: {metadata.num_rows} rows, but the manifest lists {rows}. {REPAIR}")
    sizes = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], np.int64)
    return np.cumsum(sizes) - sizes


def checked_columns(table: Any, columns: Sequence[str], name: str) -> Any:
    """Return the table if it has all columns; Arrow silently omits missing ones. Raises DataError."""
    roots = {column.partition(".")[0] for column in columns}
    if missing := roots - set(table.column_names):
        raise DataError(f"{name}: no column {sorted(missing)[0]!r}. {REPAIR}")
    return table
