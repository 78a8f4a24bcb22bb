"""The episodes of the page: what each looked like, what the criteria saw, frames and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from oxe_curate.index.store import Index, dataset_of, split_of
from oxe_curate.report.actions import AXES
from oxe_curate.report.curves import curves
from oxe_curate.report.flags import DUPLICATE, excess, own_limit
from oxe_curate.report.thumbnails import read_thumbnails, steps_to_show

_COLUMNS = (
    "episode_id", "shard", "source_steps", "num_steps", "frame_index", "instruction", "instructions", "kept", "reason",
    "marks", "duplicate_of", "cameras", "camera_spans", "action", "proprio", "metrics",
)  # fmt: skip
_TEXT = 400
"""Characters of an instruction that are shown."""
_DIMENSIONS = 24
"""Dimensions of the state whose curves are shown."""

Bgr = Callable[[str], frozenset[str]]


def read_entries(
    index: Index, places: Iterable[tuple[str, int]], frames: int, bgr: Bgr, copies: int = 0
) -> list[dict[str, Any]]:
    """Read episodes for the page.

    Args:
        index: an opened index.
        places: (file, row) of each.
        frames: to show of each.
        bgr: data set -> roles whose frames are stored as BGR.
        copies: originals of copies to add, at most.

    Returns:
        Dictionaries of JSON values, see `_entry`; the originals at the end.
    """
    wanted = list(dict.fromkeys(places))
    found = _read(index, wanted, frames, bgr)
    known = {entry["id"] for entry in found}
    missing = [entry["copy"] for entry in found if entry["copy"] and entry["copy"] not in known]
    originals = [place for id in dict.fromkeys(missing) if (place := _find(index, id)) is not None]
    return found + _read(index, originals[:copies], frames, bgr)


def _read(index: Index, places: list[tuple[str, int]], frames: int, bgr: Bgr) -> list[dict[str, Any]]:
    by_file: dict[str, list[int]] = {}
    for path, row in places:
        by_file.setdefault(path, []).append(row)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(by_file):
        rows = index.table(path, _COLUMNS).take(by_file[path]).to_pylist()
        found |= {
            (path, row): _entry(index, path, one, frames, bgr) for row, one in zip(by_file[path], rows, strict=True)
        }
    return [found[place] for place in places]


def _find(index: Index, episode_id: str) -> tuple[str, int] | None:
    """The file and the row of an episode, None if the index does not have it."""
    parts = episode_id.rsplit("/", 4)
    if len(parts) == 5 and parts[0] in index.datasets:
        start = f"{parts[0]}/{parts[1]}/{parts[2]}-{parts[3]}-of-"
        for path in index.files(parts[0]):
            if path.startswith(start):
                ids = index.table(path, ["episode_id"])["episode_id"].to_pylist()
                return (path, ids.index(episode_id)) if episode_id in ids else None
    return None


def _entry(index: Index, path: str, row: Mapping[str, Any], frames: int, bgr: Bgr) -> dict[str, Any]:
    """One episode: what it is, what the criteria saw, its frames and its curves; page.js reads these keys."""
    dataset = dataset_of(path)[0]
    why = _why(index, dataset, row)
    first: dict[str, Any] = why[0] if why else {"step": -1, "detail": ""}
    steps = steps_to_show(row["num_steps"], first["step"], frames)
    seen = read_thumbnails(index.source_of(dataset), row, steps, first["detail"], bgr(dataset))
    proprio = _array(row["proprio"])
    return {
        "id": row["episode_id"],
        "data": dataset,
        "split": split_of(path),
        "text": brief(row["instruction"] or ""),
        "more": max(0, len(row["instructions"] or ()) - 1),
        "steps": row["num_steps"],
        "state": "dropped" if not row["kept"] else "marked" if why else "kept",
        "reason": row["reason"],
        "why": why,
        "copy": row["duplicate_of"],
        "camera": seen[0].role if seen else "",
        "frames": [[one.step, one.width, one.height, one.jpeg, one.problem] for one in seen],
        "action": curves(_array(row["action"]), AXES),
        "proprio": curves(proprio[:, :_DIMENSIONS]),
        "hidden": max(0, proprio.shape[1] - _DIMENSIONS),
    }


def brief(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= _TEXT else text[:_TEXT] + " …"


def _array(values: Any) -> Any:
    return np.array(values, np.float32) if values and values[0] else np.empty((0, 0), np.float32)


def _why(index: Index, dataset: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the criteria saw, the reason first, then the furthest above its limit."""
    judged = index.datasets[dataset].judged
    found = {}
    for mark in row["marks"] or ():
        unit = judged[mark["criterion"]].unit if mark["criterion"] in judged else ""
        found[mark["criterion"]] = _saw(unit=unit, **mark)
    reason = row["reason"]
    if reason and reason not in found:
        own = own_limit(reason, index.criteria)
        value = (row["num_steps"] if own[0] == "num_steps" else (row["metrics"] or {}).get(own[0])) if own else None
        unit = "steps" if own and own[0] == "num_steps" else ""
        found[reason] = _saw(reason, value, own[1] if own else None, unit=unit)
        if reason == "too_short" and own and value is not None:
            found[reason] |= {"excess": own[1] / max(value, 0.5), "least": True}
    if row["duplicate_of"] and not {DUPLICATE, "near_duplicate"} & set(found):
        found[DUPLICATE] = _saw(DUPLICATE, None, None)
    return sorted(found.values(), key=lambda saw: (saw["criterion"] != reason, -saw["excess"], saw["criterion"]))


def _saw(
    criterion: str, value: float | None, limit: float | None, step: int = -1, detail: str | None = "", unit: str = ""
) -> dict[str, Any]:
    ratio = excess(value, limit)
    return {
        "criterion": criterion, "value": _finite(value), "limit": _finite(limit), "step": -1 if step is None else step,
        "detail": detail or "", "unit": unit, "excess": ratio if math.isfinite(ratio) else 1e9, "least": False,
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else float(value)
