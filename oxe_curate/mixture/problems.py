"""The findings of a check: their order, and those that the mixture accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from oxe_curate.mixture.kinds import KINDS, AcceptedFinding
from oxe_curate.mixture.lines import Lines

_MAX_FINDINGS = 1000


@dataclass(frozen=True)
class Problem:
    """A finding of a check.

    Attributes:
        level: "accepted" where the mixture's `accept` names it; `accepted` then has the reason.
        code: for programs, and for `accept`: one of `kinds.KINDS`.
        key: path in the YAML, "datasets.3.weight"; None if the finding is about the whole file.
        line: in the file, from 1.
        dataset: name of the entry, if the finding is about one.
        advice: what to do.
    """

    level: Literal["error", "warning", "accepted"]
    code: str
    key: str | None
    line: int | None
    dataset: str | None
    message: str
    advice: str
    accepted: str | None = None


def has_errors(findings: Sequence[Problem]) -> bool:
    """Whether any finding is an error that is not accepted."""
    return any(finding.level == "error" for finding in findings)


def in_order(findings: Sequence[Problem]) -> list[Problem]:
    """Errors first, then by line, what is about the index last; the last of too many says how many are left out."""
    levels = ("error", "warning", "accepted")
    ordered = sorted(findings, key=lambda f: (levels.index(f.level), f.code == "not_in_index", f.line or 0, f.code))
    rest = ordered[_MAX_FINDINGS:]
    if not rest:
        return ordered
    message = f"{len(rest):,} more findings"
    advice = "Fix those above, and check again."
    return [*ordered[:_MAX_FINDINGS], Problem(rest[0].level, "more", None, None, None, message, advice)]


def accept(
    findings: Sequence[Problem], accepted: Sequence[AcceptedFinding], lines: Lines, given: Sequence[str]
) -> list[Problem]:
    """Mark the findings that the mixture accepts, and add a warning for each entry of `accept` that matches none.

    Args:
        findings: all of them.
        accepted: `Mixture.accept`.
        lines: of the file.
        given: what the check had: "index", "samples". An entry whose finding needs more is not called unused.
    """
    used: set[int] = set()
    out = []
    for finding in findings:
        mine = [i for i, a in enumerate(accepted) if a.finding == finding.code and a.dataset in (None, finding.dataset)]
        used.update(mine)
        if mine and KINDS[finding.code].acceptable:
            finding = replace(finding, level="accepted", accepted=accepted[mine[0]].reason)
        out.append(finding)
    for i, entry in enumerate(accepted):
        needs = KINDS[entry.finding].needs
        if i in used or (needs and needs not in given):
            continue
        key = f"accept.{i}"
        where = f" for {entry.dataset}" if entry.dataset else ""
        message = f"the accepted finding {entry.finding!r} does not occur{where}"
        advice = "Remove it from accept."
        out.append(Problem("warning", "unused_accept", key, lines.of(key), entry.dataset, message, advice))
    return out
