"""Facts of each data set's actions, from a part of its index files, and the findings that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oxe_curate import registry
from oxe_curate.blas import one_thread
from oxe_curate.errors import ConfigError
from oxe_curate.index.files import IndexFile
from oxe_curate.index.index_json import DatasetEntry, IndexJson
from oxe_curate.index.looks import read_looked_frames
from oxe_curate.index.store import IndexFiles, dataset_of
from oxe_curate.quality.action_facts import ActionFacts, measure_actions
from oxe_curate.quality.camera_roles import CAMERA_FINDINGS, judge_cameras
from oxe_curate.quality.findings import CardFacts, DataFinding
from oxe_curate.quality.kin import judge_kin
from oxe_curate.quality.looks import LookedFrames, join_looks
from oxe_curate.quality.plausibility import judge_actions

MOST_STEPS = 500_000
"""Steps of a data set that are measured: whole index files, spread evenly over it."""
_LOOKED_FILES, _LOOKED_ROWS = 8, 64
"""Index files, and rows of each, whose looked-at frames are measured."""


def facts_of_index(files: IndexFiles, dataset: str, version: str) -> ActionFacts | None:
    """Measure the kept episodes of a data set; None if there are none.

    Raises:
        DataError: an index file is damaged or changed.
    """
    paths = [p for p in sorted(files.entries) if dataset_of(p) == (dataset, version) and files.entries[p].summary.kept]
    actions: list[NDArray[np.float32]] = []
    states: list[NDArray[np.float32]] = []
    lengths: list[NDArray[np.int64]] = []
    for path in _spread(paths, [files.entries[path].summary.steps_kept for path in paths]):
        table = files.table(path, ["kept", "action", "proprio"])
        table = table.filter(table["kept"])
        column = table["action"].combine_chunks()
        steps = np.diff(np.asarray(column.offsets)).astype(np.int64)
        if not steps.sum():
            continue
        actions.append(np.asarray(column.flatten().flatten()).reshape(-1, 7))
        proprio = np.asarray(table["proprio"].combine_chunks().flatten().flatten())
        states.append(proprio.reshape(len(actions[-1]), -1))
        lengths.append(steps[steps > 0])
    if not actions:
        return None
    starts = np.concatenate([[0], *lengths]).cumsum().astype(np.int64)
    same_width = len({state.shape[1] for state in states}) == 1 and states[0].shape[1] > 0
    with one_thread():
        return measure_actions(np.concatenate(actions), starts, np.concatenate(states) if same_width else None)


def looks_of_index(files: IndexFiles, dataset: str, version: str) -> dict[str, LookedFrames]:
    """Role -> looked-at frames of some index files; {} if the scan did not look.

    Raises:
        DataError: an index file is damaged or changed.
    """
    paths = [p for p in sorted(files.entries) if dataset_of(p) == (dataset, version) and files.entries[p].summary.kept]
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _LOOKED_FILES)).round().astype(int))
    found: dict[str, list[LookedFrames]] = {}
    for i in chosen.tolist():
        for role, frames in read_looked_frames(files.table(paths[i], ["look"])["look"]).items():
            found.setdefault(role, []).append(frames.take(np.arange(min(len(frames), _LOOKED_ROWS))))
    return {role: join_looks(parts) for role, parts in found.items()}


def _spread(paths: Sequence[str], steps: Sequence[int]) -> list[str]:
    """Files with at most about `MOST_STEPS` steps, evenly spaced; all of them if that is enough."""
    total = sum(steps)
    if total <= MOST_STEPS:
        return list(paths)
    # taking each file whose range of steps contains a multiple of `every` spreads them by steps, not by files
    count = max(1, len(paths) * MOST_STEPS // total)
    ends = np.cumsum(steps)
    marks = (np.arange(count) + 0.5) * total / count
    return [paths[i] for i in np.unique(np.searchsorted(ends, marks, side="right"))]


def with_findings(
    files: IndexFiles, known: Mapping[str, IndexFile], before: IndexJson, now: IndexJson
) -> dict[str, DatasetEntry]:
    """The entries of an index with the facts and findings of its data sets.

    Args:
        files: all index files.
        known: those of `before`: the facts of a data set whose files have not changed are taken from there.
        before: the index of an earlier run.
        now: the index that is about to be written.

    Raises:
        DataError: an index file is damaged or changed.
    """
    facts: dict[str, ActionFacts] = {}
    cards: dict[str, CardFacts] = {}
    cameras: dict[str, Sequence[DataFinding]] = {}
    for name, entry in now.datasets.items():
        card = _card(name, entry, now)
        old = before.datasets.get(name)
        if card is None:
            continue
        cards[name] = card
        if old is not None and old.facts and _files(files.entries, name, entry) == _files(known, name, old):
            facts[name] = old.facts
            cameras[name] = [finding for finding in old.findings if finding.name in CAMERA_FINDINGS]
        elif found := facts_of_index(files, name, entry.version):
            facts[name] = found
            cameras[name] = list(judge_cameras(looks_of_index(files, name, entry.version)))
    kin = judge_kin(facts, cards)
    found_in = {name: (*judge_actions(facts[name], cards[name]), *kin.get(name, ()), *cameras[name]) for name in facts}
    return {
        name: replace(entry, facts=facts.get(name), findings=tuple(found_in.get(name, ())))
        for name, entry in now.datasets.items()
    }


def _files(entries: Mapping[str, IndexFile], name: str, entry: DatasetEntry) -> dict[str, IndexFile]:
    return {path: file for path, file in entries.items() if dataset_of(path) == (name, entry.version)}


def _card(name: str, entry: DatasetEntry, index: IndexJson) -> CardFacts | None:
    """The facts of a data set's card; None if it has no recipe, or is no longer there."""
    if entry.recipe is None:
        return None
    try:
        card = registry.load(entry.card or name, Path(index.cards) if index.cards else None)
        return CardFacts.of(card, entry.recipe)
    except ConfigError:
        return None
