"""Text -> what the page shows. The text is the only state; the functions are pure except for the catalogue's caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from oxe_curate import config
from oxe_curate.editor import quantities
from oxe_curate.editor.catalogue import Catalogue
from oxe_curate.editor.document import Add, EditOperation, Remove, Set, apply_edit
from oxe_curate.editor.spans import Document, TextError, Utf16, parse
from oxe_curate.errors import ConfigError, did_you_mean, quoted
from oxe_curate.mixture import shares
from oxe_curate.mixture.check import check_text
from oxe_curate.mixture.spec import MAX_ENTRIES, MAX_NAME, MAX_WEIGHT, Mixture

_SETTINGS = ("name", "seed", "window", "stride", "chunk", "image", "bounds", "bins", "validation")
_DEFAULTS = {
    "seed": 0, "window": 1, "stride": 1, "chunk": 1,
    "image": {"cameras": ["primary"], "size": None, "quality": 95, "copy": True},
    "bounds": {"low": 0.01, "high": 0.99, "over": "kept"}, "bins": "openvla", "validation": 0.05,
}  # fmt: skip
_RESIZED_BYTES_PER_PIXEL = 0.35
"""Rough mean for a camera frame as JPEG of quality 95 without chroma subsampling."""
_REFERENCE_BYTES, _ROW_BYTES = 8, 60
"""Of the place of a frame in the source, and of the rest of a row, compressed, in a mixture by reference."""


def analyse(text: str, catalogue: Catalogue, samples: float | None = None) -> dict[str, Any]:
    """What the page shows of a text.

    Args:
        text: with line feeds as its only line breaks.
        catalogue: the data sets that can be named.
        samples: number of training samples; None: one pass of the mixture.

    Returns:
        {"ok": False, "error": {message, line, from}} for a text that is not a mixture; else {"ok": True, "rows": [...],
        "totals": {...}, "settings": {...}}. Positions are in UTF-16 units, lines count from 1.
    """
    try:
        document = parse(text)
        entries = _entries(document)
    except TextError as error:
        return {"ok": False, "error": _error(text, error)}
    settings = _settings(document.data)
    validation, cameras = settings["validation"], settings["image"]["cameras"]
    units = Utf16(text)
    rows = [_row(document, i, entry, catalogue, cameras, units) for i, entry in enumerate(entries)]
    held_out = 1 - validation if isinstance(validation, int | float) and 0 <= validation < 1 else 1.0
    weights = np.array([row["weight"] or np.nan for row in rows], np.float64)
    steps = np.array([row["steps"] or np.nan for row in rows], np.float64) * held_out / _stride(settings)
    drawn = weights * steps
    one_pass = float(np.nansum(drawn))
    share = shares.shares(weights, steps)
    seen = shares.epochs(weights, steps, samples or one_pass)
    for i, row in enumerate(rows):
        row |= {"share": _known(share[i]), "epochs": _known(seen[i]), "drawn": _known(drawn[i]),
                "passHours": row["hours"] * row["weight"] if row["hours"] and row["weight"] else None}  # fmt: skip
    return {
        "ok": True,
        "rows": rows,
        "totals": _totals(rows, one_pass, settings),
        "settings": settings,
        "texts": _texts(document.data),
        "samples": samples or one_pass,
    }


def problems(text: str, catalogue: Catalogue, samples: float | None, base: Path | None = None) -> list[dict[str, Any]]:
    """The findings of `oxe-curate mixture check`, as JSON. `base` is the folder of the mixture file."""
    findings = check_text(text, "", catalogue.index, int(samples) if samples else None, catalogue.cards, base)
    return [asdict(finding) for finding in findings if finding.level != "accepted"]


def apply_action(text: str, operation: Any, catalogue: Catalogue, samples: float | None = None) -> dict[str, Any]:
    """Apply an operation of the page to a text, as one step.

    Args:
        text: with line feeds as its only line breaks.
        operation: a JSON object with the key "op" and the keys that `_operations` reads.
        catalogue: the data sets that can be named.
        samples: number of training samples; None: one pass of the mixture.

    Returns:
        {"changes": [{from, to, insert}], "analysis": of the new text}, positions in UTF-16 units of the old text.

    Raises:
        ConfigError: the operation is malformed or not possible.
    """
    if not isinstance(operation, dict):
        raise ConfigError("operation: expected a JSON object")
    try:
        steps = _operations(text, operation, catalogue, samples)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ConfigError(f"malformed operation: {type(error).__name__}: {error}") from None
    done = apply_edit(text, steps)
    units = Utf16(text)
    changes = [{"from": units.units(s.start), "to": units.units(s.end), "insert": s.text} for s in done.splices]
    return {"changes": changes, "analysis": analyse(done.text, catalogue, samples)}


def _operations(
    text: str, operation: dict[str, Any], catalogue: Catalogue, samples: float | None
) -> Sequence[EditOperation]:
    kind = operation["op"]
    if kind == "set":
        value = operation["value"]
        path = tuple(step if isinstance(step, int) else str(step) for step in operation["path"])
        if path[:1] == ("datasets",) or path[0] not in _SETTINGS:
            raise ConfigError(
                f"{quoted(path[0])} is not a setting of a mixture. {did_you_mean(str(path[0]), _SETTINGS)}"
            )
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int | float | None):
                raise ConfigError(f"value: expected a text, a number, true, false or null, got {quoted(one)}")
        return [Set(path, tuple(value) if isinstance(value, list) else value)]
    if kind == "rename":
        return [Set(("datasets", int(operation["row"]), "name"), str(operation["name"]))]
    if kind == "add":
        return [Add(str(name), float(weight)) for name, weight in operation["datasets"].items()]
    if kind == "remove":
        return [Remove(int(row)) for row in operation["rows"]]
    if kind == "weights":
        return _weights({int(row): float(weight) for row, weight in operation["rows"].items()})
    analysis = analyse(text, catalogue, samples)
    if not analysis["ok"]:
        raise TextError(analysis["error"]["message"])
    rows = analysis["rows"]
    if kind == "scale":
        factor = float(operation["factor"])
        return _weights({int(i): quantities.rounded(rows[i]["weight"] * factor) for i in operation["rows"]})
    if kind == "quantity":
        i = int(operation["row"])
        held_out = (1 - float(analysis["settings"]["validation"])) / _stride(analysis["settings"])
        size = [row["steps"] * held_out if row["steps"] else None for row in rows]
        # hours include held-out steps, as in the table's column
        hz = rows[i]["hz"] * held_out if rows[i]["hz"] else None
        return _weights(
            quantities.solve(
                [row["weight"] or 1.0 for row in rows], size, i, operation["quantity"], float(operation["value"]),
                hz=hz, samples=samples, keep_total=bool(operation.get("keepTotal")),
                locked=set(operation.get("locked", ())),
            )
        )  # fmt: skip
    if kind == "adopt":
        return _adopt(rows, operation, catalogue)
    raise ConfigError(f"unknown operation {quoted(kind)}")


def _weights(weights: dict[int, float]) -> list[EditOperation]:
    return [Set(("datasets", row, "weight"), weight) for row, weight in sorted(weights.items())]


def _adopt(rows: list[dict[str, Any]], operation: dict[str, Any], catalogue: Catalogue) -> list[EditOperation]:
    """Adopt the weights of a reference, for some data sets or for all."""
    weights = operation["weights"]
    only = operation.get("only")
    steps: list[EditOperation] = []
    present = {row["id"]: row for row in rows}
    for row in rows:
        if only is not None and row["id"] not in only:
            continue
        if row["id"] in weights:
            steps.append(Set(("datasets", row["row"], "weight"), float(weights[row["id"]])))
        else:
            steps.append(Remove(row["row"]))
    for identity, weight in weights.items():
        if identity not in present and (only is None or identity in only):
            fact = catalogue.facts.get(identity)
            steps.append(Add(fact["name"] if fact else identity, float(weight)))
    return steps


def _entries(document: Document) -> list[dict[str, Any]]:
    data = document.data
    if not isinstance(data, dict):
        raise TextError("expected keys and values. Start with `name:` and `datasets:`.", 0)
    entries = data.get("datasets", [])
    found = document.find(("datasets",))
    place = found.span.start if found else 0
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise TextError("datasets: expected a list, with `- name: ...` and `weight: ...` for each data set", place)
    if len(entries) > MAX_ENTRIES:
        raise TextError(f"datasets: expected at most {MAX_ENTRIES:,} entries, got {len(entries):,}", place)
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            item = document.find(("datasets", i))
            raise TextError(f"datasets: entry {i + 1} has no name", item.span.start if item else place)
        if len(entry["name"]) > MAX_NAME:
            item = document.find(("datasets", i))
            problem = f"datasets: entry {i + 1}: expected a name of at most {MAX_NAME} characters"
            raise TextError(problem, item.span.start if item else place)
    return entries


def _row(
    document: Document, i: int, entry: dict[str, Any], catalogue: Catalogue, cameras: list[str], units: Utf16
) -> dict[str, Any]:
    weight = entry.get("weight")
    given = entry.get("splits")
    splits = [str(split) for split in given] if isinstance(given, list) and given else ["train"]
    item, place = document.find(("datasets", i)), _place(document, i)
    assert item is not None
    start = item.span.start if item.alias else document.start(item.node)
    valid = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight <= MAX_WEIGHT
    row: dict[str, Any] = {
        "row": i,
        "name": entry["name"],
        "weight": float(weight) if valid and weight is not None else None,
        "line": document.text.count("\n", 0, start) + 1,
        "from": units.units(start),
        "to": units.units(item.span.end),
        "weightFrom": units.units(place[0]) if place else None,
        "weightTo": units.units(place[1]) if place else None,
        "splits": splits,
        "id": entry["name"],
        "problem": None if valid else f"weight: expected a number above zero, at most {MAX_WEIGHT:,.0f}",
        "steps": None, "episodes": None, "hours": None, "hz": None, "origin": "unknown", "bytes": None,
    }  # fmt: skip
    try:
        member = catalogue.member(entry["name"], tuple(splits))
    except ConfigError as error:
        return row | {"problem": str(error)}
    each = catalogue.bytes_per_step(member, tuple(map(str, cameras)))
    return row | {
        "id": member.identity, "steps": member.steps, "episodes": member.episodes, "hours": member.hours,
        "hz": member.card.control_hz, "origin": member.origin, "bytes": each,
    }  # fmt: skip


def _place(document: Document, i: int) -> tuple[int, int] | None:
    try:
        found = document.find(("datasets", i, "weight"))
    except TextError:
        return None
    return (found.span.start, found.span.end) if found else None


def _settings(data: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"name": data.get("name")}
    for key, default in _DEFAULTS.items():
        value = data.get(key, default)
        settings[key] = {**default, **value} if isinstance(default, dict) and isinstance(value, dict) else value
        if isinstance(default, dict) and not isinstance(settings[key], dict):
            settings[key] = default
    if not isinstance(settings["image"]["cameras"], list):
        settings["image"] = {**settings["image"], "cameras": ["primary"]}
    return settings


def _stride(settings: dict[str, Any]) -> int:
    """Steps between samples; 1 if the text has no valid number."""
    return _whole(settings["stride"]) or 1


def _whole(value: Any) -> int | None:
    """A positive number of a setting; None if the text has no valid one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096 else None


def _texts(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The image-text sources that have a name, as in the text."""
    texts = data.get("texts")
    entries = texts if isinstance(texts, list) else []
    named = [t for t in entries if isinstance(t, dict) and isinstance(t.get("name"), str)]
    return [{"name": t["name"], "path": str(t.get("path", "")), "weight": t.get("weight")} for t in named]


def _totals(rows: list[dict[str, Any]], one_pass: float, settings: dict[str, Any]) -> dict[str, Any]:
    size, cameras = _whole(settings["image"]["size"]), len(settings["image"]["cameras"])
    window = _whole(settings["window"]) or 1
    disk, unsized = 0.0, []
    for row in rows:
        each = size * size * _RESIZED_BYTES_PER_PIXEL * cameras if size else row["bytes"]
        if settings["image"]["copy"] is False:
            each = _REFERENCE_BYTES * cameras
        if each is None or row["drawn"] is None:
            unsized.append(row["name"])
        else:
            disk += each * row["drawn"] * window
            if settings["image"]["copy"] is False:
                disk += _ROW_BYTES * row["drawn"]
    return {
        "datasets": len(rows),
        "samples": one_pass,
        "hours": sum(row["passHours"] or 0 for row in rows),
        "bytes": disk,
        "unknownSteps": [row["name"] for row in rows if row["steps"] is None],
        "unknownBytes": unsized,
    }


def parse_mixture(text: str, where: str) -> Mixture:
    """Parse a text strictly. Raises ConfigError as `config.load` does."""
    return config.build(Mixture, config.parse_yaml(text, where), where)


def _error(text: str, error: TextError) -> dict[str, Any]:
    if error.offset is None:
        return {"message": str(error), "line": None, "from": None}
    line = text.count("\n", 0, min(error.offset, len(text))) + 1
    return {"message": str(error), "line": line, "from": Utf16(text).units(min(error.offset, len(text)))}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
