"""One index file, which holds the rows of a source shard: written, described, read; see `layout` and `table`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oxe_curate.errors import CurateError, DataError
from oxe_curate.index.files import IndexFile, SourceShard
from oxe_curate.index.index_json import FORMAT, Summary
from oxe_curate.index.layout import WRITE_OPTIONS, value_offsets
from oxe_curate.index.table import SCHEMA
from oxe_curate.lru import LruCache
from oxe_curate.sealed import check_seal, seal
from oxe_curate.storage import Folder

AGAIN = "run the same `oxe-curate filter` again (finished files are kept)"
_META = b"oxe_curate"
_TAIL = 32 << 10  # bytes; a footer has about 10 KB
_TOGETHER = 32 << 20
"""Bytes of index files that are replaced together."""


class Written:
    """What this process wrote, so that it need not be read again: every file's entry, and tables as far as they fit.

    The files are not synced to the disk one by one; call `Folder.sync_files` in the end.

    Attributes:
        entries: path -> what files.json will say.
        tables: (path, SHA-256 of the footer) -> the whole file.
    """

    def __init__(self, tables: LruCache[pa.Table]) -> None:
        self.entries: dict[str, IndexFile] = {}
        self.tables = tables

    def __enter__(self) -> Written:
        global _written
        _written = self
        return self

    def __exit__(self, *_: object) -> None:
        global _written
        _written = None


_written: Written | None = None
"""Set while the command itself writes index files; never in worker processes."""


def write_table(
    out: Folder, path: str, table: pa.Table, summary: Summary, fingerprint: str, shard: SourceShard
) -> None:
    """Publish the rows of one source shard; what is known of the shard goes into the file's metadata."""
    table = _normal(table)
    data, metadata = _encode(table, summary, fingerprint, shard)
    out.publish_bytes(path, data, sync=_written is None)
    if _written is not None:
        entry = _described(data, metadata, summary, fingerprint, shard)
        _written.entries[path] = entry
        _written.tables.get((path, entry.footer_sha256), lambda: (table, table.nbytes))


def rewrite_tables(
    out: Folder,
    tables: Iterable[tuple[str, pa.Table, Summary]],
    files: Mapping[str, IndexFile],
    kept: LruCache[pa.Table] | None,
) -> dict[str, IndexFile]:
    """Replace index files, several at a time; return their new entries.

    Args:
        out: the index.
        tables: (path, rows, counts) of each.
        files: path -> the old entry.
        kept: gets the tables; None if nobody reads them again.
    """
    found: dict[str, IndexFile] = {}
    waiting: dict[str, bytes] = {}
    for path, rows, summary in tables:
        old, table = files[path], _normal(rows)
        waiting[path], metadata = _encode(table, summary, old.fingerprint, old.shard)
        found[path] = entry = _described(waiting[path], metadata, summary, old.fingerprint, old.shard)
        if kept is not None:
            kept.get((path, entry.footer_sha256), partial(_sized, table))
        if sum(map(len, waiting.values())) > _TOGETHER:
            out.publish_many(waiting)
            waiting = {}
    out.publish_many(waiting)
    return found


def _sized(table: pa.Table) -> tuple[pa.Table, int]:
    return table, table.nbytes


def _normal(table: pa.Table) -> pa.Table:
    """In one piece, with the schema's names for the items of lists."""
    return pa.table(table.combine_chunks().columns, schema=SCHEMA)


def _encode(table: pa.Table, summary: Summary, fingerprint: str, shard: SourceShard) -> tuple[bytes, Any]:
    """The bytes of an index file, a function of its contents; and their Parquet metadata."""
    buffer, collected = io.BytesIO(), list[Any]()
    with pq.ParquetWriter(buffer, table.schema, metadata_collector=collected, **WRITE_OPTIONS) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1))
        meta = {
            "format": FORMAT, "fingerprint": fingerprint, "summary": asdict(summary), "shard": asdict(shard),
            "body_sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }  # fmt: skip
        writer.add_key_value_metadata({_META: json.dumps(seal(meta), sort_keys=True)})
    return buffer.getvalue(), collected[0]


def read_footer(file: Any) -> bytes:
    """The last bytes of an open Parquet file: its footer, the footer's length and the magic number.

    Raises:
        ValueError: the file is too short, or does not end as a Parquet file does.
    """
    size = int(file.size())
    tail = bytes(file.read_at(min(size, _TAIL), max(size - _TAIL, 0)))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if size < 12 or tail[-4:] != b"PAR1" or length > size - 4:
        raise ValueError("its end is not that of a Parquet file")
    return tail[-length:] if length <= len(tail) else bytes(file.read_at(length, size - length))


@contextmanager
def _damaged(where: str) -> Iterator[None]:
    """Turn whatever pyarrow raises for a damaged file into a DataError."""
    try:
        yield
    except CurateError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{where}: damaged ({reason}); delete it and {AGAIN}") from None


def describe_file(out: Folder, path: str, whole: bool = False) -> IndexFile:
    """What an index file is, from its footer.

    Args:
        out: the index.
        path: of the file.
        whole: read the whole file, and compare it with what its contents are written as.

    Raises:
        DataError: the file is damaged, or is not an index file of this format.
    """
    with _damaged(f"{out}/{path}"), out.open(path) as file:
        footer, size = read_footer(file), int(file.size())
        metadata = pq.read_metadata(pa.BufferReader(footer))
        meta = json.loads((metadata.metadata or {})[_META])
        if meta["format"] != FORMAT:
            raise ValueError(f"index format {meta['format']}, expected {FORMAT}")
        check_seal(meta, f"{out}/{path}")
        shard, summary = SourceShard(**meta["shard"]), Summary(**meta["summary"])
        if whole:
            data = file.read_at(size, 0)
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
            if _encode(_normal(table), summary, meta["fingerprint"], shard)[0] != data:
                raise ValueError("some of its bytes have changed")
        return _entry(
            footer, size, metadata, meta["fingerprint"], shard, summary, lambda at, n: bytes(file.read_at(n, at))
        )


def _described(data: bytes, metadata: Any, summary: Summary, fingerprint: str, shard: SourceShard) -> IndexFile:
    """`describe_file` of bytes that this process has just made."""
    footer = data[-int.from_bytes(data[-8:-4], "little") - 8 :]
    read = lambda offset, length: data[offset : offset + length]  # noqa: E731
    return _entry(footer, len(data), metadata, fingerprint, shard, summary, read)


def _entry(
    footer: bytes,
    size: int,
    metadata: Any,
    fingerprint: str,
    shard: SourceShard,
    summary: Summary,
    read: Callable[[int, int], bytes],
) -> IndexFile:
    return IndexFile(
        rows=metadata.num_rows, bytes=size, footer_sha256=hashlib.sha256(footer).hexdigest(), fingerprint=fingerprint,
        shard=shard, summary=summary, values_at=value_offsets(metadata, read),
    )  # fmt: skip


def describe_files(out: Folder, paths: Sequence[str]) -> dict[str, IndexFile]:
    """`describe_file` of many files at a time."""
    with ThreadPoolExecutor(4 if out.is_local else 32) as pool:
        return dict(zip(paths, pool.map(lambda path: describe_file(out, path), paths), strict=True))


def verify_file(out: Folder, path: str, entry: IndexFile) -> None:
    """Read a whole index file and compare it with files.json. Raises DataError if they differ."""
    if describe_file(out, path, whole=True).footer_sha256 != entry.footer_sha256:
        raise DataError(_changed(out, path))


def _changed(out: Folder, path: str) -> str:
    return f"{out}/{path}: changed after filter wrote it (its footer differs from files.json); delete it and {AGAIN}"


def read_table(out: Folder, path: str, entry: IndexFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read an index file, or some of its columns, comparing the footer and every page read with their checksums.

    Args:
        out: the index.
        path: of the file.
        entry: what files.json says of it.
        columns: None for all.

    Raises:
        DataError: the file is damaged, or is not the one that files.json describes.
    """
    with _damaged(f"{out}/{path}"), out.open(path) as file:
        if int(file.size()) != entry.bytes:
            raise DataError(_changed(out, path))
        footer = read_footer(file)
        if hashlib.sha256(footer).hexdigest() != entry.footer_sha256:
            raise DataError(_changed(out, path))
        # parsing the footer costs more than reading it again, except over a network
        metadata = None if out.is_local else pq.read_metadata(pa.BufferReader(footer))
        # pq.read_table would import pyarrow.dataset, which takes 0.2 s
        parquet = pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True)
        table = parquet.read(columns=None if columns is None else list(columns), use_threads=False)
        return table.replace_schema_metadata()
