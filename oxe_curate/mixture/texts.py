"""Image-text sources of a mixture: Parquet files with an image and a question with its answer, or a caption.

Opening a source reads only the footers of its files, so that a missing column is an error before anything is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oxe_curate.errors import ConfigError, DataError, StorageError, did_you_mean
from oxe_curate.mixture.spec import TextColumns, TextEntry
from oxe_curate.storage import Folder

_TAIL = 8  # bytes: length of the footer, "PAR1"
_ROWS_PER_BYTE = 100
"""A file of equal rows may have more rows than bytes, but not a million times as many."""


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns of a source.

    Attributes:
        question: None if `answer` is a caption.
    """

    image: str
    question: str | None
    answer: str

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in (self.image, self.question, self.answer) if name is not None]


@dataclass(frozen=True)
class TextFile:
    """A Parquet file, as described by its footer.

    Attributes:
        path: relative to the folder of the source.
        groups: (rows, bytes of images) of each row group.
        sha256: of the file's size and footer.
    """

    path: str
    groups: tuple[tuple[int, int], ...]
    sha256: str

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(rows for rows, _ in self.groups)


@dataclass(frozen=True)
class TextSource:
    """An image-text source of a mixture, checked.

    Attributes:
        folder: to which the paths of files are relative.
        files: sorted by path.
    """

    entry: TextEntry
    folder: Folder
    columns: ColumnNames
    files: tuple[TextFile, ...]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def sha256(self) -> str:
        """Hash of the files' hashes; part of the fingerprint of a shard."""
        listing = "".join(f"{file.path} {file.sha256}\n" for file in self.files)
        return hashlib.sha256(listing.encode()).hexdigest()


def open_texts(entries: Sequence[TextEntry], base: Path, where: str) -> list[TextSource]:
    """Find the sources of a mixture and read the footers of their files.

    Args:
        entries: `Mixture.texts`.
        base: folder of the mixture file, to which relative paths are relative.
        where: the mixture file, for messages.

    Raises:
        ConfigError: a missing path or column.
        DataError: a file that is not Parquet, a column of the wrong type, or an empty source.
    """
    return [open_text(entry, base, f"{where}: texts: {entry.name!r}") for entry in entries]


def open_text(entry: TextEntry, base: Path, where: str, limit: int | None = None) -> TextSource:
    """Open one source, see `open_texts`; `limit` is the maximum number of files to check."""
    folder, paths = _find(entry.path, base, where)
    with ThreadPoolExecutor() as pool:  # overlaps the latency of an object store
        footers = list(pool.map(lambda path: _footer(folder, path), paths[:limit]))
    columns = _columns(entry.columns, footers[0][0].schema.to_arrow_schema(), f"{where}: {folder}/{paths[0]}")
    for path, (footer, _) in zip(paths, footers, strict=False):
        _check(columns, footer.schema.to_arrow_schema(), f"{where}: {folder}/{path}")
    files = (
        TextFile(path, _groups(footer, columns.image), digest)
        for path, (footer, digest) in zip(paths, footers, strict=False)
    )
    source = TextSource(entry, folder, columns, tuple(files))
    if source.rows == 0:
        raise DataError(f"{where}: {entry.path} has no rows; remove the source")
    return source


def _find(path: str, base: Path, where: str) -> tuple[Folder, list[str]]:
    """The folder of a source, and the paths of its files in it."""
    if "://" not in path:
        local = base / os.path.expanduser(path)  # noqa: PTH111 (Path's raises for an unknown user)
        if not os.path.exists(local):  # noqa: PTH110 (Path's raises for a name that is too long)
            nearby = [p.name for p in local.parent.iterdir()] if local.parent.is_dir() else []
            hint = did_you_mean(local.name, nearby) if nearby else f"{local.parent} does not exist either."
            raise ConfigError(f"{where}: {local}: no such file or folder. {hint}")
        path = str(local)
    if path.endswith(".parquet") and not ("://" not in path and Path(path).is_dir()):
        parent, _, name = path.rpartition("/")
        return Folder.of(parent), [name]
    folder = Folder.of(path)
    found = [name for name, is_folder, _ in folder.list(recursive=True) if name.endswith(".parquet") and not is_folder]
    if not found:
        raise ConfigError(f"{where}: {folder}: no .parquet file found")
    return folder, found


def _footer(folder: Folder, path: str) -> tuple[Any, str]:
    """The footer of a file, and the hash of the file's size and footer."""
    size = folder.size(path)
    tail = folder.read_bytes(path, max(size - _TAIL, 0), min(size, _TAIL))
    length = int.from_bytes(tail[:4], "little") + _TAIL
    if tail[4:] != b"PAR1" or length > size:
        raise DataError(f"{folder}/{path}: not a Parquet file, or truncated")
    data = folder.read_bytes(path, size - length, length)
    try:
        footer = pq.read_metadata(pa.BufferReader(b"PAR1" + data))
        _check_footer(footer, size)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # OSError: a damaged footer
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}/{path}: not a Parquet file, or damaged: {reason}") from None
    return footer, hashlib.sha256(str(size).encode() + data).hexdigest()


def _check_footer(footer: Any, size: int) -> None:
    """Raise ValueError if the footer's names are not text, or its numbers of rows are absurd for the file's size."""
    footer.schema.to_arrow_schema()
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    for group in groups:
        sizes = [group.column(c).total_uncompressed_size for c in range(group.num_columns)]
        names = [group.column(c).path_in_schema for c in range(group.num_columns)]
        if min(sizes, default=0) < 0 or not 0 <= group.num_rows <= _ROWS_PER_BYTE * size or "" in names:
            raise ValueError(f"a row group of {group.num_rows:,} rows in a file of {size:,} bytes")
    if sum(group.num_rows for group in groups) != footer.num_rows:
        raise ValueError(f"{footer.num_rows:,} rows, but other numbers in the row groups")


def _columns(given: TextColumns, schema: Any, where: str) -> ColumnNames:
    """The columns to read: the given ones, else question and answer, else a caption."""
    have = set(schema.names)
    if given.caption is not None:
        return ColumnNames(given.image, None, given.caption)
    if given.question is not None or given.answer is not None:
        return ColumnNames(given.image, given.question or "question", given.answer or "answer")
    if {"question", "answer"} <= have:
        if "caption" in have:
            raise ConfigError(
                f"{where} has questions and captions. Choose with `columns: {{caption: caption}}` or "
                "`columns: {question: question}`; to use both, add the file as two sources."
            )
        return ColumnNames(given.image, "question", "answer")
    if "caption" in have:
        return ColumnNames(given.image, None, "caption")
    half = sorted({"question", "answer"} & have)
    missing = ("answer" if half == ["question"] else "question") if half else "caption"
    problem = f"a column {half[0]!r} but no {missing!r}" if half else "neither 'question' and 'answer' nor 'caption'"
    raise ConfigError(f"{where} has {problem}. {did_you_mean(missing, have)} Set the source's key 'columns'.")


def _check(columns: ColumnNames, schema: Any, where: str) -> None:
    for name in columns.names:
        if name not in schema.names:
            key = "image" if name == columns.image else "question" if name == columns.question else "answer or caption"
            raise ConfigError(
                f"{where} has no column {name!r}. {did_you_mean(name, schema.names)} "
                f"Set the {key} with the source's key 'columns'."
            )
        kind = schema.field(name).type
        if name == columns.image:
            inner = (
                kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
            )
            if not _is_binary(inner):
                raise DataError(
                    f"{where}: column {name!r}: expected images (struct<bytes, path> or binary), got {kind}"
                )
        elif not _is_text(kind):
            advice = "; make one row per text" if pa.types.is_nested(kind) else ""
            raise DataError(f"{where}: column {name!r}: expected text, got {kind}{advice}")


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _groups(footer: Any, image: str) -> tuple[tuple[int, int], ...]:
    groups = []
    for i in range(footer.num_row_groups):
        group = footer.row_group(i)
        columns = (group.column(c) for c in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == image)
        groups.append((group.num_rows, size))
    return tuple(groups)


def missing_file(entry: TextEntry, base: Path, thorough: bool = False) -> str | None:
    """Why a source cannot be read, or None: from the first file of a local one, or with `thorough` from every file."""
    if "://" in entry.path and not thorough:
        return None
    try:
        open_text(entry, base, entry.name, limit=None if thorough else 1)
    except (ConfigError, DataError, StorageError) as error:
        return str(error)
    return None
