"""The kinds of findings about a mixture: their names, what they say, and whether a mixture may accept them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from oxe_curate import config
from oxe_curate.errors import did_you_mean, quoted
from oxe_curate.quality.findings import ACTION_FINDINGS


@plain_dataclass(frozen=True)
class FindingKind:
    """One kind.

    Attributes:
        text: what it says.
        acceptable: whether `accept` in the mixture can silence it; the others must be fixed.
        needs: the option of `mixture check` with which (or without which) it is complete.
    """

    text: str
    acceptable: bool = True
    needs: Literal["", "index", "no index", "samples"] = ""


def _must(text: str, needs: Literal["", "index"] = "") -> FindingKind:
    return FindingKind(text, acceptable=False, needs=needs)


KINDS: dict[str, FindingKind] = {
    "invalid": _must("YAML or a key is wrong"),
    "unknown_dataset": _must("no card and no data set of the index has the name"),
    "duplicate": _must("a data set is given twice, under any of its names"),
    "not_in_index": _must("a data set is not in the index", "index"),
    "empty": _must("a data set has no kept episode in its splits", "index"),
    "no_split": _must("a split is not in the index", "index"),
    "no_recipe": _must("the index was filtered with another recipe", "index"),
    "no_camera": _must("a data set lacks a camera of the mixture"),
    "no_bounds": _must("the file of the bounds is missing, unreadable, or lacks a data set"),
    "no_text_source": _must("an image-text source cannot be read"),
    "more": _must("more findings than are shown"),
    "unused_accept": _must("an accepted finding no longer occurs"),
    "fails_criterion": FindingKind("a data set fails OpenVLA's criteria"),
    "criterion_open": FindingKind("it is open whether a data set meets OpenVLA's criteria"),
    "broken_version": FindingKind("the version in the index is known to be broken", needs="index"),
    "version_open": FindingKind("later versions are broken, and the version is unknown", needs="no index"),
    "leak": FindingKind("a split repeats episodes of the train split", needs="index"),
    "counted_twice": FindingKind("two data sets have the same episodes", needs="index"),
    "no_held_out": FindingKind("no episode is held out for validation", needs="index"),
    "no_language": FindingKind("a data set has no instructions"),
    "gripper_polarity": FindingKind("the card does not say which end of the gripper is open"),
    "control_rates": FindingKind("control rates are far apart"),
    "licence": FindingKind("licences are unknown"),
    "size_unknown": FindingKind("sizes are unknown", needs="samples"),
    "few_epochs": FindingKind("less than one epoch is seen", needs="samples"),
    "many_epochs": FindingKind("more than ten epochs are seen", needs="samples"),
    **{name: FindingKind(text, needs="index") for name, text in ACTION_FINDINGS.items()},
}
"""Every code of a `Problem`, by name."""


@dataclass(frozen=True, config=config.STRICT)
class AcceptedFinding:
    """A finding of `mixture check` that is known and accepted.

    Attributes:
        finding: its name; see `KINDS`.
        reason: why, for whoever reads the mixture.
        dataset: only for this entry; None: for all.
    """

    finding: str
    reason: Annotated[str, Field(max_length=2000)]
    dataset: str | None = None

    def __post_init__(self) -> None:
        if self.finding not in KINDS:
            raise ValueError(f"finding: unknown finding {quoted(self.finding)}. {did_you_mean(self.finding, KINDS)}")
        if not KINDS[self.finding].acceptable:
            raise ValueError(f"finding: {self.finding!r} cannot be accepted ({KINDS[self.finding].text}); fix it")
        if not self.reason.strip():
            raise ValueError(f"reason: expected the reason for accepting {self.finding!r}, got an empty text")


def check_accepted(accepted: Sequence[AcceptedFinding], names: Iterable[str]) -> None:
    """Raise ValueError for a data set that the mixture does not have, or a finding that is accepted twice."""
    known, seen = set(names), set[tuple[str, str | None]]()
    for i, entry in enumerate(accepted):
        if entry.dataset is not None and entry.dataset not in known:
            hint = did_you_mean(entry.dataset, known)
            raise ValueError(f"accept.{i}.dataset: {quoted(entry.dataset)} is not in this mixture. {hint}")
        if (entry.finding, entry.dataset) in seen:
            raise ValueError(f"accept.{i}: {entry.finding!r} is accepted twice; merge the entries")
        seen.add((entry.finding, entry.dataset))
