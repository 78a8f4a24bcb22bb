"""The index files as lazy polars frames: a query reads only the columns that it needs.

polars is imported on first use: neither `--help` nor the processes that scan shards need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from oxe_curate.errors import DataError
from oxe_curate.index.store import SCHEMA, Index, read_table, split_of
from oxe_curate.storage import Folder

if TYPE_CHECKING:
    import polars as pl

_POSITION = "position"


def scan_index(index: Index, dataset: str, splits: Sequence[str] | None = None) -> pl.LazyFrame:
    """Scan a data set's index files, of some splits or of all; see `scan_files`."""
    paths = index.files(dataset)
    return scan_files(index.folder, [path for path in paths if splits is None or split_of(path) in splits])


def scan_files(folder: Folder, paths: Sequence[str]) -> pl.LazyFrame:
    """Scan index files in the order given. Nothing is read before `collect`.

    Args:
        folder: the index, local or on an object store.
        paths: index files, relative to it.

    Returns:
        The columns of the index (docs/formats.md) and `position` (row number over all files), `file` (its path) and
        `row` (row number within the file).
    """
    import polars as pl

    if not paths:
        nothing = pl.from_arrow(SCHEMA.empty_table())
        assert isinstance(nothing, pl.DataFrame)
        return nothing.lazy().with_columns(
            pl.lit(0, pl.get_index_type()).alias(_POSITION),
            pl.lit("", pl.String).alias("file"),
            pl.lit(0, pl.get_index_type()).alias("row"),
        )
    if folder.is_local:
        frame = pl.scan_parquet(
            [folder.path(path) for path in paths],
            glob=False,
            hive_partitioning=False,
            row_index_name=_POSITION,
            include_file_paths="file",
        ).with_columns(pl.col("file").str.strip_prefix(f"{folder.path()}/"))
    else:
        frame = _scan_remote(folder, paths).with_row_index(_POSITION)
    first = pl.col(_POSITION).min().over("file")
    return frame.with_columns((pl.col(_POSITION) - first).alias("row"))


def collect(frame: pl.LazyFrame, folder: Folder) -> pl.DataFrame:
    """Run a query. Raises DataError if an index file of `folder` is damaged or missing."""
    import polars as pl

    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError, OSError) as error:
        raise DataError(
            f"{folder}: an index file is damaged or missing ({str(error).splitlines()[0]}). "
            "Delete it and run `oxe-curate filter` again."
        ) from None


def count_kept(index: Index, dataset: str, splits: Sequence[str]) -> tuple[int, int]:
    """Kept episodes and steps of some splits."""
    import polars as pl

    steps = scan_index(index, dataset, splits).filter("kept").select(pl.col("num_steps").cast(pl.Int64))
    counts = collect(steps.select(pl.len().alias("episodes"), pl.col("num_steps").sum()), index.folder)
    episodes, total = counts.row(0)
    return int(episodes), int(total)


def _scan_remote(folder: Folder, paths: Sequence[str]) -> pl.LazyFrame:
    """Read through pyarrow, which knows the credentials and endpoints that `Folder` uses."""
    import polars as pl
    from polars.io.plugins import register_io_source

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _batch: int | None
    ) -> Iterator[pl.DataFrame]:
        selected = SCHEMA.names if columns is None else [name for name in columns if name != "file"]
        for path in paths:
            # a table without columns has no rows: read one of them to count
            table: Any = pl.from_arrow(read_table(folder, path, selected or SCHEMA.names[:1]))
            frame = table.with_columns(file=pl.lit(path))
            if rows is not None:
                frame = frame.head(rows)
                rows -= len(frame)
            frame = frame if predicate is None else frame.filter(predicate)
            yield frame if columns is None else frame.select(columns)

    empty: Any = pl.from_arrow(SCHEMA.empty_table())
    return register_io_source(read, schema={**empty.schema, "file": pl.String})
