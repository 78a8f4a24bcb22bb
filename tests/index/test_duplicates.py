"""Exact and near copies on literal hashes, and leaks."""

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


def near(hashes: list[list[int]], lengths: list[int], bits: int) -> list[int]:
    array = np.array(hashes, np.uint64)
    return duplicates.near_copies(array, np.array(lengths), np.ones(len(array), bool), bits).tolist()


FULL = 0x0F0F_33CC_55AA_FF00


def test_near_copies_differ_by_few_bits_in_every_image():
    base = [FULL, FULL ^ 0xFFFF]
    assert near([base, [FULL ^ 0b11, FULL ^ 0xFFFF]], [20, 20], 2) == [-1, 0]
    assert near([base, [FULL ^ 0b111, FULL ^ 0xFFFF]], [20, 20], 2) == [-1, -1]
    assert near([base, base], [20, 22], 0) == [-1, 0]
    assert near([base, base], [20, 23], 0) == [-1, -1]  # too different in length
    assert near([base, base], [100, 105], 0) == [-1, 0]


def test_similarity_is_not_transitive():
    chain = [[FULL], [FULL ^ 0b11], [FULL ^ 0b1111]]
    assert near(chain, [20] * 3, 2) == [-1, 0, -1]


def test_uniform_images_are_not_copies():
    assert near([[0, 0], [0, 0]], [20, 20], 4) == [-1, -1]


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_no_pair_is_missed(bits):
    rng = np.random.default_rng(bits)
    base = rng.integers(0, 2**63, (40, 4), dtype=np.uint64)
    copies = base.copy()
    for row in copies:
        for frame in range(4):
            for bit in rng.choice(64, bits, replace=False):
                row[frame] ^= np.uint64(1 << int(bit))
    found = near(np.concatenate([base, copies]).tolist(), [30] * 80, bits)
    assert found == [-1] * 40 + list(range(40))


def test_chunking_does_not_change_the_pairs(monkeypatch):
    keys = np.random.default_rng(0).integers(0, 3, (50, 1)).astype(np.uint8)
    steps = np.random.default_rng(1).integers(1, 120, 50)
    expected = {
        (i, j)
        for i in range(50)
        for j in range(i + 1, 50)
        if keys[i] == keys[j] and abs(steps[i] - steps[j]) <= max(2, 0.05 * max(steps[i], steps[j]))
    }
    monkeypatch.setattr(duplicates, "_PAIRS", 7)
    found = [
        tuple(sorted(p)) for a, b in duplicates._pairs(keys, steps) for p in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_a_split_that_leaks_is_refused_unless_allowed():
    facts = {"version": "1", "card": None, "recipe": None, "verdict": None, "frames": None, "seconds": 0.0}
    counts = {"bridge": Summary(leaks={"val": 25}), "kuka": Summary()}
    entry = {name: DatasetEntry(**facts, splits=("train", "val"), summary=summary) for name, summary in counts.items()}
    duplicates.check_leaks(entry, {"bridge": ("train",), "kuka": ("train", "val")}, allowed=False)
    duplicates.check_leaks(entry, {"bridge": ("val",)}, allowed=True)
    with pytest.raises(ConfigError, match=r"bridge: 25 episodes of its split 'val' are copies"):
        duplicates.check_leaks(entry, {"bridge": ("train", "val")}, allowed=False)
