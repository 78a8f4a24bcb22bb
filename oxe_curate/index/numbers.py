"""A data set's actions and proprio from the episode index, for statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.index.store import Index

_HELD = 128 << 20
_BLOCK = 1 << 18  # steps: index files are handed on in blocks of about this many


class Numbers:
    """A data set's actions or proprio from the index, block by block, as often as asked.

    Columns of less than `_HELD` bytes are kept, so that the index is read once; larger ones are read anew each time.
    """

    def __init__(self, index: Index, dataset: str, over: str) -> None:
        self._index, self._dataset, self._over = index, dataset, over
        self.episodes = 0
        steps = index.datasets[dataset].summary.steps_seen
        self._kept: dict[str, list[NDArray[np.float32]]] | None = {} if steps * 15 * 4 < _HELD else None

    def column(self, name: str) -> Iterable[NDArray[np.float32]]:
        """Blocks (n, D) of `action` or `proprio`; may be iterated again."""
        if self._kept is None:
            return _Blocks(lambda: (block[name] for block in self._blocks((name,))))
        if not self._kept:
            blocks = list(self._blocks(("action", "proprio")))
            self._kept = {key: [block[key] for block in blocks] for key in ("action", "proprio")}
        return self._kept[name]

    def _blocks(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
        held: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        steps = self.episodes = 0
        for _, table in self._index.tables(self._dataset, ["kept", "reason", "num_steps", *names]):
            keep = np.asarray(table["kept"])
            if self._over == "all":  # a NaN has no quantile
                known = np.array([r != "not_finite" for r in table["reason"].to_pylist()], bool)
                keep = known & np.asarray(table[names[0]].is_valid())
            self.episodes += int(keep.sum())
            count = int(np.asarray(table["num_steps"])[keep].sum())
            for name in names if count else ():
                values = np.asarray(table[name].filter(keep).combine_chunks().flatten().flatten())
                held[name].append(values.reshape(count, -1))
            steps += count
            if steps >= _BLOCK:
                yield {name: np.concatenate(parts) for name, parts in held.items()}
                held, steps = {name: [] for name in names}, 0
        if steps:
            yield {name: np.concatenate(parts) for name, parts in held.items()}


@dataclass(frozen=True)
class _Blocks:
    """An iterable that starts anew each time."""

    start: Callable[[], Iterator[NDArray[np.float32]]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self.start()
