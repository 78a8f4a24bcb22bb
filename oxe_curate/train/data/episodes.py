"""Whole episodes of a mixture in the order of their steps, for evaluation."""

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
from oxe_curate.train.data.local import MEND, split_shards
from oxe_curate.train.data.row_source import open_rows
from oxe_curate.train.data.rows import Form


class EpisodeReader:
    """The episodes of a split, each step once, however many copies of it the mixture drew.

    An episode holds the steps that the mixture drew: with a weight below 1 or a stride some are missing. `steps` tells
    which are there. From an object store an episode costs the row groups that its rows lie in, of which 1 GiB is kept.

    Args:
        mixture: a finished mixture.
        split: "validation" or "train".
        image_size: S, pixels of a side.
        cameras: of the rows; None: all that the mixture has. So for `window`, `chunk` and `proprio` (default none).

    Attributes:
        ids: the episodes' ids, sorted. by_dataset: data set -> ids of its episodes, sorted.

    Raises:
        ConfigError: a form of rows that the mixture does not have; a split without rows.
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
    ) -> None:
        self.form = Form.of(mixture, cameras, window, chunk, proprio)
        self._image_size = image_size
        shards = [shard for shard in split_shards(mixture, split) if shard.rows]
        self._rows = open_rows(mixture, shards, self.form)
        if not shards:
            raise ConfigError(f"{mixture.folder}: its split {split!r} holds no rows")
        texts = ["dataset", "episode_id"]  # as codes: a string for each row would fill the memory
        tables = []
        for shard in shards:
            try:
                with mixture.folder.open(shard.name) as file:
                    tables.append(pq.ParquetFile(file, read_dictionary=texts).read([*texts, "step"]))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{mixture.folder}/{shard.name}: {error}. {MEND}") from None
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
        """Every episode: its id and its rows."""
        return ((name, self.read(name)) for name in self.ids)

    def steps(self, episode_id: str) -> NDArray[np.int64]:
        """int64 (T',): which steps of an episode are there, ascending."""
        self._check(episode_id)
        return self._steps[episode_id]

    def read(self, episode_id: str, start: int = 0, stop: int | None = None) -> Rows:
        """An episode's rows in the order of its steps; `start` and `stop` cut a part of them.

        `Rows.position` counts them; `Rows.random` is for augmentation, which evaluation has no use for.
        """
        self._check(episode_id)
        rows = self._of[episode_id][start:stop]
        places = np.arange(start, start + len(rows), dtype=np.int64)
        return assemble(places, self._rows.claim(rows)(), self.form, self._image_size, 0)

    def _check(self, episode_id: str) -> None:
        if episode_id not in self._of:
            raise ConfigError(f"no episode {episode_id!r}. {did_you_mean(episode_id, self.ids)}")


def _codes(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """A dictionary-encoded column -> its texts, and the code of each row."""
    array = column.chunk(0)
    return array.dictionary.to_pylist(), np.asarray(array.indices, np.int64)
