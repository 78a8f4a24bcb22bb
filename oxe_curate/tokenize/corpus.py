"""Token counts of a text corpus."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from oxe_curate.actions.tokenizers import Vocabulary
from oxe_curate.errors import ConfigError, DataError, did_you_mean

_COLUMN = "text"
_SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl", ".parquet")
"""Files that are read from a folder. A file that is given itself may have any suffix."""

_PIECE = 1 << 16  # characters of plain text to tokenise at once, then up to the end of the line
_ROWS = 256  # of a Parquet file

_Report = Callable[[int], object]


def count_tokens(vocabulary: Vocabulary, paths: Iterable[str | Path], *, progress: bool = True) -> NDArray[np.int64]:
    """Count every token of a corpus, which is read as a stream.

    Text files are UTF-8 and are split at line ends. In .jsonl and .parquet files the column `text` is read, one
    document per row; nulls are skipped. Folders are read recursively, in sorted order. The result does not depend on
    the order of `paths` or files.

    Args:
        vocabulary: the tokens to count.
        paths: files and folders.
        progress: whether to show a progress bar on a terminal.

    Returns:
        int64 (len(vocabulary.pieces),), occurrences of each id.

    Raises:
        ConfigError: a path or a column is missing, a folder contains no text, or the tokenizer's files do not suffice
            to tokenise text.
        DataError: a file is not valid UTF-8, JSON lines or Parquet.
    """
    files = corpus_files(paths)
    counts = np.zeros(len(vocabulary.pieces), np.int64)
    sizes = [file.stat().st_size for file in files]
    with tqdm(
        total=sum(sizes),
        unit="B",
        unit_scale=True,
        desc="counting tokens",
        disable=None if progress else True,  # None: only on a terminal
    ) as bar:
        done = 0
        for file, size in zip(files, sizes, strict=True):
            for text in _texts(file, bar.update):
                ids = vocabulary.encode(text)
                counts += np.bincount(ids, minlength=len(counts)) if ids else 0
            done += size
            bar.update(done - bar.n)  # characters are not bytes
    return counts


def corpus_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files of a corpus, sorted, without duplicates.

    Raises:
        ConfigError: no path, a path is missing, or a folder contains no text.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_file():
            found.add(path)
        elif path.is_dir():
            inside = {p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _SUFFIXES}
            if not inside:
                raise ConfigError(f"{path}: no text found; expected files named {', '.join(_SUFFIXES)}")
            found |= inside
        else:
            raise ConfigError(f"{path}: no such file or folder")
    if not found:
        raise ConfigError("the corpus is empty; give at least one file or folder")
    return sorted(found)


def _texts(file: Path, report: _Report) -> Iterator[str]:
    try:
        if file.suffix.lower() == ".parquet":
            yield from _parquet_texts(file, report)
        elif file.suffix.lower() == ".jsonl":
            yield from _json_texts(file, report)
        else:
            yield from _plain_texts(file, report)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error.reason}. Convert the file, or omit it") from None
    except pa.ArrowException as error:
        raise DataError(f"{file}: cannot read as Parquet: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot read: {error.strerror or error}") from None


def _plain_texts(file: Path, report: _Report) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="") as stream:
        while text := stream.read(_PIECE):
            text += stream.readline(_PIECE)
            yield text
            report(len(text))


def _json_texts(file: Path, report: _Report) -> Iterator[str]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: not valid JSON: {error}") from None
            if not isinstance(row, dict) or _COLUMN not in row:
                known = did_you_mean(_COLUMN, row) if isinstance(row, dict) else ""
                raise ConfigError(f"{file}:{number}: no key {_COLUMN!r}. {known}".rstrip())
            if row[_COLUMN] is None:
                continue
            if not isinstance(row[_COLUMN], str):
                raise DataError(f"{file}:{number}: {_COLUMN!r} is not a string")
            yield row[_COLUMN]
            report(len(line))


def _parquet_texts(file: Path, report: _Report) -> Iterator[str]:
    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        if _COLUMN not in names:
            raise ConfigError(f"{file}: no column {_COLUMN!r}. {did_you_mean(_COLUMN, names)}")
        kind = parquet.schema_arrow.field(_COLUMN).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise DataError(f"{file}: column {_COLUMN!r}: expected text, got {kind}")
        for batch in parquet.iter_batches(_ROWS, columns=[_COLUMN]):
            for text in batch.column(0).to_pylist():
                if text is not None:
                    yield text
                    report(len(text))
