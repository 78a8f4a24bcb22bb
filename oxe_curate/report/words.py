"""The report's sentences: what a criterion means, why a data set kept nothing, and the commands that change it."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from oxe_curate.filter.criteria import MEASURED, PRESETS, Criteria
from oxe_curate.filter.decisions import ORDER
from oxe_curate.index.index_json import DatasetEntry
from oxe_curate.quality.findings import DataFinding
from oxe_curate.ui.tables import counted

_ADVICE = {
    "no_third_person_camera": "If one of its cameras shows the scene from outside, give it the role primary in the "
    "card. If its images are dark, not missing, lower black_level and filter again.",
    "not_single_arm": "Leave the data set out, or write a card whose recipe reads one of the arms.",
    "not_end_effector": "Leave the data set out, or write a card with a recipe that makes end-effector actions of its "
    "features (`oxe-curate inspect` drafts one).",
    "failed": "Check the episode filters and the success_key of the card against the data.",
    "no_language": "Check the language keys of the card (`oxe-curate inspect` lists the texts it finds).",
    "not_finite": "Check the recipe of the card against the data (`oxe-curate check`).",
    "too_short": "Lower too_short, or check the recipe's trim.",
    "too_long": "Raise too_long.",
    "idle": "Raise the limit idle, or check the units of the actions: actions that are too small count as idle.",
    "bad_image": "Check the cameras of the card, and that the shards were downloaded completely.",
    "duplicate": "Its episodes are copies of those of another data set or split; leave one of them out.",
}
_UNKNOWN = "Look at the episodes below; if they are good, switch the criterion off."


@functools.cache
def _meanings() -> dict[str, str]:
    """Criterion -> the first sentence of its entry in the docstring of `Criteria`."""
    found: dict[str, str] = {}
    _, _, entries = inspect.cleandoc(Criteria.__doc__ or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?=    [a-z])", "\n" + entries):
        names, _, text = " ".join(entry.split()).partition(": ")
        sentence = re.split(r"(?<=[^ .][.;]) ", text)[0].rstrip(".;")
        sentence = re.sub(r"^(true )?(drops?|marks?|reports?)( (or|and) (drops?|marks?))? (if )?", "", sentence)
        for name in names.split(", "):
            found[name] = sentence[:1].upper() + sentence[1:] + "." if sentence else ""
    return found


def meaning(criterion: str) -> str:
    """What a criterion looks at, in one sentence; made of its name if `Criteria` does not describe it."""
    return _meanings().get(criterion) or criterion.replace("_", " ").capitalize() + "."


def command(index: str, criteria: Mapping[str, Any], *changes: str, preset: str | None = None) -> str:
    """A command line that applies the criteria of an index with some changes.

    Args:
        index: its folder.
        criteria: of the index.
        changes: settings such as "idle=0.8".
        preset: name of a preset.
    """
    now = asdict(Criteria()) | {key: value for key, value in criteria.items() if key in Criteria.__dataclass_fields__}
    base = preset or min(PRESETS, key=lambda name: len(_settings(now, name)))
    changed = {change.partition("=")[0] for change in changes}
    if preset:  # what only marks now follows the preset; what is off stays off
        now |= {key: value for key, value in PRESETS[preset].items() if now[key] == "report"}
    carried = [setting for setting in _settings(now, base) if setting.partition("=")[0] not in changed]
    words = ["oxe-curate", "screen", index, *(["--preset", base] if base != "default" else [])]
    return shlex.join(words + [word for setting in (*carried, *changes) for word in ("--criterion", setting)])


def _settings(criteria: Mapping[str, Any], preset: str) -> list[str]:
    """The settings that differ from those of a preset."""
    usual = asdict(Criteria()) | PRESETS[preset]
    changed = {key: value for key, value in criteria.items() if value != usual[key]}
    limits = changed.pop("limits", None) or {}
    return [f"{key}={yaml(value)}" for key, value in changed.items()] + [
        f"limits.{key}={yaml(value)}" for key, value in limits.items()
    ]


def yaml(value: Any) -> str:
    """A setting as YAML."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return ", ".join(f"{key}: {yaml(one)}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def commands(
    index: str, criteria: Mapping[str, Any], criterion: str, drops: bool, limit: float | None
) -> list[tuple[str, str]]:
    """What a reader can do about a criterion: rows (purpose, command line).

    Args:
        index: its folder.
        criteria: of the index.
        criterion: the name.
        drops: whether it drops episodes now.
        limit: one of the limits that it has now, if it is measured.
    """

    def to(change: str) -> str:
        return command(index, criteria, change)

    rows = []
    if criterion in MEASURED:
        other = ("keep and mark them", "report") if drops else ("drop them", "true")
        rows.append((other[0], to(f"{criterion}={other[1]}")))
        if limit is not None:
            rows.append(("set another limit, for all data sets", to(f"limits.{criterion}={float(f'{limit:.3g}'):g}")))
        rows.append(("switch it off", to(f"{criterion}=false")))
    elif criterion == "duplicate":
        other = ("keep and mark them", "report") if drops else ("drop them", "true")
        rows.append((other[0], to(f"duplicate={other[1]}")))
    elif criterion in ("too_short", "too_long", "idle"):
        off = "1" if criterion == "too_short" else "null"
        rows.append(("switch it off, or set another limit", to(f"{criterion}={off}")))
    elif criterion in ORDER:
        rows.append(("keep them", to(f"{criterion}=false")))
    return rows


def nothing_kept(name: str, entry: DatasetEntry, reason: str = "") -> list[str]:
    """Why a data set kept no episode, in sentences; none if it kept some.

    Args:
        name: of the data set.
        entry: in index.json.
        reason: of the card's verdict.
    """
    summary = entry.summary
    if summary.kept:
        return []
    if not summary.seen:
        unreadable = (
            f" {counted(len(summary.corrupt), 'record is', 'records are')} unreadable." if summary.corrupt else ""
        )
        return [f"{name} has no episodes in the splits that were filtered.{unreadable}"]
    dropped = sorted(summary.dropped.items(), key=lambda item: -item[1][0])
    counts = ", ".join(f"{episodes:,} for {criterion}" for criterion, (episodes, _) in dropped)
    every = "The only episode is" if summary.seen == 1 else f"All {summary.seen:,} episodes of {name} are"
    lines = [f"{every} dropped: {counts}."]
    if entry.verdict:
        lines.append(f"The verdict of its card {entry.card} is {entry.verdict}{f' ({reason})' if reason else ''}.")
    first = dropped[0][0] if dropped else ""
    lines.append(_ADVICE.get(first, _UNKNOWN))
    return lines


def findings(entry: DatasetEntry) -> list[DataFinding]:
    """What is implausible about a whole data set, errors first."""
    return sorted(entry.findings, key=lambda finding: finding.severity != "error")
