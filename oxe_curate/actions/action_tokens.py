"""The table that assigns a token of a language model to each bin: action_tokens.parquet."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.token_rules import TokenRule, choose_tokens
from oxe_curate.actions.tokenizers import Vocabulary, candidates, read_vocabulary
from oxe_curate.errors import ConfigError, CurateError, DataError, StorageError, quoted
from oxe_curate.inputs import read_input
from oxe_curate.storage import Folder

_FORMAT = "2"
_WITHOUT_CONTENT = "1"
"""The format without the hash of the contents."""
_MAX_BYTES = 1 << 20
"""A table of 256 rows has 20 kB."""
_LLAMA_2_SIZE = 32000

_SCHEMA = pa.schema(
    [
        pa.field("bin", pa.uint8(), nullable=False),
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("piece", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("center", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class ActionTokens:
    """One token for each bin; row b of every column belongs to bin b.

    Attributes:
        token_id: int64 (n,), rows of the language model's embedding, all different.
        piece: the text of each token; None if unknown.
        count: int64 (n,), how often each token occurs in the corpus; None without a corpus.
        rank: int32 (n,), position of each token in the order in which the rule chose them, from 0.
        action_bins: the bins.
        vocabulary_size: see `Vocabulary.size`; rule `last` counts down from it.
        rule: "last", "reserved" or "counts".
        tokenizer_sha256: `Vocabulary.sha256` of the tokenizer; None for a table made without one.
        why: the reason for each token; empty in a table read from a file.
    """

    token_id: NDArray[np.int64]
    piece: tuple[str | None, ...]
    count: NDArray[np.int64] | None
    rank: NDArray[np.int32]
    action_bins: ActionBins
    vocabulary_size: int
    rule: str
    tokenizer_sha256: str | None = None
    why: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        lengths = {len(self.token_id), len(self.piece), len(self.rank)}
        lengths |= set() if self.count is None else {len(self.count)}
        if lengths != {self.action_bins.count}:
            raise DataError(f"action tokens: expected {self.action_bins.count} rows in every column")
        if len(np.unique(self.token_id)) != len(self.token_id):
            raise DataError("action tokens: two bins have the same token")

    @classmethod
    def default(cls, bins: ActionBins | None = None) -> ActionTokens:
        """Return the table of OpenVLA's released checkpoints: Llama 2's last ids, bin 0 is 31999.

        It has neither pieces nor a tokenizer hash, so `check_tokenizer` compares sizes only.
        """
        bins = bins or ActionBins()
        numbers = np.arange(bins.count)
        return cls(
            token_id=_LLAMA_2_SIZE - 1 - numbers,
            piece=(None,) * bins.count,
            count=None,
            rank=numbers.astype(np.int32),
            action_bins=bins,
            vocabulary_size=_LLAMA_2_SIZE,
            rule="last",
            why=("one of the last ids",) * bins.count,
        )

    @classmethod
    def build(
        cls,
        tokenizer: str | Path | Vocabulary,
        rule: TokenRule = "last",
        bins: ActionBins | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> ActionTokens:
        """Choose a token for each bin; `token_rules` describes the rules.

        Args:
            tokenizer: folder or file, see `read_vocabulary`.
            rule: "last" (OpenVLA), "reserved" or "counts".
            bins: None: OpenVLA's.
            counts: occurrences of each id in a corpus, required by rule "counts"; see `corpus.count_tokens`.

        Raises:
            ConfigError: tokenizer not found, an unknown rule, no counts, or too few suitable tokens.
        """
        vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else read_vocabulary(tokenizer)
        bins = bins or ActionBins()
        choices = choose_tokens(vocabulary, rule, bins.count, counts)
        return cls(
            token_id=np.array([choice.token_id for choice in choices], np.int64),
            piece=tuple(_text(vocabulary.piece(choice.token_id)) for choice in choices),
            count=None if counts is None else np.array([counts[c.token_id] for c in choices], np.int64),
            rank=np.array([choice.rank for choice in choices], np.int32),
            action_bins=bins,
            vocabulary_size=vocabulary.size,
            rule=rule,
            tokenizer_sha256=vocabulary.sha256,
            why=tuple(choice.why for choice in choices),
        )

    def ids(self, bins: ArrayLike) -> NDArray[np.int64]:
        """Return the token of each bin, int64, same shape.

        Raises:
            DataError: not integers, or a bin that is not in the table.
        """
        numbers = _integers(bins, "bins")
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self.token_id):
            raise DataError(f"expected bins in 0 .. {len(self.token_id) - 1}, got {numbers.min()} .. {numbers.max()}")
        return self.token_id[numbers]

    def bins(self, ids: ArrayLike, clip: bool = False) -> NDArray[np.uint8]:
        """Return the bin of each token, uint8, same shape.

        Args:
            ids: token ids.
            clip: map an id that is not in the table to the bin of the nearest id that is. For rule `last` this is
                OpenVLA's `clip(vocab_size - id - 1, 0, 255)`: a model that emits another token still moves.

        Raises:
            DataError: not integers, or an id that is not in the table, unless `clip`.
        """
        numbers = _integers(ids, "token ids")
        order = np.argsort(self.token_id)
        ascending = self.token_id[order]
        above = np.searchsorted(ascending, numbers).clip(0, len(ascending) - 1)
        below = (above - 1).clip(0)
        closer = np.abs(ascending[below] - numbers) < np.abs(ascending[above] - numbers)
        place = np.where(closer, below, above)
        foreign = ascending[place] != numbers
        if not clip and foreign.any():
            raise DataError(f"token {numbers[foreign][0]} is not an action token")
        return order[place].astype(np.uint8)

    def decode(self, ids: ArrayLike, clip: bool = False) -> NDArray[np.float32]:
        """Return the normalised action of each token: the centre of its bin. Raises as `bins` does."""
        return self.action_bins.decode(self.bins(ids, clip))

    def report(self) -> list[dict[str, Any]]:
        """Return one row per token, in the order of choice: rank, bin, token_id, piece, count, why."""
        rows = []
        for b in np.argsort(self.rank, kind="stable").tolist():
            row = {"rank": int(self.rank[b]), "bin": b, "token_id": int(self.token_id[b])}
            seen = None if self.count is None else int(self.count[b])
            rows.append({**row, "piece": self.piece[b], "count": seen, "why": (*self.why, *[""] * 256)[b]})
        return rows

    def check_tokenizer(self, tokenizer: str | Path | Vocabulary) -> None:
        """Raise ConfigError unless the table was made for this tokenizer.

        A folder passes if any tokenizer in it matches: many contain both tokenizer.json and tokenizer.model.
        """
        sources = [tokenizer] if isinstance(tokenizer, Vocabulary) else candidates(tokenizer)
        found = []
        for source in sources:
            vocabulary = source if isinstance(source, Vocabulary) else read_vocabulary(source)
            if self.tokenizer_sha256 in (vocabulary.sha256, None) and self.vocabulary_size == vocabulary.size:
                return
            found.append(f"{vocabulary.source} has {vocabulary.size} tokens, sha256 {vocabulary.sha256[:12]}…")
        made = "without a tokenizer file" if self.tokenizer_sha256 is None else self.tokenizer_sha256[:12] + "…"
        raise ConfigError(
            f"the action tokens are those of another tokenizer ({self.vocabulary_size} tokens, {made}):\n"
            + "\n".join(found)
            + "\nRun tokenize again with --overwrite and the model's own --tokenizer; finished shards are kept."
        )

    def to_table(self) -> pa.Table:
        """Return the table as Arrow, with its metadata in the schema."""
        bins = self.action_bins
        columns = [
            pa.array(range(bins.count), pa.uint8()),
            pa.array(self.token_id, pa.int32()),
            pa.array(self.piece, pa.string()),
            pa.nulls(bins.count, pa.int64()) if self.count is None else pa.array(self.count, pa.int64()),
            pa.array(self.rank, pa.int32()),
            *(pa.array(values, pa.float64()) for values in (bins.low, bins.centers, bins.high)),
        ]
        metadata = {
            "format": _FORMAT,
            "tokenizer_sha256": self.tokenizer_sha256 or "",
            "vocabulary_size": str(self.vocabulary_size),
            "rule": self.rule,
            "bins": bins.kind,
        }
        table = pa.Table.from_arrays(columns, schema=_SCHEMA)
        return table.replace_schema_metadata({**metadata, "content": _content(table, metadata)})

    def write(self, path: str | Path) -> None:
        """Write action_tokens.parquet to a path or a gs:// or s3:// URI; equal tables give equal bytes.

        Raises:
            StorageError: the file cannot be written.
        """
        folder, name = _split(path)
        folder.publish(
            name, lambda sink: pq.write_table(self.to_table(), sink, compression="none", write_page_checksum=True)
        )

    @classmethod
    def read(cls, path: str | Path) -> ActionTokens:
        """Read a table that `write` wrote.

        Raises:
            StorageError: file not found, or not a file.
            DataError: not a table of action tokens, of another format version, or damaged.
        """
        folder, name = _split(path)
        if folder.is_local:
            data = read_input(folder.path(name), _MAX_BYTES, "table of action tokens", StorageError)
        else:
            data = folder.read_bytes(name, 0, min(folder.size(name), _MAX_BYTES))
        try:
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # OSError: a damaged footer
            raise DataError(f"{path}: not a Parquet file, or damaged: {_first_line(error)}") from None
        if metadata.get("format") not in (_FORMAT, _WITHOUT_CONTENT):
            raise DataError(
                f"{path}: expected action tokens of format {_FORMAT}, got {quoted(metadata.get('format'))}; "
                f"run tokenize again, or update oxe-curate"
            )
        try:
            return cls._from_table(table.cast(_SCHEMA.with_metadata(table.schema.metadata)), metadata)
        except KeyError as error:
            raise DataError(f"{path}: damaged table of action tokens: {error} is missing") from None
        except (ValueError, OverflowError, pa.ArrowException, CurateError) as error:
            raise DataError(f"{path}: damaged table of action tokens: {_first_line(error)}") from None

    @classmethod
    def _from_table(cls, table: pa.Table, metadata: dict[str, str]) -> ActionTokens:
        content = metadata.pop("content", None)
        if (content is not None or metadata["format"] == _FORMAT) and content != _content(table, metadata):
            raise ValueError("its contents differ from their hash; restore the file, or run tokenize again")
        bins = ActionBins(metadata["bins"], table.num_rows)  # type: ignore[arg-type]  # checked by ActionBins
        if table["bin"].to_pylist() != list(range(bins.count)):
            raise ValueError("the column 'bin' does not count up from 0")
        if not np.array_equal(table["center"].to_numpy(), bins.centers):
            raise ValueError(f"the centres are not those of {bins.count} {bins.kind} bins")
        counted = table["count"].null_count == 0
        return cls(
            token_id=table["token_id"].to_numpy().astype(np.int64),
            piece=tuple(table["piece"].to_pylist()),
            count=table["count"].to_numpy() if counted else None,
            rank=table["rank"].to_numpy(),
            action_bins=bins,
            vocabulary_size=int(metadata["vocabulary_size"]),
            rule=metadata["rule"],
            tokenizer_sha256=metadata["tokenizer_sha256"] or None,
        )


def _content(table: pa.Table, metadata: dict[str, str]) -> str:
    """SHA-256 of the values and the metadata."""
    values = json.dumps([sorted(metadata.items()), table.to_pydict()], sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _text(piece: str | bytes | None) -> str | None:
    """Write bytes that are not valid UTF-8 as escapes."""
    return piece.decode("utf-8", "backslashreplace") if isinstance(piece, bytes) else piece


def _integers(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "ui" and array.size:
        raise DataError(f"expected integers as {what}, got {array.dtype}")
    return array.astype(np.int64)


def _split(path: str | Path) -> tuple[Folder, str]:
    parent, _, name = os.fspath(path).rpartition("/")
    return Folder.of(parent or "."), name
