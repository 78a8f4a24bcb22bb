"""Actions far outside their data set's range, by a multiple that the user sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from oxe_curate.index.store import IndexFiles, dataset_of

_QUANTILES = (0.01, 0.99)


def outliers(action: NDArray[np.float32], bounds: NDArray[np.float64], times: float) -> NDArray[np.bool_]:
    """Find steps with a pose value outside the bounds by more than `times` their range.

    Args:
        action: float32 (T, 7).
        bounds: (2, 6), the data set's lower and upper quantiles. A dimension where they are equal is ignored.
        times: the allowed distance, as a multiple of the range.

    Returns:
        bool (T,).
    """
    low, high = bounds
    margin = times * (high - low)
    pose = action[:, :6]
    return np.asarray((((pose < low - margin) | (pose > high + margin)) & (high > low)).any(axis=1))


def outlying(files: IndexFiles, kept: Mapping[str, NDArray[np.bool_]], times: float) -> NDArray[np.bool_]:
    """Which kept episodes have an outlier, bool, of all files.

    Args:
        files: the index.
        kept: index file -> which of its episodes count, bool (rows,).
        times: see `outliers`.
    """
    found = {path: np.zeros(len(rows), bool) for path, rows in kept.items()}
    for dataset in dict.fromkeys(dataset_of(path)[0] for path in kept):
        mine = [path for path in kept if dataset_of(path)[0] == dataset]
        # one dimension at a time: 4 bytes per step in memory, not 24
        bounds = np.array([_quantiles(files, mine, kept, dimension) for dimension in range(6)], np.float64).T
        if not np.isfinite(bounds).all():
            continue
        for path in mine:
            action, row = _actions(files, path, kept[path])
            found[path][row[outliers(action, bounds, times)]] = True
    return np.concatenate(list(found.values()))


def _quantiles(
    files: IndexFiles, paths: Sequence[str], kept: Mapping[str, NDArray[np.bool_]], dimension: int
) -> NDArray[np.float64]:
    """float64 (2,) of one dimension over the episodes kept so far; NaN if there are none."""
    values = [_actions(files, path, kept[path])[0][:, dimension] for path in paths]
    joined = np.concatenate(values) if values else np.empty(0, np.float32)
    return np.quantile(joined, _QUANTILES).astype(np.float64) if len(joined) else np.full(2, np.nan)


def _actions(files: IndexFiles, path: str, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Actions (n, 7) of a file's kept episodes, and the row of each (n,)."""
    column = files.table(path, ["action"])["action"].combine_chunks()
    lengths = np.diff(np.asarray(column.offsets))  # 0 where there are no actions
    row = np.repeat(np.arange(len(kept)), lengths)
    chosen = kept[row]
    return np.asarray(column.values.flatten()).reshape(-1, 7)[chosen], row[chosen]
