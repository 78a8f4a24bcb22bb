"""The reason to drop each episode, from what the scan wrote into the index: functions over columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.screen import CRITERIA
from oxe_curate.index.idle import RULES

ORDER = (
    "no_third_person_camera", "not_single_arm", "not_end_effector", "failed", "too_short", "too_long", "not_finite",
    "no_language", "idle", "bad_image",
)  # fmt: skip
"""Criteria of one episode; an episode gets the first that applies and is on."""
COLUMNS = ("applies", "success", "num_steps", "metrics")


def columns(criteria: Criteria) -> tuple[str, ...]:
    """The columns of the index that `own_reasons` reads."""
    return (*COLUMNS, "action") if criteria.idle is not None and criteria.idle_rule != "libero" else COLUMNS


def own_reasons(table: pa.Table, criteria: Criteria) -> NDArray[np.object_]:
    """The first reason to drop each episode by itself, None to keep it: object (n,).

    Args:
        table: `columns` of an index file.
        criteria: which are on.
    """
    steps = np.asarray(table["num_steps"].combine_chunks())
    holds = _applies(table)
    if criteria.success_key:
        holds["failed"] |= ~np.asarray(table["success"].combine_chunks().fill_null(True)).astype(bool)
    holds["too_short"] = steps < criteria.too_short
    holds["too_long"] = steps > (criteria.too_long if criteria.too_long is not None else np.inf)
    holds["idle"] = _idle(table, steps, criteria)
    reasons = np.full(len(table), None, object)
    for name in reversed(ORDER):
        switch = getattr(criteria, name)
        if switch is not None and switch is not False:
            reasons[holds[name]] = name
    return reasons


def _applies(table: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Criterion of the scan -> whether it applies, bool (n,)."""
    column = table["applies"].combine_chunks()
    row = np.repeat(np.arange(len(table)), np.diff(np.asarray(column.offsets)))
    names = np.asarray(column.flatten().to_pylist(), object)
    holds = {name: np.zeros(len(table), bool) for name in CRITERIA}
    for name in set(names.tolist()) & holds.keys():
        holds[name][row[names == name]] = True
    return holds


def can_be_judged(table: pa.Table) -> NDArray[np.bool_]:
    """Which episodes can be compared with others, bool (n,): they have steps, and finite actions of one arm."""
    holds = _applies(table)
    usable = np.asarray(table["num_steps"].combine_chunks()) > 0
    for name in ("not_finite", "not_single_arm", "not_end_effector"):
        usable &= ~holds[name]
    return np.asarray(usable)


def _idle(table: pa.Table, steps: NDArray[np.int32], criteria: Criteria) -> NDArray[np.bool_]:
    """Whether the share of idle steps is above the limit."""
    if criteria.idle is None:
        return np.zeros(len(table), bool)
    if criteria.idle_rule == "libero":  # which the index has
        share: Any = table["metrics"].combine_chunks().field("idle_share")
        count = np.rint(np.nan_to_num(np.asarray(share.fill_null(0), np.float64)) * steps)
    else:
        action = table["action"].combine_chunks()
        starts = np.asarray(action.offsets, np.int64)
        still = RULES[criteria.idle_rule](np.asarray(action.values.flatten()).reshape(-1, 7))
        count = np.diff(np.concatenate(([0], np.cumsum(still)))[starts])
    return np.asarray(count / np.maximum(steps, 1) > criteria.idle)
