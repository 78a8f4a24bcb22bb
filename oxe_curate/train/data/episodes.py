"""Whole episodes of a mixture in step order, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, DataError, did_you_mean
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.assemble import assemble
from oxe_curate.train.data.batch import Rows
from oxe_curate.train.data.row_source import open_rows
from oxe_curate.train.data.rows import SampleFormat
from oxe_curate.train.data.shards import DAMAGED, REPAIR, split_shards
from oxe_curate.train.settings import ResizeFilter


class EpisodeReader:
    """The episodes of a split, each step once, however many copies of it the mixture drew.

    Steps that the mixture did not draw (a weight below 1, a stride) are missing; `steps` lists those of an episode.
    From an object store an episode costs the row groups of its rows, of which 1 GiB is cached.

    Args:
        mixture: a finished mixture.
        split: "validation" or "train".
        image_size: S, side in pixels.
        resize, mixed: see `Loader`.
        cameras, window, chunk, proprio: the part of the rows to read; None: all that the mixture has.

    Attributes:
        ids: of the episodes, sorted. by_dataset: data set -> ids of its episodes, sorted.

    Raises:
        ConfigError: the mixture does not have this part; the split has no rows.
        DataError: a shard is damaged.
    """

    def __init__(
        self,
        mixture: MixtureFolder,
        *,
        image_size: int,
        split: str = "validation",
        cameras: Sequence[str] | None = None,
        window: int | None = None,
        chunk: int | None = None,
        proprio: bool = False,
        resize: ResizeFilter = "bicubic",
        mixed: bool = False,
    ) -> None:
        self.sample_format = SampleFormat.of(mixture, cameras, window, chunk, proprio)
        self._image_size, self._resize, self._mixed = image_size, resize, mixed
        shards = [shard for shard in split_shards(mixture, split) if shard.rows]
        self._rows = open_rows(mixture, shards, self.sample_format)
        if not shards:
            raise ConfigError(f"{mixture.folder}: split {split!r} has no rows")
        texts = ["dataset", "episode_id"]  # as codes: a string per row would fill the memory
        tables = []
        for shard in shards:
            try:
                with mixture.folder.open(shard.name) as file:
                    tables.append(
                        pq.ParquetFile(file, read_dictionary=texts, page_checksum_verification=True).read(
                            [*texts, "step"]
                        )
                    )
            except (OSError, *DAMAGED) as error:
                raise DataError(f"{mixture.folder}/{shard.name}: {error}. {REPAIR}") from None
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        (names, episode), (datasets, dataset) = (_codes(table[name]) for name in ("episode_id", "dataset"))
        step = np.asarray(table["step"], np.int64)
        order = np.lexsort((step, np.argsort(np.argsort(names))[episode]))
        new_episode = np.diff(episode[order], prepend=-1) != 0
        once = new_episode | (np.diff(step[order], prepend=-1) != 0)
        first = np.flatnonzero(new_episode[once])
        rows = order[once]
        self.ids: tuple[str, ...] = tuple(names[code] for code in episode[rows[first]].tolist())
        self._of = dict(zip(self.ids, np.split(rows, first[1:]), strict=True))
        self._steps = dict(zip(self.ids, np.split(step[rows], first[1:]), strict=True))
        self.by_dataset: dict[str, list[str]] = {}
        for name, code in zip(self.ids, dataset[rows[first]].tolist(), strict=True):
            self.by_dataset.setdefault(datasets[code], []).append(name)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, Rows]]:
        """Iterate over (id, rows) of every episode."""
        return ((name, self.read(name)) for name in self.ids)

    def steps(self, episode_id: str) -> NDArray[np.int64]:
        """int64 (T',): the steps of an episode, ascending."""
        self._check(episode_id)
        return self._steps[episode_id]

    def read(self, episode_id: str, start: int = 0, stop: int | None = None) -> Rows:
        """Read the rows of an episode in step order, or the part from `start` to `stop`.

        `Rows.position` is the index in the episode; `Rows.random` has no use in evaluation.
        """
        self._check(episode_id)
        rows = self._of[episode_id][start:stop]
        places = np.arange(start, start + len(rows), dtype=np.int64)
        claim = self._rows.claim(rows)
        return assemble(places, claim(), self.sample_format, self._image_size, 0, 1.0, self._resize, self._mixed)

    def _check(self, episode_id: str) -> None:
        if episode_id not in self._of:
            raise ConfigError(f"no episode {episode_id!r}. {did_you_mean(episode_id, self.ids)}")


def _codes(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """A dictionary-encoded column -> its values, and the code of each row."""
    array = column.chunk(0)
    return array.dictionary.to_pylist(), np.asarray(array.indices, np.int64)
