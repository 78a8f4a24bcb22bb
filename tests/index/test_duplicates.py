"""Exact copies on literal hashes, and leaks."""

import numpy as np
import pytest

from oxe_curate.errors import ConfigError
from oxe_curate.index import duplicates
from oxe_curate.index.index_json import DatasetEntry, Summary

ALL = np.ones(6, bool)


def test_a_copy_points_to_the_first_of_its_kind():
    hashes = np.array([5, 7, 5, 9, 7, 5], np.uint64)
    assert duplicates.exact_copies(hashes, ALL).tolist() == [-1, -1, 0, -1, 1, 0]


def test_excluded_episodes_are_neither_copies_nor_originals():
    hashes = np.array([5, 7, 5, 9, 7, 5], np.uint64)
    valid = np.array([0, 1, 1, 1, 0, 1], bool)
    assert duplicates.exact_copies(hashes, valid).tolist() == [-1, -1, -1, -1, -1, 2]
    assert duplicates.exact_copies(hashes[:0], valid[:0]).tolist() == []


def test_a_split_that_leaks_is_refused_unless_allowed():
    facts = {"version": "1", "card": None, "recipe": None, "verdict": None, "frames": None, "seconds": 0.0}
    counts = {"bridge": Summary(leaks={"val": 25}), "kuka": Summary()}
    entry = {name: DatasetEntry(**facts, splits=("train", "val"), summary=summary) for name, summary in counts.items()}
    duplicates.check_leaks(entry, {"bridge": ("train",), "kuka": ("train", "val")}, allowed=False)
    duplicates.check_leaks(entry, {"bridge": ("val",)}, allowed=True)
    with pytest.raises(ConfigError, match=r"bridge: 25 episodes of its split 'val' are copies"):
        duplicates.check_leaks(entry, {"bridge": ("train", "val")}, allowed=False)
