"""The index files as lazy polars frames: a query reads only the columns that it needs.

Files are read through pyarrow, which compares every page with its checksum and knows the credentials and endpoints of
`Folder`. polars is imported on first use: neither `--help` nor the processes that scan shards need it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from oxe_curate.index.store import Index, IndexFiles, split_of
from oxe_curate.index.table import SCHEMA

if TYPE_CHECKING:
    import polars as pl

_POSITION = "position"
_AHEAD = {True: 4, False: 32}
"""Files read at a time, from a local index or an object store."""


def scan_index(index: Index, dataset: str, splits: Sequence[str] | None = None) -> pl.LazyFrame:
    """Scan a data set's index files, of some splits or of all; see `scan_files`."""
    paths = index.files(dataset)
    return scan_files(index.contents, [path for path in paths if splits is None or split_of(path) in splits])


def scan_files(files: IndexFiles, paths: Sequence[str]) -> pl.LazyFrame:
    """Scan index files in the order given. Nothing is read before `collect`.

    Args:
        files: the index, local or on an object store.
        paths: index files, relative to it.

    Returns:
        The columns of the index (docs/formats.md) and `position` (row number over all files), `file` (its path) and
        `row` (row number within the file).
    """
    import polars as pl
    from polars.io.plugins import register_io_source

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _batch: int | None
    ) -> Iterator[pl.DataFrame]:
        selected = [name for name in (columns or SCHEMA.names) if name in SCHEMA.names]
        # a table without columns has no rows: read one of them to count
        tables = read_ahead(files, paths, selected or SCHEMA.names[:1])
        position = 0
        for path, table in tables:
            found: Any = pl.from_arrow(table)
            frame = found.with_columns(
                pl.int_range(position, position + len(found), dtype=pl.get_index_type()).alias(_POSITION),
                pl.lit(path, pl.String).alias("file"),
                pl.int_range(len(found), dtype=pl.get_index_type()).alias("row"),
            )
            position += len(found)
            if rows is not None:
                frame = frame.head(rows)
                rows -= len(frame)
            frame = frame if predicate is None else frame.filter(predicate)
            yield frame if columns is None else frame.select(columns)
            if rows == 0:
                break

    empty: Any = pl.from_arrow(SCHEMA.empty_table())
    number = pl.get_index_type()
    return register_io_source(read, schema={**empty.schema, _POSITION: number, "file": pl.String, "row": number})


def read_ahead(files: IndexFiles, paths: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (path, Arrow table) in order; some are read ahead in threads: decompression and waiting release the GIL."""
    ahead = _AHEAD[files.folder.is_local]
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[tuple[str, Future[Any]]] = deque()
        left = iter(paths)
        try:
            while True:
                for path in itertools.islice(left, ahead - len(waiting)):
                    waiting.append((path, _start(pool, files, path, columns)))
                if not waiting:
                    return
                path, table = waiting.popleft()
                yield path, table.result()
        finally:
            for _, table in waiting:
                table.cancel()


def _start(pool: ThreadPoolExecutor, files: IndexFiles, path: str, columns: Sequence[str]) -> Future[Any]:
    """Read a file in the pool, unless it is in memory."""
    kept = files.kept(path, columns)
    if kept is None:
        return pool.submit(files.table, path, columns)
    ready: Future[Any] = Future()
    ready.set_result(kept)
    return ready


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run a query over index files. Raises DataError or StorageError if a file is damaged, changed or missing."""
    return frame.collect(engine="streaming")


def count_kept(index: Index, dataset: str, splits: Sequence[str]) -> tuple[int, int]:
    """Kept episodes and steps of some splits, from files.json. Raises DataError if files are missing or changed."""
    counts = [index.entry(path).summary for path in index.files(dataset) if split_of(path) in splits]
    return sum(count.kept for count in counts), sum(count.steps_kept for count in counts)
