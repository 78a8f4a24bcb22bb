"""Exact copies of episodes, by the hash of their actions.

Pure functions over arrays in order of precedence: of two copies, the first is the original.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.index.index_json import DatasetEntry


def precedence(split: str, dataset: str, version: str, shard: int) -> tuple[bool, str, str, str, int]:
    """Sort key of a source shard: train splits first, then by data set, version, split and number."""
    return (split != "train", dataset, version, split, shard)


def exact_copies(hashes: NDArray[np.uint64], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find episodes with equal hashes.

    Args:
        hashes: (n,), in order of precedence.
        valid: (n,), False for episodes to ignore.

    Returns:
        int64 (n,): the position of each episode's original, -1 for originals and ignored episodes.
    """
    copies = np.full(len(hashes), -1, np.int64)
    rows = np.flatnonzero(valid)
    order = rows[np.argsort(hashes[rows], kind="stable")]  # equal hashes stay in order of precedence
    if len(order):
        starts = np.flatnonzero(np.concatenate(([True], hashes[order][1:] != hashes[order][:-1])))
        first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        copies[order] = np.where(first == order, -1, first)
    return copies


def check_leaks(datasets: Mapping[str, DatasetEntry], drawn: Mapping[str, tuple[str, ...]], allowed: bool) -> None:
    """Refuse to draw from a held-out split that has copies of training episodes.

    Args:
        datasets: the entries of index.json.
        drawn: data set -> splits to draw from.
        allowed: the criterion `allow_leak`.

    Raises:
        ConfigError: names the data set, the split and how many episodes are copies.
    """
    for name, splits in drawn.items():
        for split in splits:
            copies = datasets[name].summary.leaks.get(split, 0)
            if copies and not allowed:
                raise ConfigError(
                    f"{name}: {copies} episodes of its split {split!r} are copies of episodes of a train split, so "
                    "that it is not held out. Leave the split out of the mixture, filter with the criterion "
                    "`duplicate: true`, or, if you mean to draw them, with `allow_leak: true`."
                )
