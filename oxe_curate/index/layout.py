"""The layout of index files, with which a row's numbers can be read by byte range.

The numeric leaf columns are uncompressed and PLAIN, in one page each: row i's values begin at the column's position
plus their width times the number of values in earlier rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from oxe_curate.errors import DataError
from oxe_curate.index.pages import plain_pages

VALUE_TYPES = {
    "action": "<f4",
    "proprio": "<f4",
    "frame_index": "<i4",
    "cameras.offset": "<i8",
    "cameras.length": "<i4",
}
"""Numeric columns -> dtype of a value. An action has 7 values per step."""

_LEAVES = {
    "action.list.element.list.element": "action",
    "proprio.list.element.list.element": "proprio",
    "frame_index.list.element": "frame_index",
    "cameras.key_value.value.list.element.offset": "cameras.offset",
    "cameras.key_value.value.list.element.length": "cameras.length",
}
_OTHERS = (
    "episode_id",
    "shard",
    "record_offset",
    "record_length",
    "record_crc",
    "values_crc",
    "num_steps",
    "source_steps",
    "kept",
    "reason",
    "applies.list.element",
    "success",
    "marks.list.element.criterion",
    "marks.list.element.value",
    "marks.list.element.limit",
    "marks.list.element.step",
    "marks.list.element.detail",
    "instruction",
    "instructions.list.element",
    "instruction_index.list.element",
    "cameras.key_value.key",
    "camera_spans.key_value.key",
    "camera_spans.key_value.value.offset",
    "camera_spans.key_value.value.length",
    "metrics.idle_share",
    "metrics.largest_action",
    "metrics.path_length",
    "metrics.seconds",
    "action_hash",
    "duplicate_of",
)
_LOOKS = (
    "look.key_value.key",
    *(
        f"look.key_value.value.list.element.{leaf}"
        for leaf in (
            "step", "length", "checksum", "width", "height", "channels", "mean.list.element", "deviation.list.element",
            "detail", "grey", "colour",
        )
    ),
)  # fmt: skip
_MANY = 1 << 26  # rows: more than an index file has

WRITE_OPTIONS: dict[str, Any] = {
    # no codec compresses the actions; any level compresses the ids and texts
    "compression": {**dict.fromkeys((*_OTHERS, *_LOOKS), "zstd"), **dict.fromkeys(_LEAVES, "none")},
    "compression_level": dict.fromkeys((*_OTHERS, *_LOOKS), 1),
    "use_dictionary": list(_OTHERS),
    "write_page_checksum": True,
    "max_rows_per_page": _MANY,
    "data_page_size": 1 << 30,
}
"""Keyword arguments of `pyarrow.parquet.ParquetWriter` for an index file; it has one row group."""


def value_offsets(footer: pq.FileMetaData, read: Callable[[int, int], bytes]) -> dict[str, int]:
    """Find the first value of each numeric column of an index file: name in `VALUE_TYPES` -> byte offset.

    A column that byte ranges cannot address is left out: a missing one, one in several row groups or pages, one with a
    dictionary or a codec, and all columns of a file without rows. Readers then read the table.

    Args:
        footer: of the file.
        read: (offset, length) -> that part of the file.
    """
    if footer.num_row_groups != 1:
        return {}
    found = {}
    for i in range(footer.num_columns):
        column = footer.schema.column(i)
        name = _LEAVES.get(column.path)
        if name is None:
            continue
        chunk = footer.row_group(0).column(i)
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            continue
        levels = (column.max_repetition_level, column.max_definition_level)
        try:
            pages = list(plain_pages(read, chunk.data_page_offset, chunk.total_compressed_size, levels))
        except DataError:
            continue
        if len(pages) == 1:
            found[name] = pages[0][0]
    return found
